"""Generation: prompts, search and the compiled engine."""
