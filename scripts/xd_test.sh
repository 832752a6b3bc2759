#!/bin/bash
# Evaluates what xd_train.sh trained on every target, with the same arguments.  bash scripts/xd_test.sh ZIP vit_b16 16 [KEY VALUE ...]
# TARGETS, default CoOp's ten data sets (transfer) and the four variants of ImageNet (domain generalisation); SOURCE and the rest: see scripts/eval.sh
source "$(dirname "$0")/setup.sh" 3 "$@"
TRANSFER="caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"
FAILED=0
for DATASET in ${TARGETS:-$TRANSFER imagenetv2 imagenet_sketch imagenet_a imagenet_r}; do
    bash scripts/eval.sh "$1" "$DATASET" "${@:2}" & finish || FAILED=1   # a data set that is not there leaves the others their turn
done
exit $FAILED
