"""Attention implementations of one signature; `reference` is the oracle of all others."""
