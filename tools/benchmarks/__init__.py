"""What tools/bench.py measures, one module for each verb."""
