"""What the recipes are made of: oracle, prompt spaces, optimisers, engine, defaults."""
