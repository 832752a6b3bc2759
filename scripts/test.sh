#!/bin/bash
# Sets up, then checks the form of the code (ruff) and its types (mypy), then runs the tests.
# Arguments go to pytest. DATA names the folder of real data sets, where there are any.
EXTRAS=test
source "$(dirname "$0")/setup.sh" 0
ruff check
ruff format --check
mypy
exec python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder tests "$@"
