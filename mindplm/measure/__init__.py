"""Measuring models on tasks: metrics with confidence intervals, task runs, predictions, tables."""
