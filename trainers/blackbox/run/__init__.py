"""What a run leaves on disk, and how it goes on: files, checkpoints, settings, random states,
errors.
"""
