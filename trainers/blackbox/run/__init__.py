"""What a run leaves on disk, and how it goes on: checkpoints, settings, random states, signals."""
