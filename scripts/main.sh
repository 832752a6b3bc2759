#!/bin/bash
# Few-shot, one method on one data set:  bash scripts/main.sh TRAINER DATASET CFG SHOTS [KEY VALUE ...]
source "$(dirname "$0")/run.sh" 4 "$@"
run_seeds "$OUTPUT/$DATASET/$TRAINER/${CFG}_${SHOTS}shots$TAG" "$DATASET" "${@:5}"
