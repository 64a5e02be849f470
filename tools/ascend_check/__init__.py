"""Compiling for Ascend without Ascend: parts of tools/ascend_compile_check.py."""
