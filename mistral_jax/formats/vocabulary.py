"""Vocabularies as `tokenizers` objects: built from GGUF metadata, SentencePiece and tekken files.

Two families: byte-level BPE (gpt2, llama 3, qwen2, tekken) and SentencePiece BPE with byte
fallback (Llama 2, Mistral v1-v7). Control tokens become special added tokens, which plain text can
never produce once `encode_special_tokens` is set. Unigram and WordPiece models are not handled.
Sources: llama.cpp's llama-vocab.cpp for the pre-tokenizers; the BPE rule itself arXiv:1508.07909.
"""

import functools
import json
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers

# GGUF's token types; the numbers are SentencePiece's own.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
# Every cut of a token is tried, which takes the square of its length; published ones have 16 to 64.
MAX_PIECE_LETTERS = 1000

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace("{1,3}", "")
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GGUF's name of a pre-tokenizer -> its split pattern; None: the pattern of GPT-2, built in.
_SPLITS = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": _LLAMA3_SPLIT,
    "qwen2": _QWEN2_SPLIT,
    "tekken": _TEKKEN_SPLIT,
}
# These look a whole word up in the vocabulary before they merge.
_WHOLE_WORDS_FIRST = ("llama-bpe", "tekken")


class Vocabulary(NamedTuple):
    """Tokens in the order of their ids, as GGUF lists them."""

    tokens: list[str]
    types: list[int]


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """Return the splitter that GGUF calls `name`.

    Raises:
        ValueError: an unknown name; the message lists the supported ones.
    """
    if name not in _SPLITS:
        raise ValueError(
            f"tokenizer.ggml.pre is {name!r}; supported pre-tokenizers: {', '.join(_SPLITS)}"
        )
    split = _SPLITS[name]
    if split is not None:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return byte_level
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


def pre_tokenizer_name(tokenizer: tokenizers.Tokenizer) -> str:
    """Return GGUF's name for a byte-level tokenizer's splitter.

    Raises:
        ValueError: it is none of those that GGUF readers know under the supported names.
    """
    wanted = json.loads(tokenizer.to_str())["pre_tokenizer"]
    for name in _SPLITS:
        probe = tokenizers.Tokenizer(models.BPE())
        probe.pre_tokenizer = pre_tokenizer(name)
        if _comparable(json.loads(probe.to_str())["pre_tokenizer"]) == _comparable(wanted):
            return name
    raise ValueError(
        f"this tokenizer's splitter has no GGUF name that we write; supported: {', '.join(_SPLITS)}"
    )


def _comparable(node: Any) -> Any:
    """Drop what does not change tokens (offset trimming) from a pre-tokenizer's JSON."""
    if isinstance(node, dict):
        return {key: _comparable(item) for key, item in node.items() if key != "trim_offsets"}
    return [_comparable(item) for item in node] if isinstance(node, list) else node


def build_byte_bpe(
    vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], pre: str
) -> tokenizers.Tokenizer:
    """Build a byte-level BPE tokenizer (GGUF's model type gpt2).

    Raises:
        ValueError: a merge names a token that is not in the vocabulary, or `pre` is unknown.
    """
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    model = _bpe(
        lambda: models.BPE(vocab=ids, merges=list(merges), ignore_merges=pre in _WHOLE_WORDS_FIRST)
    )
    result = tokenizers.Tokenizer(model)
    if pre == "qwen2":
        result.normalizer = normalizers.NFC()
    result.pre_tokenizer = pre_tokenizer(pre)
    result.decoder = decoders.ByteLevel()
    return _with_added_tokens(result, vocabulary)


