"""GPT-1: a causal language model with post-norm blocks, and its fine-tuning tasks."""
