#!/bin/bash
# Zero-shot with the data set's hand-written template:  bash scripts/zeroshot.sh caltech101 vit_b16 [KEY VALUE ...]
# (DATASET CFG; from the environment DATA, OUTPUT, TAG, DRY_RUN: see scripts/run.sh)
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
source "$(dirname "$0")/run.sh"

run 1 ZeroshotOracle "$1" "$(config ZeroshotOracle "$1" "$2")" "$OUTPUT/ZeroshotOracle/$2$TAG/$1" --eval-only DATASET.NUM_SHOTS 1 "${@:3}"
