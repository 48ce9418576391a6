"""Models: one decoder with slots."""
