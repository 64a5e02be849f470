"""CPM-Bee: one encoder for understanding and generation."""
