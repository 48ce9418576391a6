"""Adapters: small trainable parts on frozen projections."""
