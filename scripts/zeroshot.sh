#!/bin/bash
# Zero-shot with the data set's hand-written template:  bash scripts/zeroshot.sh caltech101 vit_b16 [KEY VALUE ...]
# (DATASET CFG; from the environment DATA, OUTPUT, TAG, DRY_RUN: see scripts/run.sh)
source "$(dirname "$0")/run.sh" 2 "$@"
TRAINER=ZeroshotOracle DATASET=$1 CFG=$2 SHOTS=1 SEED=1 MODEL=none
run "$OUTPUT/ZeroshotOracle/$CFG$TAG/$DATASET" "$DATASET" "${@:3}"
