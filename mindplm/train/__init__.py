"""Training: the compiled step, the loop and its records."""
