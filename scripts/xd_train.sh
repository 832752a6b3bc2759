#!/bin/bash
# Cross-data-set transfer and domain generalisation: trains on the source (SOURCE, default imagenet).  bash scripts/xd_train.sh ZIP vit_b16 16 [KEY VALUE ...]
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
exec bash "$(dirname "$0")/main.sh" "$1" "${SOURCE:-imagenet}" "${@:2}"
