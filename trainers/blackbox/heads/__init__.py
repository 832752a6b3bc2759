"""Heads that several methods share, or that are too long for one file with theirs."""
