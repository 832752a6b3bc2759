#!/bin/bash
# One setting of JOLT changed at a time.  bash scripts/jolt/ablations.sh digits tiny 16 [KEY VALUE ...]      then: python -m dassl_blackbox.results output/<dataset>
source "$(dirname "$0")/../setup.sh" 3 "$@"
ARGUMENTS=("$@") PREFIX="${TAG:-}" J=TRAINER.JOLT
one() {     # TAG, then the options that it stands for
    TAG="${PREFIX:+${PREFIX}_}$1" bash scripts/main.sh JOLT "${ARGUMENTS[@]:0:3}" "${@:2}" "${ARGUMENTS[@]:3}" & finish
}
one default
one prompt "$J.HEAD" False
one folds1 "$J.HEAD_FOLDS" 1                # one MLP, trusted whatever it does to new images
for M in 16 32 128; do one "directions$M" "$J.DIRECTIONS" "$M"; done
for K in 3 5; do one "top$K" ORACLE.TOP_K "$K"; done
for PREC in fp16 bf16; do one "$PREC" ORACLE.PREC "$PREC"; done
one one_damping "$J.DAMPINGS" "(0.3,)"      # falls when it wins, rises when it loses: one candidate in place of three
one damping01 "$J.DAMPING" 0.1
one no_decay "$J.DECAY" 0.0
for SPACE in lowrank projection; do one "$SPACE" "$J.SPACE" "$SPACE"; done
one random "$J.CTX_INIT" ""
for B in 32 64; do one "batch$B" DATALOADER.TRAIN_X.BATCH_SIZE "$B"; done
for QUERIES in 500 1000 2000; do one "budget$QUERIES" ORACLE.MAX_QUERIES "$QUERIES"; done
