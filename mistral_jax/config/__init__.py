"""The experiment as data: frozen, strict configuration trees. Never imports jax."""
