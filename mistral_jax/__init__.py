"""mistral_jax: train, adapt, export and run the Mistral family in JAX and Flax."""
