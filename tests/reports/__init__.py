"""What people met, through the real command line: one module a topic."""
