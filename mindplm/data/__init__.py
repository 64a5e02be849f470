"""From text on disk to batches of fixed shape."""
