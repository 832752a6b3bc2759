#!/bin/bash
# One method on one data set, all seeds:  bash scripts/main.sh ZIP caltech101 vit_b16 16 [KEY VALUE ...]
#
# From the environment: DATA (folder of the data sets, default data), SEEDS (default "1 2 3"), OUTPUT (default output), and TAG, which is added
# to the name of the run where options make it another experiment. A finished run is skipped, a crashed one is resumed.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
source "$(dirname "$0")/setup.sh"

TRAINER=$1 DATASET=$2 CFG=$3 SHOTS=$4
shift 4
# a trainer's settings for one data set, where it has any
CONFIG=configs/trainers/$TRAINER/${CFG}_$DATASET.yaml
[ -f "$CONFIG" ] || CONFIG=configs/trainers/$TRAINER/$CFG.yaml

for SEED in ${SEEDS:-1 2 3}; do
    python train.py --skip-done --root "${DATA:-data}" --seed "$SEED" --trainer "$TRAINER" \
        --dataset-config-file "configs/datasets/$DATASET.yaml" --config-file "$CONFIG" \
        --output-dir "${OUTPUT:-output}/$DATASET/$TRAINER/${CFG}_${SHOTS}shots${TAG:+_$TAG}/seed$SEED" \
        DATASET.NUM_SHOTS "$SHOTS" "$@"
done
