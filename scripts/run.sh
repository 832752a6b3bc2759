# Sourced by the scripts that train and evaluate. From the environment:
#   DATA    folder of the data sets (default data)      SEEDS   default "1 2 3"
#   OUTPUT  default output                              TAG     added to a run's folder where options make it another experiment
#   DRY_RUN 1 prints the commands instead of running them
# A finished run is skipped, a crashed one is resumed.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "${DRY_RUN:-0}" != 0 ] || source scripts/setup.sh
DATA=${DATA:-data} OUTPUT=${OUTPUT:-output} SEEDS=${SEEDS:-1 2 3} TAG=${TAG:+_$TAG}

# config TRAINER DATASET CFG: the trainer's settings for that data set where it has any, else those of the backbone
config() {
    if [ -f "configs/trainers/$1/$3_$2.yaml" ]; then echo "configs/trainers/$1/$3_$2.yaml"; else echo "configs/trainers/$1/$3.yaml"; fi
}

# run SEED TRAINER DATASET CONFIG FOLDER [flags] [KEY VALUE ...]
run() {
    local command=(python train.py --skip-done --root "$DATA" --seed "$1" --trainer "$2" --dataset-config-file "configs/datasets/$3.yaml"
        --config-file "$4" --output-dir "$5" "${@:6}")
    if [ "${DRY_RUN:-0}" != 0 ]; then printf '%q ' "${command[@]}" && echo; else "${command[@]}"; fi
}

# trained MODEL_DIR SENTENCE: stops with the sentence unless a run left its model there
trained() {
    [ "${DRY_RUN:-0}" != 0 ] || [ -f "$1/prompt_learner/checkpoint" ] || { echo "error: no trained model in $1. $2" >&2; exit 1; }
}
