"""Rows of benchmarks/gpu.py: each module is a process of its own and prints its lines of JSON."""
