"""`python -m dassl_blackbox` is the command `dassl-blackbox`."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
