#!/bin/bash
# Few-shot: one method on one data set, all seeds:  bash scripts/main.sh ZIP caltech101 vit_b16 16 [KEY VALUE ...]
# (TRAINER DATASET CFG SHOTS; from the environment DATA, SEEDS, OUTPUT, TAG, DRY_RUN: see scripts/run.sh)
source "$(dirname "$0")/run.sh" 4 "$@"
TRAINER=$1 DATASET=$2 CFG=$3 SHOTS=$4
for SEED in $SEEDS; do
    run "$OUTPUT/$DATASET/$TRAINER/${CFG}_${SHOTS}shots$TAG/seed$SEED" "$DATASET" "${@:5}"
done
