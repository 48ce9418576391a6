"""Raw documents to shards, shards to packed batches. No model code; only batches.py needs grain."""
