#!/bin/bash
# Base-to-new, second half: evaluates on the new classes what base2new_train.sh trained, with the same arguments.
# bash scripts/base2new_test.sh TRAINER DATASET CFG SHOTS [KEY VALUE ...]      then: python -m dassl_blackbox.results output/base2new --base2new
source "$(dirname "$0")/run.sh" 4 "$@"
COMMON=$DATASET/shots_$SHOTS/$TRAINER/$CFG$TAG
MODEL=$OUTPUT/base2new/train_base/$COMMON MADE_BY="base2new_train.sh $1 $2 $3 $4"
run_seeds "$OUTPUT/base2new/test_new/$COMMON" "$DATASET" DATASET.SUBSAMPLE_CLASSES new "${@:5}"
