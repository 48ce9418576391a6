"""Layers: pure functions of arrays and of their own configuration node."""
