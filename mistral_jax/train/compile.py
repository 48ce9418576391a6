"""Compiles a training step for devices that need not be here, and reads what the compiler made.

TPU topologies come from libtpu, which compiles on a machine without a TPU; nothing is executed.
Bytes are the compiler's own for one device. Its FLOP count is not used: it counts a scanned body
once and a Pallas kernel as nothing (launch/arithmetic.py counts instead).
"""

import dataclasses
import importlib.util
import re
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.extend import core
from jax.sharding import Mesh

from mistral_jax import protocols
from mistral_jax import sharding
from mistral_jax.formats import names
from mistral_jax.models import definition as definition_lib
from mistral_jax.train import held_out
from mistral_jax.train import hlo_traffic
from mistral_jax.train import state as state_lib

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_USED = re.compile(r"(?:Used|temporaries \(|required for HLO \w+ \()\s*([\d.]+)([KMGT]?)")


class CompilerRefused(ValueError):
    """The compiler found no room for the step in the device's memory.

    Attributes:
        wanted_bytes: what it says that the temporaries (or all) need; None where it does not say.
    """

    exit_code = 1

    def __init__(self, message: str, wanted_bytes: int | None) -> None:
        super().__init__(message)
        self.wanted_bytes = wanted_bytes


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while the step runs, as the compiler states them.

    Attributes:
        arguments: state, frozen parameters and batch.
        outputs: what the step returns.
        aliased: outputs that lie in the arguments' memory (the donated state).
        temporaries: everything else that lives during the step, at its peak.
        code: the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """The most that is held at one time."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
        memory: bytes on one device.
        traffic: collectives and main-memory traffic of one step.
        num_equations: of the traced step, inner ones included; does not grow with depth.
        trace_s, compile_s: seconds for tracing and lowering, and for the compiler.
        text: the compiled module.
    """

    memory: Memory
    traffic: hlo_traffic.Traffic
    num_equations: int
    trace_s: float
    compile_s: float
    text: str


def has_libtpu() -> bool:
    """Tell whether the compiler for TPUs is installed."""
    return importlib.util.find_spec("libtpu") is not None


def tpu_devices(topology: str) -> list[Any]:
    """Return the devices of a TPU slice such as `v5p:8x8x16`, for compiling only.

    Raises:
        ValueError: libtpu does not know it.
    """
    # One chip is a part of a host: libtpu must be told so.
    is_chip = set(re.split(r"[:x]", topology)[1:]) == {"1"}
    options = {"chips_per_host_bounds": (1, 1, 1)} if is_chip else {}
    try:
        found = topologies.get_topology_desc(topology, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"libtpu does not know the topology {topology}: {first}") from error
    return list(found.devices)


def abstract_batch(num_micro: int, rows: int, num_tokens: int, mesh: Mesh) -> dict[str, Any]:
    """Return the shapes of a step's batch: [micro batches, rows of all devices, tokens]."""
    whole, real = np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32)
    example = protocols.Batch(whole, whole, real, whole, whole, whole)
    layout = sharding.micro_batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((num_micro, rows, num_tokens), array.dtype, sharding=layout)
        for name, array in held_out.model_arrays(example).items()
    }


def abstract_frozen(
    definition: definition_lib.Definition, mesh: Mesh, dtype: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the parameters that do not train.

    Quantised kernels' and those that are always float32 keep their dtypes, all others have the
    given one.
    """
    shardings = definition.shardings(mesh)
    trained = set(definition.trainable_paths())
    return {
        path: jax.ShapeDtypeStruct(
            shape.shape,
            shape.dtype if "/kernel/" in path or path in names.FLOAT32_PATHS else dtype,
            sharding=shardings[path],
        )
        for path, shape in definition.shapes.items()
        if path not in trained
    }


def device_bytes(tree: Any) -> int:
    """Return the bytes of one device's shards of a tree of shapes with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def compile_step(
    step: Callable[..., Any],
    state: state_lib.TrainState,
    frozen: dict[str, Any],
    batch: dict[str, Any],
    mesh: Mesh,
    *,
    expected_trips: Mapping[str, float] | None = None,
) -> Compiled:
    """Trace, lower and compile the jitted step from train/step.py for the mesh's devices.

    Args:
        step: as train/step.py makes it.
        state, frozen, batch: shapes with shardings.
        mesh: of devices that need not exist.
        expected_trips: as hlo_traffic.read takes them.

    Raises:
        CompilerRefused: the step does not fit; the message is the compiler's.
    """
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        traced = step.trace(state, frozen, batch)  # pyright: ignore[reportFunctionMemberAccess]
        lowered = traced.lower()
        middle = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise _refused(str(error)) from error
    done = time.perf_counter()
    found = compiled.memory_analysis()
    text = compiled.as_text()
    sizes = dict(mesh.shape.items())
    return Compiled(
        memory=Memory(
            arguments=found.argument_size_in_bytes,
            outputs=found.output_size_in_bytes,
            aliased=found.alias_size_in_bytes,
            temporaries=found.temp_size_in_bytes,
            code=found.generated_code_size_in_bytes,
        ),
        traffic=hlo_traffic.read(text, sizes, expected_trips=expected_trips),
        num_equations=count_equations(traced.jaxpr.jaxpr),
        trace_s=middle - started,
        compile_s=done - middle,
        text=text,
    )


def count_equations(jaxpr: Any) -> int:
    """Return the equations of a traced function, those of inner functions included."""
    inner = sum(count_equations(each) for each in core.subjaxprs(jaxpr))
    return len(jaxpr.eqns) + inner


def _refused(message: str) -> CompilerRefused:
    found = _USED.search(message)
    wanted = None if found is None else int(float(found[1]) * UNITS[found[2]])
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return CompilerRefused(lines[0], wanted)
