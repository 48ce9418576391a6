"""mistral_jax: train, adapt, export and run the Mistral family in JAX and Flax.

`import mistral_jax as mj` starts nothing; `mj.load`, `mj.adapt`, `mj.train`, `mj.generate` and
`mj.save` import what they need when they are first used.
"""

import importlib
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from mistral_jax.api import adapt as adapt
    from mistral_jax.api import generate as generate
    from mistral_jax.api import load as load
    from mistral_jax.api import save as save
    from mistral_jax.api import train as train

__all__ = ["adapt", "generate", "load", "save", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("mistral_jax.api"), name)
    raise AttributeError(f"module 'mistral_jax' has no attribute {name!r}")
