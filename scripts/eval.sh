#!/bin/bash
# Evaluates on one data set what scripts/main.sh trained on another (SOURCE, default imagenet), with the options of its training.
# bash scripts/eval.sh ZIP caltech101 vit_b16 16 [KEY VALUE ...]
# (TRAINER DATASET CFG SHOTS; from the environment SOURCE, DATA, SEEDS, OUTPUT, TAG, DRY_RUN: see scripts/run.sh)
source "$(dirname "$0")/run.sh" 4 "$@"
TRAINER=$1 DATASET=$2 CFG=$3 SHOTS=$4 MADE_BY="main.sh $1 $SOURCE $3 $4" NAME=$1/${3}_${4}shots$TAG
[ "$SOURCE" = imagenet ] && FROM="" || FROM=_from_$SOURCE   # CoOp's layout knows no other source
for SEED in $SEEDS; do
    MODEL=$OUTPUT/$SOURCE/$NAME/seed$SEED
    run "$OUTPUT/evaluation/$NAME$FROM/$DATASET/seed$SEED" "$SOURCE" "${@:5}"
done
