"""Benchmarks: one script a row, correctness before timing, a peer in the same run, JSON out."""
