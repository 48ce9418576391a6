"""Stages: which parameters train, and the loss."""