def build_sentencepiece(
    vocabulary: Vocabulary, scores: Sequence[float], *, add_space_prefix: bool
) -> tokenizers.Tokenizer:
    """Build a SentencePiece BPE tokenizer with byte fallback (GGUF's model type llama)."""
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    normal = {
        token: score
        for token, kind, score in zip(vocabulary.tokens, vocabulary.types, scores, strict=True)
        if kind == NORMAL
    }
    merges = _merges_by_score(normal)
    unknown = next(
        (token for token, kind in zip(*vocabulary, strict=True) if kind == UNKNOWN), "<unk>"
    )
    model = _bpe(
        lambda: models.BPE(
            vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    result = tokenizers.Tokenizer(model)
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    ends: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if add_space_prefix:
        steps.insert(0, normalizers.Prepend(SPACE))
        ends.append(decoders.Strip(" ", 1, 0))
    result.normalizer = normalizers.Sequence(steps)
    result.decoder = decoders.Sequence(ends)
    return _with_added_tokens(result, vocabulary)


def _bpe(make: Any) -> models.BPE:
    # The Rust binding raises bare Exception for a merge outside the vocabulary; this is the
    # boundary to it, so the type is narrowed here and nowhere else.
    try:
        return make()
    except Exception as error:
        raise ValueError(f"the tokenizer's vocabulary and merges do not fit: {error}") from error


def _with_added_tokens(
    tokenizer: tokenizers.Tokenizer, vocabulary: Vocabulary
) -> tokenizers.Tokenizer:
    for kinds, special in (((CONTROL, UNKNOWN), True), ((USER_DEFINED,), False)):
        added = [
            tokenizers.AddedToken(token, special=special, normalized=False)
            for token, kind in zip(*vocabulary, strict=True)
            if kind in kinds
        ]
        if special:
            tokenizer.add_special_tokens(added)
        else:
            tokenizer.add_tokens(added)
    return tokenizer


def _merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return every way to join two pieces into a third, best score of the result first.

    SentencePiece merges by the result's score; among splits of one result the order of the parts'
    own scores decides, which is how the merges were learnt.

    Raises:
        ValueError: a piece is longer than any that was ever learnt.
    """
    if longest := next((piece for piece in scores if len(piece) > MAX_PIECE_LETTERS), None):
        raise ValueError(
            f"a token of {len(longest)} letters ({longest[:20]!r}...); expected at most "
            f"{MAX_PIECE_LETTERS}: this is no vocabulary that text was learnt from"
        )
    rank = {piece: -score for piece, score in scores.items()}
    found = []
    for piece in scores:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in rank and right in rank:
                found.append((rank[piece], rank[left], rank[right], left, right))
    found.sort(key=lambda item: item[:3])
    return [(left, right) for *_, left, right in found]


@functools.cache
def _byte_letters() -> dict[int, str]:
    """Return the printable letter that byte-level BPE uses for each byte (GPT-2's alphabet)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


def byte_letters(raw: bytes) -> str:
    """Spell bytes in the alphabet of byte-level BPE."""
    return raw.decode("latin-1").translate(_byte_letters())


def merges_from_ranks(tokens: Sequence[bytes]) -> list[tuple[str, str]]:
    """Recover the merge list from tokens in the order in which they were learnt (tekken).

    Each token of two bytes or more was made from exactly the two parts that remain when the
    merges learnt before it are applied to its bytes.

    Raises:
        ValueError: a token that no two earlier ones make.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for limit, token in enumerate(tokens):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(parts[i] + parts[i + 1], limit) for i in range(len(parts) - 1)]
            best = pairs.index(min(pairs))
            if pairs[best] >= limit:
                raise ValueError(f"token {token!r} (rank {limit}) cannot be built from lower ranks")
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    letters = _byte_letters()
    return [
        (left.decode("latin-1").translate(letters), right.decode("latin-1").translate(letters))
        for left, right in merges
    ]


def from_gguf(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Raises:
        ValueError: the metadata is incomplete, inconsistent, or of an unsupported model type.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ValueError("the GGUF metadata holds no tokenizer.ggml.tokens; it has no tokenizer")
    types = _numbers(metadata, "token_type", len(tokens))
    vocabulary = Vocabulary(tokens, [NORMAL] * len(tokens) if types is None else types.tolist())
    if kind == "llama":
        scores = _numbers(metadata, "scores", len(tokens))
        if scores is None:
            raise ValueError("a GGUF tokenizer of type llama needs tokenizer.ggml.scores")
        prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
        return build_sentencepiece(vocabulary, scores.tolist(), add_space_prefix=bool(prefix))
    if kind == "gpt2":
        merges = metadata.get("tokenizer.ggml.merges")
        if not isinstance(merges, list) or any(merge.count(" ") != 1 for merge in merges):
            raise ValueError("tokenizer.ggml.merges must be a list of 'left right' pairs")
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        return build_byte_bpe(vocabulary, pairs, str(metadata.get("tokenizer.ggml.pre", "gpt-2")))
    raise ValueError(f"tokenizer.ggml.model is {kind!r}; supported: 'gpt2' and 'llama'")


def _numbers(metadata: Mapping[str, Any], name: str, count: int) -> np.ndarray | None:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if values is not None and (not isinstance(values, np.ndarray) or len(values) != count):
        raise ValueError(f"tokenizer.ggml.{name} must be {count} numbers, one for each token")
    return values


def to_gguf(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return the vocabulary part of GGUF metadata for a `tokenizers` object.

    Raises:
        ValueError: not a BPE model, or a splitter that GGUF has no supported name for.
    """
    definition = json.loads(tokenizer.to_str())
    model = definition["model"]
    if model["type"] != "BPE":
        raise ValueError(f"cannot write a {model['type']} tokenizer to GGUF; BPE is supported")
    vocabulary = _listed(model, definition["added_tokens"])
    # Written as "left right" by old versions of `tokenizers`, as pairs by new ones.
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(left, right) for left, right in pairs]
    metadata = {
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": np.array(vocabulary.types, np.int32),
    }
    if not model.get("byte_fallback"):
        return metadata | {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre_tokenizer_name(tokenizer),
            "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        }
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    scores = [
        0.0 if kind != NORMAL else -float(rank.get(token, len(rank) + number))
        for number, (token, kind) in enumerate(zip(*vocabulary, strict=True))
    ]
    return metadata | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.add_space_prefix": _has_prefix(definition),
    }


def _listed(model: Mapping[str, Any], added: Iterable[Mapping[str, Any]]) -> Vocabulary:
    ids = dict(model["vocab"]) | {item["content"]: item["id"] for item in added}
    size = max(ids.values()) + 1
    # Ids without a token (padding of the embedding) get names that no text can spell by accident.
    tokens, types = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    for token, number in ids.items():
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        tokens[number], types[number] = token, BYTE if is_byte else NORMAL
    for item in added:
        types[item["id"]] = CONTROL if item["special"] else USER_DEFINED
    if model.get("unk_token") in ids:
        types[ids[model["unk_token"]]] = UNKNOWN
    return Vocabulary(tokens, types)


def _has_prefix(definition: Mapping[str, Any]) -> bool:
    steps = json.dumps([definition["normalizer"], definition["pre_tokenizer"]])
    return '"Prepend"' in steps or '"prepend_scheme": "first"' in steps.replace("always", "first")
