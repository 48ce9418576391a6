"""Which published model is this? From tensors, config and tokenizer, and where these disagree."""

import dataclasses
from typing import Any

from mistral_jax.config import presets
from mistral_jax.config.model import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Version:
    """What a checkpoint is.

    Attributes:
        title: the published names, or that there are none of these shapes.
        contradictions: one sentence for each place where tensors, config and tokenizer disagree.
    """

    title: str
    contradictions: tuple[str, ...] = ()


def identify(
    decoder: DecoderConfig, *, tokenizer_format: str | None, tokenizer_size: int | None
) -> Version:
    """Return the release that a checkpoint belongs to.

    Args:
        decoder: the shape; its sizes are checked against the tensors elsewhere.
        tokenizer_format: version of Mistral's chat format of the tokenizer file, such as v3;
            None where the tokenizer is of another kind.
        tokenizer_size: tokens that the tokenizer knows, None without one.
    """
    found = []
    if tokenizer_size is not None and tokenizer_size > decoder.vocab_size:
        found.append(
            f"the tokenizer knows {tokenizer_size:,} tokens, the embedding {decoder.vocab_size:,}"
        )
    candidates = presets.same_shape(decoder)
    if not candidates:
        return Version("no published model has these shapes", tuple(found))
    exact = [name for name in candidates if not presets.differences(decoder, name)]
    if not exact:
        nearest = min(candidates, key=lambda name: _distance(decoder, name))
        found += _config_sentences(decoder, nearest)
        exact = [nearest]
    releases = [presets.RELEASES[name] for name in exact]
    formats = [version for release in releases for version in release.tokenizers]
    if tokenizer_format is not None and formats and tokenizer_format not in formats:
        found.append(
            f"the tokenizer's chat format is {tokenizer_format}, this model's files carry "
            f"{' or '.join(formats)}"
        )
    return Version("; ".join(release.title for release in releases), tuple(found))


def _distance(decoder: DecoderConfig, name: str) -> tuple[int, bool]:
    """Order releases by differing fields; a base is copied wrongly less often than a window."""
    wrong = presets.differences(decoder, name)
    return len(wrong), "rope" in wrong


def _config_sentences(decoder: DecoderConfig, nearest: str) -> list[str]:
    """Say in which fields the config is not the release's, and whose it is instead."""
    title = presets.RELEASES[nearest].title
    wrong = presets.differences(decoder, nearest)
    sentences = [
        f"the tensors are those of {title}, but the config's {name} is {_shown(theirs)} and not "
        f"{_shown(ours)}"
        for name, (theirs, ours) in wrong.items()
    ]
    owners = [
        presets.RELEASES[name].title
        for name, preset in presets.PRESETS.items()
        if all(getattr(decoder, field) == getattr(preset, field) for field in wrong)
        and name != nearest
        and preset.width == decoder.width
    ]
    return [*sentences, f"such a config belongs to {owners[0]}"] if owners else sentences


def _shown(value: Any) -> str:
    if hasattr(value, "model_dump"):
        fields = value.model_dump(exclude_defaults=True)
        inner = ", ".join(f"{name} {number:g}" for name, number in fields.items())
        return f"{value.kind} ({inner})" if inner else value.kind
    return f"{value:g}"
