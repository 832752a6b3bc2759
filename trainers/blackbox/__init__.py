"""What the methods are made of: oracle, prompt spaces, optimisers, the order of a run."""
