# Sourced by the other scripts, with the number of arguments that they need, and these: one virtual
# environment (.venv unless one is active), and in it only what is missing is installed, with EXTRAS
# of pyproject.toml (default plots). With DRY_RUN it does no more than name functions.
set -euo pipefail
[ $# -gt "$1" ] || { sed -n '/^#!/d; /^#/!q; s/^# //p' "$0" >&2; exit 2; }   # how it is called
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS=${EXTRAS:-plots}

# What a script starts in the background it waits for with `finish`, which returns the last status
# that is not 0. A signal goes on to it as SIGTERM, and ends the script when it has saved and ended.
SIGNAL=0
pass_on() {
    local jobs
    jobs=$(jobs -p)
    [ -n "$jobs" ] || exit "$1"
    SIGNAL=$1
    kill $jobs 2>/dev/null || true
}
finish() {
    local job status=0
    for job in $(jobs -p); do
        # a signal ends `wait` before the job
        while wait "$job" || status=$?; kill -0 "$job" 2>/dev/null; do :; done
    done
    [ "$SIGNAL" = 0 ] || exit "$SIGNAL"
    return $status
}
[ "${DRY_RUN:-0}" = 0 ] || return 0

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        python3 -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed"'
        python3 -m venv .venv
    fi
    . .venv/bin/activate
fi

# unless this version is installed with all that it requires
if ! python - "$EXTRAS" 2>/dev/null <<'PY'; then
import sys
from importlib.metadata import requires, version
from packaging.requirements import Requirement

assert f'"{version("dassl-blackbox")}"' in open("dassl_blackbox/__init__.py").read()
for needed in map(Requirement, requires("dassl-blackbox")):
    of, extras = needed.marker, sys.argv[1].split(",")
    if of is None or any(of.evaluate({"extra": extra}) for extra in extras):
        assert needed.specifier.contains(version(needed.name), prereleases=True)
PY
    echo "Installing what is missing into $(python -c 'import sys; print(sys.prefix)')" \
        "(once; PyTorch is large)"
    python -m pip install -q -e ".[$EXTRAS]"
fi

for NAME in HUP INT QUIT USR1 USR2 TERM XCPU; do
    trap "pass_on $((128 + $(kill -l $NAME)))" $NAME
done
