"""The trainers, one recipe a file; importing them registers them with Dassl."""

from . import bptvlm, cbbt, craft, whitebox, zeroshot, zip  # noqa: F401
