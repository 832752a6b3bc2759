# Sourced by the scripts that train and evaluate. From the environment:
#   DATA    folder of the data sets (default data)      SEEDS   default "1 2 3"
#   OUTPUT  default output                              TAG     added to a run's folder where options make it another experiment
#   DRY_RUN 1 prints the commands instead of running them
# A finished run is skipped, a crashed one is resumed.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
DATA=${DATA:-data} OUTPUT=${OUTPUT:-output} SEEDS=${SEEDS:-1 2 3} TAG=${TAG:+_$TAG}

# config TRAINER DATASET CFG: the trainer's settings for that data set where it has any, else those of the backbone
config() {
    if [ -f "configs/trainers/$1/$3_$2.yaml" ]; then echo "configs/trainers/$1/$3_$2.yaml"; else echo "configs/trainers/$1/$3.yaml"; fi
}

# run SEED TRAINER DATASET CONFIG FOLDER [flags] [KEY VALUE ...]
run() {
    local command=(python train.py --skip-done --root "$DATA" --seed "$1" --trainer "$2" --dataset-config-file "configs/datasets/$3.yaml"
        --config-file "$4" --output-dir "$5" "${@:6}")
    if [ "${DRY_RUN:-0}" != 0 ]; then printf '%q ' "${command[@]}" && echo; else "${command[@]}" & finish; fi
}

# trained MODEL_DIR COMMAND: stops unless a run was finished there, and names the command that makes it
trained() {
    [ "${DRY_RUN:-0}" = 0 ] || return 0
    if ! grep -qsx "Finish training" "$1/log.txt" || [ ! -f "$1/prompt_learner/checkpoint" ]; then
        echo "error: no finished training in $1. Train first, with the same DATA, OUTPUT, SEEDS, TAG and options: bash scripts/$2" >&2
        exit 1
    fi
}
