"""Tokenizers and vocabulary building; no MindSpore."""
