"""`python -m dassl_blackbox` is the command `dassl-blackbox`."""

from .commands import main

raise SystemExit(main())
