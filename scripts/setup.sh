# Sourced by the other scripts: one virtual environment (.venv unless one is active), and in it only what is missing is installed.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed, python3 is $(python3 -V 2>&1)" >&2; exit 1; }
        python3 -m venv .venv || { echo "error: python3 -m venv failed; on Debian, install the package python3-venv" >&2; exit 1; }
    fi
    . .venv/bin/activate
fi

python - <<'PY' || { echo "Installing what is missing into $(python -c 'import sys; print(sys.prefix)') (once; PyTorch is large)"; python -m pip install -q -e ".[test]" || { echo "error: pip could not install the requirements of setup.py" >&2; exit 1; }; }
import importlib.metadata as m, re, sys
try:
    needed = m.requires("dassl-blackbox")
    for line in needed:
        m.version(re.match(r"[\w.-]+", line).group())
except m.PackageNotFoundError:
    sys.exit(1)
PY
