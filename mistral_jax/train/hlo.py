"""Parses the text of a compiled XLA module: computations, instructions, sizes of types.

Sizes are of shapes, without a layout's padding. Text form: as_text() of jax 0.12 on CPU and for
TPU (libtpu 0.0.50); no grammar of it is published.
"""

import dataclasses
import functools
import math
import re

DTYPE_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
    "c64": 64, "c128": 128, "f4e2m1fn": 4, "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3": 8,
    "f8e4m3b11fnuz": 8, "f8e8m0fnu": 8,
}  # fmt: skip

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*)? \{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_LEAF = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLEE = re.compile(r"\b(calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: its own name, without the percent sign.
        opcode: such as `all-gather-start`.
        result: the result's type as text.
        arguments: what stands in the opcode's brackets.
        attributes: everything after them.
        is_root: whether the computation returns it.
    """

    name: str
    opcode: str
    result: str
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        """The names of the operands."""
        return _NAME.findall(self.arguments)

    def callees(self) -> list[tuple[str, str]]:
        """Return what it calls as (role, computation's name); branches have the role `branch`."""
        found = [(role, name) for role, name in _CALLEE.findall(self.attributes)]
        for group in _BRANCHES.findall(self.attributes):
            found += [("branch", name) for name in _NAME.findall(group)]
        return found

    def callee(self, role: str) -> str:
        """Return the computation of one role, such as a loop's `body`."""
        return dict(self.callees())[role]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value it returns."""
        found = [each for each in self.instructions.values() if each.is_root]
        return found[0] if found else list(self.instructions.values())[-1]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that take each one's result, by name."""
        found: dict[str, list[Instruction]] = {}
        for each in self.instructions.values():
            for name in dict.fromkeys(each.operands):
                found.setdefault(name, []).append(each)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Its parameters by number."""
        return {
            int(each.arguments): each
            for each in self.instructions.values()
            if each.opcode == "parameter"
        }

    def integer(self, name: str) -> int | None:
        """Return the value of an integer constant, or None if the name is something else."""
        found = self.instructions.get(name)
        if found is not None and found.opcode in ("copy", "bitcast", "convert"):
            return self.integer(found.operands[0])
        if found is None or found.opcode != "constant":
            return None
        return int(found.arguments) if re.fullmatch(r"-?\d+", found.arguments) else None


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Return a module's computations by name, and the entry's name.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = None
    current: Computation | None = None
    for line in text.splitlines():
        if line[:1] not in (" ", "}", ""):
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                current = Computation(header[2], {})
                computations[current.name] = current
                entry = current.name if header[1] else entry
        elif current is not None and (instruction := _parse_instruction(line)):
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("not a compiled XLA module: the text has no ENTRY computation")
    return computations, entry


def _parse_instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    start = match.end()
    stop = _closing(line, start) if line[start] == "(" else line.find(" ", start)
    opcode = _OPCODE.match(line, stop)
    if opcode is None:
        return None
    close = _closing(line, opcode.end() - 1)
    return Instruction(
        match[2],
        opcode[1],
        line[start:stop],
        line[opcode.end() : close - 1],
        line[close:],
        bool(match[1]),
    )


def _closing(text: str, start: int) -> int:
    """Return the index after the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] in "([{":
            depth += 1
        elif text[index] in ")]}":
            depth -= 1
            if depth == 0:
                return index + 1
    return len(text)


def size_bytes(shape: str, *, only_hbm: bool = False) -> int:
    """Return the bytes of a type's arrays; with `only_hbm`, of those outside on-chip memory."""
    total = 0
    for dtype, dimensions, layout in _LEAF.findall(shape):
        space = _SPACE.search(layout)
        if dtype not in DTYPE_BITS or (only_hbm and space and space[1] != "0"):
            continue
        sizes = (int(size.lstrip("<=")) for size in dimensions.split(",") if size)
        total += -(-math.prod(sizes) * DTYPE_BITS[dtype] // 8)
    return total


def elements(shape: str) -> list[str]:
    """Return the top-level members of a tuple type, or the type itself."""
    if not shape.startswith("("):
        return [shape]
    parts, depth, start = [], 0, 1
    for index, char in enumerate(shape):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if (char == "," and depth == 1) or depth == 0:
            parts.append(shape[start:index])
            start = index + 1
    return parts
