#!/bin/bash
# Zero-shot, ZIP (16 shots, 5,000 queries; from words and from its published random start), JOLT (500 and 5,000 queries) and white-box
# prompt tuning, on Digits with the embedded tiny CLIP. SEEDS="1 2 3" bash scripts/quickstart.sh gives the README's table; the default is seed 1 alone.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

export DATA=${DATA:-data} OUTPUT=${OUTPUT:-output/quickstart} SEEDS=${SEEDS:-1}
# two runs at a time, each on half of the cores: small matrices use one core better than two
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))}
WORDS="a scan of a handwritten"   # those of Digits' template

run() {   # run TRAINER TAG [KEY VALUE ...]
    echo "--- $1${2:+, $2} (log: $OUTPUT/digits/$1/tiny_16shots${2:+_$2}/seed*/log.txt)"
    TAG=$2 bash scripts/main.sh "$1" digits tiny 16 "${@:3}" | { grep -E "^(\* accuracy|.*skipped)" || true; }
}

run ZeroshotOracle template     # first, alone: it writes the images
run ZIP words TRAINER.ZIP.CTX_INIT "$WORDS" & FIRST=$!
TQDM_POSITION=1 run ZIP ""
wait $FIRST
run JOLT 500queries ORACLE.MAX_QUERIES 500 & FIRST=$!
TQDM_POSITION=1 run JOLT ""
wait $FIRST
run WhiteBox words TRAINER.WHITEBOX.CTX_INIT "$WORDS" & FIRST=$!
TQDM_POSITION=1 run WhiteBox ""
wait $FIRST

echo
python -m dassl_blackbox.results "$OUTPUT"
echo "The model is a stand-in trained by this project, not CLIP. Logs, checkpoints and bills: $OUTPUT/digits/<trainer>/<run>/seed<k>/"
