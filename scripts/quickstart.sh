#!/bin/bash
# SONAR, its head alone, zero-shot, ZIP and JOLT on Digits (16 shots) with the embedded tiny CLIP: about two minutes on two cores.
# LONG=1 SEEDS="1 2 3 4 5 6" bash scripts/quickstart.sh gives the table of docs/RESULTS.md: 5,000 queries, and white-box prompt tuning.
source "$(dirname "$0")/setup.sh" 0
export DATA=${DATA:-data} OUTPUT=${OUTPUT:-output/quickstart} SEEDS=${SEEDS:-1} LONG=${LONG:-}
# two runs at a time, each on half of the cores: small matrices use one core better than two
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))}
WORDS="a scan of a handwritten"   # those of Digits' template

# begins TRAINER TAG [KEY VALUE ...]; of two that have begun it waits for the end
run() {
    local given=(TAG="$2")
    [ -z "$(jobs -p)" ] || given+=(TQDM_POSITION=1)
    echo "--- $1${2:+, $2}"
    env "${given[@]}" bash scripts/main.sh "$1" digits tiny 16 "${@:3}" |
        sed -En "s/^(\* accuracy|.*skipped)/$1${2:+, $2}: &/p" &
    [ "$(jobs -p | wc -l)" -lt 2 ] || finish
}

run SONAR ""; finish            # first, alone: it writes the images
run SONAR alone TRAINER.SONAR.TEXTS 0 TRAINER.SONAR.VIEWS 0
run ZeroshotOracle template
run ZIP words_500queries TRAINER.ZIP.CTX_INIT "$WORDS" ORACLE.MAX_QUERIES 500
run JOLT 500queries ORACLE.MAX_QUERIES 500
if [ -n "$LONG" ]; then
    run ZIP words TRAINER.ZIP.CTX_INIT "$WORDS"
    run ZIP ""
    run JOLT ""
    run JOLT prompt TRAINER.JOLT.HEAD False
    run WhiteBox words TRAINER.WHITEBOX.CTX_INIT "$WORDS"
    run WhiteBox ""
    run GDA ""
fi

finish
echo
python -m dassl_blackbox.results "$OUTPUT"
cat <<END
The model is a stand-in trained by this project, not CLIP. Logs, checkpoints and
bills: $OUTPUT/digits/<method>/<run>/seed<k>/

Next, from this folder, in a new shell too:
${VIRTUAL_ENV:+    . ${VIRTUAL_ENV#"$PWD"/}/bin/activate
}    python -m dassl_blackbox.plots budgets "$OUTPUT" --out budgets.png
    DATA=/your/pictures bash scripts/main.sh SONAR imagefolder photo 8
Your pictures are train/<class>/*, and perhaps test/<class>/*. All commands:
    python -m dassl_blackbox
END
