#!/bin/bash
# Base-to-new, first half: trains on the base classes.  bash scripts/base2new_train.sh TRAINER DATASET CFG SHOTS [KEY VALUE ...]
source "$(dirname "$0")/run.sh" 4 "$@"
run_seeds "$OUTPUT/base2new/train_base/$DATASET/shots_$SHOTS/$TRAINER/$CFG$TAG" "$DATASET" DATASET.SUBSAMPLE_CLASSES base "${@:5}"
