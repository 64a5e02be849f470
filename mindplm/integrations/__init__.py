"""Ways to run the library inside other frameworks; nothing else of it needs them."""
