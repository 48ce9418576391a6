"""report.html: one file that shows what a run did. Reads the run's JSON; imports no jax."""
