"""Adapters onto a decoder: which projections get one, of which kind, what magnitudes start as.

Low-rank adapters stand beside the projections of attention, of feed-forward layers, of a mixture's
shared experts, and beside every routed expert. The router never has one.
"""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import PRNGKeyArray

from mistral_jax import rng
from mistral_jax.adapters import dora
from mistral_jax.adapters import lora
from mistral_jax.config import model as model_config
from mistral_jax.nn import layers
from mistral_jax.nn import moe

LINEARS = {"lora": lora.LoraLinear, "dora": dora.DoraLinear}


@dataclasses.dataclass(frozen=True)
class _Place:
    """A projection that can have an adapter.

    Attributes:
        room: the module that holds it.
        name: of the projection in there.
        label: what its random key is named by.
    """

    room: nnx.Module
    name: str
    label: str

    @property
    def base(self) -> layers.Linear | moe.ExpertKernel:
        """The projection itself."""
        return getattr(self.room, self.name)

    @property
    def is_routed(self) -> bool:
        """Whether it is a mixture's routed experts'."""
        return isinstance(self.base, moe.ExpertKernel)


def adapt(
    stacks: Sequence[nnx.Module], adapter: model_config.LowRankAdapter, *, key: PRNGKeyArray
) -> None:
    """Put adapters on the projections of a decoder's stacks of layers, in place.

    Raises:
        ValueError: a requested module is not there, so that adapted == requested always holds; or
            it is a mixture's routed experts', and the adapter has a magnitude or dropout.
    """
    every = [list(_places(stack)) for stack in stacks]
    found = {place.name for places in every for place in places}
    missing = set(adapter.target_modules) - found
    if missing:
        raise ValueError(
            f"adapter.target_modules: the model has no {', '.join(sorted(missing))}; it has "
            f"{', '.join(sorted(found))}"
        )
    for index, places in enumerate(every):
        stack_key = key if index == 0 else rng.counter_key(key, index)
        for place in places:
            if place.name not in adapter.target_modules:
                continue
            module_key = rng.purpose_key(stack_key, place.label)
            setattr(place.room, place.name, _adapted(place, adapter, module_key))


def _adapted(
    place: _Place, adapter: model_config.LowRankAdapter, key: PRNGKeyArray
) -> layers.Linear | moe.ExpertKernel:
    base = place.base
    if isinstance(base, layers.Linear):
        return LINEARS[adapter.kind](base, adapter, key=key)
    if adapter.kind != "lora" or adapter.dropout > 0:
        what = "no magnitude" if adapter.kind != "lora" else "no dropout"
        remedy = "adapter.kind=lora" if adapter.kind != "lora" else "adapter.dropout=0"
        raise ValueError(
            f"adapters of a mixture's routed experts have {what}, but adapter.target_modules has "
            f"{place.name}; set {remedy}, or leave gate_proj, up_proj and down_proj out"
        )
    return lora.LoraExpertKernel(base, adapter, key=key)


def _places(stack: Any) -> Iterator[_Place]:
    """Return every projection of a stack that can have an adapter."""
    rooms = [("", stack.attention), ("", stack.mlp)]
    if getattr(stack.mlp, "shared", None) is not None:
        rooms.append(("shared/", stack.mlp.shared))
    for prefix, room in rooms:
        for name, value in vars(room).items():
            if isinstance(value, layers.Linear | moe.ExpertKernel):
                yield _Place(room, name, f"{prefix}{name}")


def starting_magnitudes(
    decoder: nnx.Module, paths: Sequence[str]
) -> dict[str, Float[Array, "L n_out"]]:
    """Return what these magnitudes of a decoder start as: the norms of the kernels it has.

    One layer after the other, so that a quantised base is never there in full.
    """

    def norms(path: str) -> Float[Array, "L n_out"]:
        module: Any = decoder
        for part in path.split("/")[:-1]:
            module = getattr(module, part)
        graph, state = nnx.split(module)
        return jax.lax.map(lambda own: nnx.merge(graph, own).base_norms(), state)

    return {path: norms(path) for path in paths}
