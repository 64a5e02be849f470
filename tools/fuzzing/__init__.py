"""What tools/fuzz.py feeds: one module for each kind of input."""
