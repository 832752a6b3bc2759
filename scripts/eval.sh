#!/bin/bash
# Evaluates on one data set what scripts/main.sh trained on another (SOURCE, default imagenet), with the options of its training.
# bash scripts/eval.sh ZIP caltech101 vit_b16 16 [KEY VALUE ...]
# (TRAINER DATASET CFG SHOTS; from the environment SOURCE, DATA, SEEDS, OUTPUT, TAG, DRY_RUN: see scripts/run.sh)
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
source "$(dirname "$0")/run.sh"

TRAINER=$1 DATASET=$2 CFG=$3 SHOTS=$4 SOURCE=${SOURCE:-imagenet}
[ "$SOURCE" = imagenet ] && FROM="" || FROM=_from_$SOURCE   # CoOp's layout knows no other source
for SEED in $SEEDS; do
    FLAGS=(--eval-only)   # zero-shot has no model to load
    if [ "$TRAINER" != ZeroshotOracle ]; then
        MODEL=$OUTPUT/$SOURCE/$TRAINER/${CFG}_${SHOTS}shots$TAG/seed$SEED
        trained "$MODEL" "main.sh $TRAINER $SOURCE $CFG $SHOTS"
        FLAGS+=(--model-dir "$MODEL")
    fi
    # the settings are those of the data set that the prompt was trained on
    run "$SEED" "$TRAINER" "$DATASET" "$(config "$TRAINER" "$SOURCE" "$CFG")" "$OUTPUT/evaluation/$TRAINER/${CFG}_${SHOTS}shots$TAG$FROM/$DATASET/seed$SEED" \
        "${FLAGS[@]}" DATASET.NUM_SHOTS "$SHOTS" "${@:5}"
done
