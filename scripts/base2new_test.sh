#!/bin/bash
# Base-to-new, second half: evaluates on the new classes what base2new_train.sh trained, with the same arguments.
# bash scripts/base2new_test.sh ZIP caltech101 vit_b16 16 [KEY VALUE ...]      then: python -m dassl_blackbox.results output/base2new --base2new
# (TRAINER DATASET CFG SHOTS; from the environment DATA, SEEDS, OUTPUT, TAG, DRY_RUN: see scripts/run.sh)
source "$(dirname "$0")/run.sh" 4 "$@"
TRAINER=$1 DATASET=$2 CFG=$3 SHOTS=$4 MADE_BY="base2new_train.sh $1 $2 $3 $4"
for SEED in $SEEDS; do
    COMMON=$DATASET/shots_$SHOTS/$TRAINER/$CFG$TAG/seed$SEED
    MODEL=$OUTPUT/base2new/train_base/$COMMON
    run "$OUTPUT/base2new/test_new/$COMMON" "$DATASET" DATASET.SUBSAMPLE_CLASSES new "${@:5}"
done
