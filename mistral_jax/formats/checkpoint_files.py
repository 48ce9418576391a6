"""Which files of a listing make one checkpoint, chosen before anything is fetched.

One layout, never two: published repositories often hold the same weights twice, as Hugging Face
shards and as Mistral's consolidated file. Pickles are never chosen: loading one runs its code.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Callable
from collections.abc import Iterable

from mistral_jax.formats import pickles
from mistral_jax.formats.safetensors_file import CONSOLIDATED_INDEX_NAME
from mistral_jax.formats.safetensors_file import INDEX_NAME

HEADERS = (
    "config.json", "params.json", "adapter_config.json", INDEX_NAME, CONSOLIDATED_INDEX_NAME,
)  # fmt: skip
_CONSOLIDATED_HEADERS = ("config.json", "params.json", CONSOLIDATED_INDEX_NAME)
_NOT_OF_HUGGING_FACE = ("params.json", CONSOLIDATED_INDEX_NAME)
TEXT = (
    "added_tokens.json", "chat_template.json", "*.jinja", "generation_config.json", "merges.txt",
    "special_tokens_map.json", "tekken.json", "tokenizer.json", "tokenizer.model*",
    "tokenizer_config.json", "vocab.json", "*.model.v*",
)  # fmt: skip
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
CONSOLIDATED = "consolidated*.safetensors"


class CheckpointFilesError(ValueError):
    """A listing that holds no checkpoint, an incomplete one, or several."""


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
    """The files of one checkpoint.

    Attributes:
        headers: configurations and the index of shards.
        text: tokenizer and chat template.
        weights: safetensors or GGUF files of one layout.
    """

    headers: tuple[str, ...]
    text: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        """Every file."""
        return [*self.headers, *self.text, *self.weights]


def choose(names: Iterable[str], read: Callable[[str], bytes], where: str) -> CheckpointFiles:
    """Choose the files of the one checkpoint among these.

    Args:
        names: files of one folder.
        read: returns the content of one of them; used for the index of shards only.
        where: what is listed, for messages.

    Raises:
        CheckpointFilesError: none, several, or one with shards missing; the message says which.
    """
    present = sorted(name for name in names if "/" not in name)
    text = _matching(present, TEXT)
    if INDEX_NAME in present or SINGLE in present:
        weights = _sharded(present, read, where) if INDEX_NAME in present else (SINGLE,)
        headers = [n for n in present if n in HEADERS and n not in _NOT_OF_HUGGING_FACE]
        if INDEX_NAME not in present or weights:
            return CheckpointFiles(tuple(headers), text, weights)
    consolidated = _matching(present, (CONSOLIDATED,))
    if "params.json" in present and consolidated:
        headers = [name for name in present if name in _CONSOLIDATED_HEADERS]
        return CheckpointFiles(tuple(headers), text, consolidated)
    if INDEX_NAME in present:
        missing = sorted(_shards(read(INDEX_NAME), f"{where}: {INDEX_NAME}") - set(present))
        raise CheckpointFilesError(
            f"{where}: {INDEX_NAME} tells of {missing[0]!r}, which is not there; the checkpoint "
            "is incomplete: upload it again"
        )
    if "adapter_config.json" in present and ADAPTER in present:
        return CheckpointFiles(("adapter_config.json",), text, (ADAPTER,))
    return CheckpointFiles((), text, (_only_gguf(present, where),))


def _matching(names: list[str], patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns))


def _sharded(present: list[str], read: Callable[[str], bytes], where: str) -> tuple[str, ...]:
    """Return the shards that the index tells of, or none where one of them is missing."""
    shards = _shards(read(INDEX_NAME), f"{where}: {INDEX_NAME}")
    return tuple(sorted(shards)) if shards <= set(present) else ()


def _shards(raw: bytes, where: str) -> set[str]:
    try:
        shards = set(json.loads(raw)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointFilesError(
            f"{where}: expected JSON with a weight_map: {error!r}"
        ) from error
    for shard in shards:
        is_name = isinstance(shard, str) and not set(shard) & set("/\\\0")
        if not is_name or not shard.endswith(".safetensors"):
            raise CheckpointFilesError(f"{where}: points to {shard!r}, not shards beside it")
    return shards


def _only_gguf(present: list[str], where: str) -> str:
    ggufs = _matching(present, ("*.gguf",))
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        raise CheckpointFilesError(
            f"{where}: holds {len(ggufs)} GGUF files; name one of them: {where}/{ggufs[0]} "
            f"(there are: {', '.join(ggufs)})"
        )
    if pickled := pickles.find(present):
        raise CheckpointFilesError(
            f"{where}: holds only pickled weights ({pickled[0]}), and reading a pickle runs the "
            "code in it; convert a copy that you trust where torch is installed: python -c "
            '"from transformers import AutoModelForCausalLM as M; '
            "M.from_pretrained('FOLDER').save_pretrained('OUT', safe_serialization=True)\", "
            "then give OUT"
        )
    raise CheckpointFilesError(
        f"{where}: no checkpoint; expected {SINGLE} or {INDEX_NAME} with config.json, params.json "
        f"with {CONSOLIDATED}, or one .gguf file, found: {', '.join(present[:8]) or 'nothing'}"
    )
