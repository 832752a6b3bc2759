"""The parts of `tools/pretrain_tiny.py`."""
