"""Where a stage's function runs: on the loop, or in threads."""
