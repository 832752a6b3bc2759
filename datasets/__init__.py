"""Importing this package registers its data sets with Dassl."""

from .base import register
from .table import ROWS

for _row in ROWS:
    register(_row)
