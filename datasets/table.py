"""All data sets, one row each."""

from . import digits, letters, shapes
from .base import Row
from .generated import generated

ROWS = (
    generated("Digits", digits.pictures),
    generated("Letters", letters.pictures),
    generated("Shapes", shapes.pictures),
    Row("Caltech101", "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
)
