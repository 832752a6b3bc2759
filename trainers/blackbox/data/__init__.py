"""Dassl's loaders over pictures that are decoded once, with the input that a model expects."""
