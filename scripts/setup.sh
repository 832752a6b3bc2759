# Sourced by the other scripts: one virtual environment (.venv unless one is active), and in it only
# what is missing is installed. EXTRAS: the optional dependencies of pyproject.toml that are wanted,
# by default plots. With DRY_RUN it does no more than name functions.
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

fail() { echo "error: $1" >&2; exit 1; }

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
            fail "Python 3.10 or newer is needed, python3 is $(python3 -V 2>&1)"
        python3 -m venv .venv ||
            fail "python3 -m venv failed; on Debian, install the package python3-venv"
    fi
    . .venv/bin/activate
fi

# whether this version is installed with all that it requires
installed() {
    python - "$EXTRAS" <<'PY'
import importlib.metadata as m, re, sys
from pathlib import Path

wanted = {None, *sys.argv[1].split(",")}
try:
    if f'"{m.version("dassl-blackbox")}"' not in Path("dassl_blackbox/__init__.py").read_text():
        sys.exit(1)
    for line in m.requires("dassl-blackbox"):
        extra = re.search(r"extra == .([\w-]+)", line)
        if (extra and extra[1]) in wanted:
            m.version(re.match(r"[\w.-]+", line).group())
except m.PackageNotFoundError:
    sys.exit(1)
PY
}

if ! installed; then
    echo "Installing what is missing into $(python -c 'import sys; print(sys.prefix)')" \
        "(once; PyTorch is large)"
    python -m pip install -q -e ".[$EXTRAS]" ||
        fail "pip could not install the requirements of pyproject.toml"
fi

for NAME in HUP INT QUIT USR1 USR2 TERM XCPU; do
    trap "pass_on $((128 + $(kill -l $NAME)))" $NAME
done
