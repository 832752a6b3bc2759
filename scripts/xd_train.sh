#!/bin/bash
# Cross-data-set transfer and domain generalisation: trains on the source (SOURCE, default imagenet).  bash scripts/xd_train.sh ZIP vit_b16 16 [KEY VALUE ...]
source "$(dirname "$0")/setup.sh" 3 "$@"
exec bash scripts/main.sh "$1" "${SOURCE:-imagenet}" "${@:2}"
