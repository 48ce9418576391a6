"""Near-duplicates: signatures, sorted runs of band keys, the join over them, clusters, fates."""
