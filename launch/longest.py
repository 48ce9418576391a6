"""The longest row that a target's memory holds, in closed form."""

from launch import memory as memory_lib
from launch import passes

STEP_TOKENS = 128
MAX_TOKENS = 1 << 23


def longest_row(case: passes.Case) -> int | None:
    """Return the most tokens of a row, one row a pass, with the leanest remat that is allowed.

    The run's other numbers stay. Above MLP_CHUNK_TOKENS only its multiples are tried. None: not
    even the shortest fits.
    """
    chunk, context = memory_lib.MLP_CHUNK_TOKENS, case.mesh["context"]
    lengths = [
        *range(STEP_TOKENS * context, chunk * context, STEP_TOKENS * context),
        *range(chunk * context, MAX_TOKENS + 1, chunk * context),
    ]
    remats = passes.remats_of(case.target)[-2:]

    def fits(length: int) -> bool:
        held = (passes.step_memory(case, 1, remat, num_tokens=length) for remat in remats)
        return any(memory.fits for memory in held)

    # The first length that does not fit; memory grows with the length.
    low, high = 0, len(lengths)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(lengths[middle]) else (low, middle)
    return lengths[low - 1] if low else None
