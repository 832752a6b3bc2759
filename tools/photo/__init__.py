"""The parts of `tools/build_photo.py`."""
