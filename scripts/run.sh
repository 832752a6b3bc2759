# Sourced by the scripts that train and evaluate, with the number of arguments that they need, and these: TRAINER DATASET CFG SHOTS. From the environment:
#   DATA    folder of the data sets (default data)      SEEDS   default "1 2 3"
#   OUTPUT  default output                              TAG     added to a run's folder where options make it another experiment
#   DRY_RUN 1 prints the commands instead of running them
# A finished run is skipped, a crashed one is resumed.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$@"
DATA=${DATA:-data} OUTPUT=${OUTPUT:-output} SEEDS=${SEEDS:-1 2 3} TAG=${TAG:+_$TAG} MODEL="" SOURCE=${SOURCE:-imagenet}
TRAINER=$2 DATASET=$3 CFG=${4:-} SHOTS=${5:-}

# run FOLDER SETTINGS [KEY VALUE ...]: one seed. The trainer's settings are those for the data set SETTINGS where it has any,
# else those of the backbone. Where MODEL is set, what was trained there, by the script MADE_BY, is evaluated.
run() {
    local config=configs/trainers/$TRAINER/${CFG}_$2.yaml
    [ -f "$config" ] || config=configs/trainers/$TRAINER/$CFG.yaml
    local command=(python train.py --skip-done --root "$DATA" --seed "$SEED" --trainer "$TRAINER"
        --dataset-config-file "configs/datasets/$DATASET.yaml" --config-file "$config" --output-dir "$1")
    [ -z "$MODEL" ] || command+=(--eval-only)
    if [ -n "$MODEL" ] && [ "$TRAINER" != ZeroshotOracle ]; then   # which has no model to load
        command+=(--model-dir "$MODEL")
        if [ "${DRY_RUN:-0}" = 0 ] &&
            ! { [ -f "$MODEL/prompt_learner/checkpoint" ] && grep -qsx "Finish training" "$MODEL/log.txt"; }; then
            echo "error: no finished training in $MODEL. Train first, with the same DATA, OUTPUT, SEEDS, TAG and options: bash scripts/$MADE_BY" >&2
            exit 1
        fi
    fi
    command+=(DATASET.NUM_SHOTS "$SHOTS" "${@:3}")
    if [ "${DRY_RUN:-0}" != 0 ]; then printf '%q ' "${command[@]}" && echo; else "${command[@]}" & finish; fi
}

# the same for each of SEEDS, below FOLDER, and below MODEL where it is set
run_seeds() {
    local model=$MODEL
    for SEED in $SEEDS; do
        MODEL=${model:+$model/seed$SEED}
        run "$1/seed$SEED" "${@:2}"
    done
}
