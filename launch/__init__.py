"""Machines, and how a run starts on them. Never imports jax."""
