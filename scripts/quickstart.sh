#!/bin/bash
# Zero-shot, ZIP (16 shots, 5,000 queries; from words and from its published random start) and the white-box ceiling, on Digits with the
# embedded tiny CLIP. SEEDS="1 2 3" bash scripts/quickstart.sh gives the README's table; the default is seed 1 alone.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

export DATA=${DATA:-data} OUTPUT=${OUTPUT:-output/quickstart} SEEDS=${SEEDS:-1}
WORDS="a scan of a handwritten"

run() {
    echo "--- $1${TAG:+, from words} (log: $OUTPUT/digits/$1/tiny_16shots${TAG:+_$TAG}/seed*/log.txt)"
    bash scripts/main.sh "$1" digits tiny 16 "${@:2}" | { grep -E "^(\* accuracy|.*skipped)" || true; }
}

run ZeroshotOracle
TAG=words run ZIP TRAINER.ZIP.CTX_INIT "$WORDS"
run ZIP
TAG=words run WhiteBox TRAINER.WHITEBOX.CTX_INIT "$WORDS"

echo
python -m dassl_blackbox.results "$OUTPUT"
echo "The model is a stand-in trained by this project, not CLIP. Logs, checkpoints and bills: $OUTPUT/digits/<trainer>/<run>/seed<k>/"
