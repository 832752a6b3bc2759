"""The part of Dassl 0.6.3's interface that CoOp-style trainers and data sets use.

It serves only where the real Dassl (https://github.com/KaiyangZhou/Dassl.pytorch) is not
importable: same names, arguments, config defaults, log lines, files and random draws.
`tests/test_dassl.py` runs against either. What is left out (domain adaptation and generalisation,
semi-supervised trainers, `dassl.modeling`, rare samplers and transforms) needs the real one.
"""

__version__ = "0.6.3"
__compat__ = True  # the real Dassl has no such attribute
