#!/bin/bash
# Sets up, then runs the tests; arguments go to pytest. DATA names the folder of real data sets, where there are any.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec python -m pytest -q -n auto --maxprocesses 8 --dist loadfile tests "$@"
