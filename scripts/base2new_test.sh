#!/bin/bash
# Base-to-new, second half: evaluates on the new classes what base2new_train.sh trained, with the same arguments.
# bash scripts/base2new_test.sh ZIP caltech101 vit_b16 16 [KEY VALUE ...]      then: python -m dassl_blackbox.results output/base2new --base2new
# (TRAINER DATASET CFG SHOTS; from the environment DATA, SEEDS, OUTPUT, TAG, DRY_RUN: see scripts/run.sh)
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
source "$(dirname "$0")/run.sh"

TRAINER=$1 DATASET=$2 CFG=$3 SHOTS=$4
for SEED in $SEEDS; do
    COMMON=$DATASET/shots_$SHOTS/$TRAINER/$CFG$TAG/seed$SEED
    FLAGS=(--eval-only)   # zero-shot has no model to load
    if [ "$TRAINER" != ZeroshotOracle ]; then
        trained "$OUTPUT/base2new/train_base/$COMMON" "base2new_train.sh $TRAINER $DATASET $CFG $SHOTS"
        FLAGS+=(--model-dir "$OUTPUT/base2new/train_base/$COMMON")
    fi
    run "$SEED" "$TRAINER" "$DATASET" "$(config "$TRAINER" "$DATASET" "$CFG")" "$OUTPUT/base2new/test_new/$COMMON" "${FLAGS[@]}" \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES new "${@:5}"
done
