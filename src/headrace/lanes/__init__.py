"""Where a stage's function runs: on the loop, in threads, or in child processes."""
