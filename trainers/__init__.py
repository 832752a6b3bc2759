"""The trainers, one recipe a file; importing them registers them with Dassl."""

from . import bptvlm, cbbt, craft, jolt, whitebox, zeroshot, zip  # noqa: F401
