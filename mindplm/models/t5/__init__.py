"""T5: an encoder and a decoder with relative positions; reStructured pretraining builds on it."""
