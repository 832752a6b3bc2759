# Sourced by the other scripts: one virtual environment (.venv unless one is active), and in it only
# what is missing is installed. EXTRAS: the optional dependencies of pyproject.toml that are wanted,
# by default plots.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS=${EXTRAS:-plots}

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
