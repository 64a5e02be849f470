"""Layers with plain arguments; knows no family."""
