"""Q4_K_M by llama.cpp's own `llama-quantize`, where it is on PATH; we have no K-quantiser.

Which tensors get which type is llama.cpp's choice, and so are the numbers.
"""

import shutil
import subprocess
from pathlib import Path

PROGRAM = "llama-quantize"


def program() -> str:
    """Return the path of llama-quantize.

    Raises:
        ValueError: it is not on PATH.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise ValueError(
            f"q4_k_m is written by llama.cpp's own {PROGRAM}, and there is none on PATH; install "
            "llama.cpp and put it there, or export as q8_0"
        )
    return found


def quantize(source: Path, destination: Path, kind: str) -> None:
    """Quantise a GGUF file into another, which appears complete or not at all.

    Args:
        source: F32, F16 or BF16.
        destination: the file to make or replace.
        kind: as llama-quantize spells it: Q4_K_M.

    Raises:
        OSError: llama-quantize failed; the message holds its last lines.
    """
    partial = destination.with_name(f".{destination.name}.partial")
    command = [program(), str(source), str(partial), kind]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode or not partial.is_file():
            lines = done.stdout.decode(errors="replace").split("\n")
            said = " / ".join(line.strip() for line in lines if line.strip()[:1])
            raise OSError(
                f"{command[0]} ended with code {done.returncode} on {source.name}: {said[-400:]}"
            )
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)
