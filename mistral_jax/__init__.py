"""mistral_jax: train, adapt, export and run the Mistral family in JAX and Flax.

`import mistral_jax as mj` starts nothing; `mj.load`, `mj.adapt`, `mj.train`, `mj.generate` and
`mj.save` import what they need when they are first used.
"""

import importlib
import types
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from mistral_jax.api import adapt as adapt
    from mistral_jax.api import blend_adapters as blend_adapters
    from mistral_jax.api import generate as generate
    from mistral_jax.api import load as load
    from mistral_jax.api import save as save
    from mistral_jax.api import train as train
    from mistral_jax.api import use_adapter as use_adapter

__all__ = ["adapt", "blend_adapters", "generate", "load", "save", "train", "use_adapter"]


class CallableRoom(types.ModuleType):
    """A package whose name is also a verb of the API: calling it calls the verb.

    `mj.train` is the function until something imports the package `mistral_jax.train`, which
    Python then puts in its place.
    """

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the API's function of this name."""
        verb = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module("mistral_jax.api"), verb)(*arguments, **named)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("mistral_jax.api"), name)
    raise AttributeError(f"module 'mistral_jax' has no attribute {name!r}")
