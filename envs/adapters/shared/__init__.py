"""What several adapters need: the user's Python by name, rows with columns of their own, threads, reward functions."""
