"""CPM-1: a Chinese language model of the form of GPT-2."""
