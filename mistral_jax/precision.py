"""Number formats: names in the configuration to dtypes, and where float32 is not negotiable.

Trainable parameters, norms, softmax, losses and sums are float32 whatever the compute dtype.
"""

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "float32": jnp.dtype(jnp.float32),
    "bfloat16": jnp.dtype(jnp.bfloat16),
    "float16": jnp.dtype(jnp.float16),
}


def dtype_of(name: str) -> np.dtype:
    """Return the dtype of a name in the configuration.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in DTYPES:
        raise ValueError(f"unknown number format {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[name]
