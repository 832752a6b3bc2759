#!/bin/bash
# Base-to-new, first half: trains on the base classes.  bash scripts/base2new_train.sh ZIP caltech101 vit_b16 16 [KEY VALUE ...]
# (TRAINER DATASET CFG SHOTS; from the environment DATA, SEEDS, OUTPUT, TAG, DRY_RUN: see scripts/run.sh)
source "$(dirname "$0")/run.sh" 4 "$@"
TRAINER=$1 DATASET=$2 CFG=$3 SHOTS=$4
for SEED in $SEEDS; do
    run "$OUTPUT/base2new/train_base/$DATASET/shots_$SHOTS/$TRAINER/$CFG$TAG/seed$SEED" "$DATASET" DATASET.SUBSAMPLE_CLASSES base "${@:5}"
done
