"""Training: state, step, loop, optimizers and stages. There is one loop."""
