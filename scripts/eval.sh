#!/bin/bash
# Evaluates on one data set what scripts/main.sh trained on another (SOURCE, default imagenet), with the options of its training.
# bash scripts/eval.sh TRAINER DATASET CFG SHOTS [KEY VALUE ...]
source "$(dirname "$0")/run.sh" 4 "$@"
NAME=$TRAINER/${CFG}_${SHOTS}shots$TAG
MODEL=$OUTPUT/$SOURCE/$NAME MADE_BY="main.sh $1 $SOURCE $3 $4"
[ "$SOURCE" = imagenet ] && FROM="" || FROM=_from_$SOURCE   # CoOp's layout knows no other source
run_seeds "$OUTPUT/evaluation/$NAME$FROM/$DATASET" "$SOURCE" "${@:5}"
