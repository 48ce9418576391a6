"""The step `media`: a picture, sound or film has checked metadata and a text that goes with it.

The metadata is the reader's, who decoded the file; here it is only asked for and compared.
"""

import re
from collections.abc import Callable
from functools import partial

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

WORD = re.compile(r"[^\W_]+")


def build(config: processors.Media, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources
    return partial(run, config=config)


def run(row: Row, *, config: processors.Media) -> Row | Reject:
    """Return the row, or what it lacks."""
    known = row.facts.get("media") or row.document.facts.get("media")
    if not isinstance(known, dict) or not known.get("sha256"):
        return Reject(row.id, "no_media", "no checked metadata: the reader decoded no media file")
    if config.names_as_captions and not row.text.strip():
        row = row.with_text(_words_of(row.id)).with_facts(caption_from="name")
    words = len(row.text.split())
    if words < config.min_caption_words:
        return Reject(
            row.id, "no_caption", f"{words} words of text; at least {config.min_caption_words}"
        )
    sides = [known[side] for side in ("width", "height") if known.get(side) is not None]
    if sides and min(sides) < config.min_side:
        return Reject(row.id, "small_picture", f"{min(sides)} pixels; at least {config.min_side}")
    seconds = known.get("duration_s")
    if seconds is not None and known.get("kind") != "image" and seconds < config.min_seconds:
        return Reject(row.id, "short_media", f"{seconds:g} s; at least {config.min_seconds:g} s")
    return row


def _words_of(name: str) -> str:
    """Return the words of a file's name, without its suffix."""
    stem = name.replace("!", "/").rpartition("/")[2].rpartition(".")[0]
    return " ".join(WORD.findall(stem))
