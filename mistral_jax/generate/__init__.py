"""Generation: the key/value cache, the sampler, the engine."""
