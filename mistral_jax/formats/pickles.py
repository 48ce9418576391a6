"""Pickled weights are refused: loading one runs whatever code it holds. Here is what to say.

Both commands read with `weights_only`, which refuses code too; they need torch, which we do not.
"""

import fnmatch
from collections.abc import Iterable

PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TRANSFORMERS = (
    "from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}', "
    "weights_only=True).save_pretrained('OUT', safe_serialization=True)"
)
_ONE_FILE = (
    "import torch, safetensors.torch as s; s.save_file({{k: v.contiguous() for k, v in "
    "torch.load('{file}', map_location='cpu', weights_only=True).items()}}, '{target}')"
)


def find(names: Iterable[str]) -> list[str]:
    """Return the file names among these that pickles have, sorted."""
    return sorted(n for n in names if any(fnmatch.fnmatchcase(n, p) for p in PATTERNS))


def refusal(folder: str, name: str, *, is_transformers: bool) -> str:
    """Return the one sentence that refuses a pickle and tells how to convert it.

    Args:
        folder: where it lies, as the user spells it.
        name: the file's name.
        is_transformers: the folder has a config.json, so that transformers converts all of it.
    """
    file = f"{folder}/{name}"
    command = (
        _TRANSFORMERS.format(folder=folder)
        if is_transformers
        else _ONE_FILE.format(file=file, target=f"{file.rpartition('.')[0]}.safetensors")
    )
    return (
        f"{file}: the weights are a pickle, and reading a pickle runs the code in it; where you "
        f'trust it and torch is installed, convert it: python -c "{command}", then give '
        f"{'OUT, with the tokenizer files copied to it' if is_transformers else 'the new file'}"
    )
