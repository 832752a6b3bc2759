"""Importing this package registers its data sets with Dassl."""

from importlib.util import find_spec

if find_spec("dassl"):  # scripts/pretrain_tiny.py draws with `render` and `digits` alone, and needs no Dassl
    from .base import DatasetError, FewShotDataset, Row, register
    from .table import ROWS

    for _row in ROWS:
        register(_row)
