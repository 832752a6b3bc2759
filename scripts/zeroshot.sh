#!/bin/bash
# Zero-shot with the data set's hand-written template:  bash scripts/zeroshot.sh DATASET CFG [KEY VALUE ...]
source "$(dirname "$0")/run.sh" 2 "$@"
TRAINER=ZeroshotOracle DATASET=$1 CFG=$2 SHOTS=1 SEED=1 MODEL=none
run "$OUTPUT/ZeroshotOracle/$CFG$TAG/$DATASET" "$DATASET" "${@:3}"
