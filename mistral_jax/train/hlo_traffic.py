"""What one device does in one run of a compiled XLA module: collectives, main-memory traffic.

A loop's body counts as often as the loop turns; nested loops multiply. The trip count is XLA's own
note where it stands in the text, else it follows from the loop's counter: start, step and limit.
A loop that cannot be read counts once and is named. Time is not known here.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from collections.abc import Mapping

import numpy as np

from mistral_jax.train import hlo

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# These move nothing, or what they move is counted inside of them.
FREE = frozenset({
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "async-start", "async-update",
    "async-done", "opt-barrier", "domain", "iota",
})  # fmt: skip
SLICES = frozenset({"dynamic-slice", "slice", "gather"})
VIEWS = frozenset({"bitcast", "copy", "convert", "tuple", "get-tuple-element"})

_TRIPS = re.compile(r'known_trip_count"?\s*[:=]\s*\{\s*"?n"?\s*[:=]\s*"?(\d+)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_MESH_SIZE = re.compile(r"'(\w+)'=(\d+)")
_MESH_PART = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LIST_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of a module.

    Attributes:
        kind: one of KINDS.
        buffer_bytes: the larger of what one device gives and gets in one run of it.
        sent_bytes: what one device sends in one run, by the ring forms: a gather, a scatter and
            an all-to-all (g - 1) / g of the buffer, a reduction twice that, a permute all of it.
            Of a ragged all-to-all, the whole buffer: the most that it can send.
        group: devices that take part together.
        axes: mesh axes that the group spans; empty where no mesh was given.
        times: how often it runs in one run of the module.
        source: the operation in the program that it came from.
    """

    kind: str
    buffer_bytes: int
    sent_bytes: float
    group: int
    axes: tuple[str, ...]
    times: int
    source: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a module does in one run, on one device.

    Attributes:
        collectives: every collective, in program order.
        hbm_bytes: estimate of what is read and written in main memory: operands and results of
            every fusion, a buffer that is only sliced counted by the slice.
        kernels: custom calls by target, and how often they run.
        loops: trip counts of the loops, in program order.
        unknown_loops: loops whose trip count could not be read.
    """

    collectives: tuple[Collective, ...]
    hbm_bytes: int
    kernels: dict[str, int]
    loops: tuple[int, ...]
    unknown_loops: tuple[str, ...]


def read(
    text: str,
    mesh: dict[str, int] | None = None,
    *,
    expected_trips: Mapping[str, float] | None = None,
) -> Traffic:
    """Read a compiled module.

    Args:
        text: from `compiled.as_text()`.
        mesh: sizes of the mesh axes in their order, for the collectives' axes.
        expected_trips: mean trip counts of loops that turn as often as their data say, by the
            named scope that they stand in.

    Raises:
        ValueError: the text is no module.
    """
    computations, entry = hlo.parse(text)
    walk = _Walk(computations, mesh or {}, expected_trips or {})
    walk.visit(computations[entry], 1.0)
    return Traffic(
        tuple(walk.collectives), round(walk.hbm_bytes), walk.kernels,
        tuple(walk.loops), tuple(walk.unknown_loops),
    )  # fmt: skip


class _Walk:
    """One pass over the calls from the entry, with how often each computation runs."""

    def __init__(
        self,
        computations: dict[str, hlo.Computation],
        mesh: dict[str, int],
        expected_trips: Mapping[str, float],
    ) -> None:
        self.computations, self.mesh, self.expected_trips = computations, mesh, expected_trips
        self.collectives: list[Collective] = []
        self.hbm_bytes = 0.0
        self.kernels: dict[str, int] = {}
        self.loops: list[int] = []
        self.unknown_loops: list[str] = []

    def visit(self, computation: hlo.Computation, times: float) -> None:
        # A collective that runs beside other work stands in several fusions, under one channel.
        channels: set[str] = set()
        for instruction in computation.instructions.values():
            inner = list(self._inner(instruction))
            self.hbm_bytes += times * _traffic(instruction, computation, self.computations)
            self._count(instruction, computation, times, channels)
            if instruction.opcode == "while":
                trips = self._trip_count(instruction, computation)
                if trips is not None:
                    self.loops.append(trips)
                elif (trips := self._expected_trips(instruction)) is None:
                    self.unknown_loops.append(instruction.name)
                body = self.computations[instruction.callee("body")]
                self.visit(body, times * (1 if trips is None else trips))
            elif instruction.opcode == "fusion":
                for called in inner:
                    for each in called.instructions.values():
                        self._count(each, called, times, channels)
            elif instruction.opcode == "conditional":
                self._visit_costliest(inner, times)
            else:
                for called in inner:
                    self.visit(called, times)

    def _visit_costliest(self, branches: list[hlo.Computation], times: float) -> None:
        """Visit the branch that moves most; which one runs is not known, but only one does."""

        def bytes_of(branch: hlo.Computation) -> float:
            trial = _Walk(self.computations, self.mesh, self.expected_trips)
            trial.visit(branch, 1.0)
            sent = sum(each.sent_bytes * each.times for each in trial.collectives)
            return trial.hbm_bytes + sent

        if branches:
            self.visit(max(branches, key=bytes_of), times)

    def _inner(self, instruction: hlo.Instruction) -> Iterator[hlo.Computation]:
        """Yield what it runs once; a reduction's function of two elements is not counted."""
        is_call = instruction.opcode == "call"
        for role, name in instruction.callees():
            is_run = role in ("calls", "branch") or (role == "to_apply" and is_call)
            if is_run and name in self.computations:
                yield self.computations[name]

    def _count(
        self,
        instruction: hlo.Instruction,
        computation: hlo.Computation,
        times: float,
        channels: set[str],
    ) -> None:
        """Add a collective or a kernel to the lists."""
        if instruction.opcode == "custom-call":
            target = _TARGET.search(instruction.attributes)
            name = target[1] if target else "unknown"
            self.kernels[name] = self.kernels.get(name, 0) + round(times)
        if instruction.opcode.removesuffix("-start") not in KINDS:
            return
        channel = _CHANNEL.search(instruction.attributes)
        if channel is not None and channel[1] in channels:
            return
        if channel is not None:
            channels.add(channel[1])
        self.collectives.append(_collective(instruction, computation, round(times), self.mesh))

    def _expected_trips(self, loop: hlo.Instruction) -> float | None:
        found = _OP_NAME.search(loop.attributes)
        scopes = found[1].split("/") if found else []
        known = (self.expected_trips[each] for each in scopes if each in self.expected_trips)
        return next(known, None)

    def _trip_count(self, loop: hlo.Instruction, computation: hlo.Computation) -> int | None:
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        compared = _comparison(self.computations[loop.callee("condition")], self.computations)
        if compared is None:
            return None
        index, limit = compared
        first = computation.instructions[loop.operands[0]]
        start = computation.integer(first.operands[index]) if first.opcode == "tuple" else None
        step = _step(self.computations[loop.callee("body")], index)
        if not step:
            return None
        # Where the counter's start is hidden behind another operation: all of ours start at 0.
        return max(0, -(-(limit - (start or 0)) // step))


def _comparison(
    condition: hlo.Computation, computations: dict[str, hlo.Computation]
) -> tuple[int, int] | None:
    """Return which member of the loop's state is compared, and the limit."""
    root, compare = condition.root, condition.root
    operands = compare.operands
    if root.opcode == "fusion":  # the comparison alone, wrapped
        inner = computations[root.callee("calls")]
        compare = inner.root
        numbers = {each.name: number for number, each in inner.parameters.items()}
        if any(name not in numbers for name in compare.operands):
            return None
        operands = [root.operands[numbers[name]] for name in compare.operands]
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, limit = condition.instructions.get(operands[0]), condition.integer(operands[1])
    index = _INDEX.search(counter.attributes) if counter is not None else None
    return None if index is None or limit is None else (int(index[1]), limit)


def _step(body: hlo.Computation, index: int) -> int | None:
    """Return what a loop's body adds to its counter."""
    if body.root.opcode != "tuple":
        return None
    found = body.instructions.get(body.root.operands[index])
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = body.instructions.get(found.operands[0])
    if found is None or found.opcode != "add":
        return None
    steps = [value for name in found.operands if (value := body.integer(name)) is not None]
    return steps[0] if len(steps) == 1 else None


def _collective(
    instruction: hlo.Instruction,
    computation: hlo.Computation,
    times: int,
    mesh: dict[str, int],
) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    given = sum(
        hlo.size_bytes(computation.instructions[name].result)
        for name in instruction.operands
        if name in computation.instructions
    )
    members = hlo.elements(instruction.result)
    is_paired = instruction.opcode in ("all-gather-start", "collective-permute-start")
    # A started gather or permute gives its operands back beside the result.
    got = hlo.size_bytes(members[1] if is_paired and len(members) > 1 else instruction.result)
    if kind == "ragged-all-to-all":  # its operands are data, the buffer to fill, and offsets
        given = got
    # libtpu writes a scattered reduction as a reduction and a slice in one fusion.
    if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
        kind = "reduce-scatter"
    size, axes = _group(instruction.attributes, mesh)
    share = (size - 1) / size
    whole = ("collective-permute", "collective-broadcast", "ragged-all-to-all")
    factor = 1.0 if kind in whole else share * (2 if kind == "all-reduce" else 1)
    found = _OP_NAME.search(instruction.attributes)
    buffer = max(given, got)
    source = found[1] if found else ""
    return Collective(kind, buffer, buffer * factor, size, axes, times, source)


def _group(attributes: str, mesh: dict[str, int]) -> tuple[int, tuple[str, ...]]:
    """Return how many devices take part together, and the mesh axes that they span."""
    if pairs := _PAIRS.search(attributes):
        ends = [tuple(map(int, pair.split(","))) for pair in re.findall(r"[\d,]+\d", pairs[1])]
        members = list(next((pair for pair in ends if pair[0] != pair[1]), (0,)))
        return len(members), _spanned(members, mesh)
    members = _first_group(attributes) or list(range(math.prod(mesh.values())))
    return len(members), _spanned(members, mesh)


def _first_group(attributes: str) -> list[int]:
    """Return the devices of the first group."""
    if found := _MESH_GROUPS.search(attributes):
        sizes = {name: int(size) for name, size in _MESH_SIZE.findall(found[1])}
        parts = {
            name: (int(before or 1), int(size or sizes[name]))
            for name, before, size in _MESH_PART.findall(found[2])
        }
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        for axis, (name, whole) in enumerate(sizes.items()):
            before, size = parts.get(name, (1, 1))
            chosen = np.arange(size) * (whole // (before * size))  # others of the axis at 0
            ids = np.take(ids, chosen, axis=axis)
        return [int(member) for member in ids.flat]
    if found := _IOTA_GROUPS.search(attributes):
        ids = np.arange(int(found[1]) * int(found[2]))
        ids = ids.reshape([int(size) for size in found[3].split(",")])
        if found[4]:
            ids = ids.transpose([int(axis) for axis in found[4].split(",")])
        return [int(member) for member in ids.reshape(-1)[: int(found[2])]]
    if found := _LIST_GROUPS.search(attributes):
        return [int(member) for member in found[1].split(",") if member]
    return []


def _spanned(members: list[int], mesh: dict[str, int]) -> tuple[str, ...]:
    """Return the mesh axes along which some of these devices differ."""
    if not mesh or max(members, default=0) >= math.prod(mesh.values()):
        return ()
    places = np.array(np.unravel_index(np.array(members), tuple(mesh.values())))
    return tuple(name for name, row in zip(mesh, places, strict=True) if len(set(row.tolist())) > 1)


def _traffic(
    instruction: hlo.Instruction,
    computation: hlo.Computation,
    computations: dict[str, hlo.Computation],
) -> int:
    """Return the bytes of main memory that one run of an instruction reads and writes."""
    opcode = instruction.opcode
    is_buffer = 'custom_call_target="AllocateBuffer"' in instruction.attributes
    # `call-update` stands between the start and the end of work on a SparseCore.
    if opcode in FREE or opcode in ("call-update", "copy-update") or is_buffer:
        return 0
    result = hlo.size_bytes(instruction.result, only_hbm=True)
    if opcode.endswith("-done"):
        return result
    operands = [
        hlo.size_bytes(computation.instructions[name].result, only_hbm=True)
        if name in computation.instructions
        else 0
        for name in instruction.operands
    ]
    if opcode == "fusion":
        return _fusion_traffic(instruction, operands, computations)
    if opcode.endswith("-start"):
        return sum(operands)
    if opcode in SLICES:
        return 2 * result
    if opcode == "dynamic-update-slice":
        return 2 * operands[1]
    return sum(operands) + result


def _fusion_traffic(
    fusion: hlo.Instruction, operands: list[int], computations: dict[str, hlo.Computation]
) -> int:
    """Return a fusion's traffic; what it only slices, updates in place or passes on is not read."""
    inner = computations[fusion.callee("calls")]
    total = 0
    for number, size in enumerate(operands):
        parameter = inner.parameters.get(number)
        if parameter is not None and size:
            total += min(size, _read_bytes(parameter.name, inner, size, computations))
    members = hlo.elements(fusion.result)
    roots = inner.root.operands if inner.root.opcode == "tuple" else [inner.root.name]
    for member, name in zip(members, roots):
        size = hlo.size_bytes(member, only_hbm=True)
        total += min(size, _written_bytes(inner, name, size, computations))
    return total


def _read_bytes(
    name: str, inner: hlo.Computation, size: int, computations: dict[str, hlo.Computation]
) -> int:
    """Return how much of an operand the instructions of a fusion read."""
    total = 0
    for user in inner.users.get(name, []):
        if user.opcode in SLICES and user.operands[0] == name:
            total += hlo.size_bytes(user.result)
        elif user.opcode == "bitcast":
            total += _read_bytes(user.name, inner, size, computations)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.opcode == "fusion":  # inside the fusion, another one
            called = computations[user.callee("calls")]
            for number, operand in enumerate(user.operands):
                if operand == name:
                    parameter = called.parameters[number].name
                    total += _read_bytes(parameter, called, size, computations)
        elif user.opcode in ("tuple", "custom-call") or user.opcode in KINDS:
            continue  # passed on; a collective's own bytes count where it starts
        else:
            return size
    return total


def _written_bytes(
    inner: hlo.Computation, name: str, size: int, computations: dict[str, hlo.Computation]
) -> int:
    """Return how much of a result a fusion writes."""
    found = inner.instructions.get(name)
    while found is not None and found.opcode == "bitcast":
        found = inner.instructions.get(found.operands[0])
    if found is None or found.opcode == "parameter":
        return 0
    if found.opcode == "dynamic-update-slice":
        return hlo.size_bytes(inner.instructions[found.operands[1]].result)
    if found.opcode == "fusion":
        called = computations[found.callee("calls")]
        return (
            size
            if called.root.opcode == "tuple"
            else _written_bytes(called, called.root.name, size, computations)
        )
    return size
