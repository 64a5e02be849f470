"""BERT as a masked language model."""
