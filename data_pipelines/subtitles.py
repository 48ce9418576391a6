"""WebVTT and SubRip to cues: when something is said, and what.

Specifications: the W3C's WebVTT (cue timings, notes, styles); SubRip as players write it.
"""

import re
from dataclasses import dataclass

TIMING = re.compile(
    r"^\s*(?:(\d{1,4}):)?(\d{1,2}):(\d{2})[.,](\d{3})\s*-->\s*"
    r"(?:(\d{1,4}):)?(\d{1,2}):(\d{2})[.,](\d{3})(?:\s.*)?$"
)
TAG = re.compile(r"<[^<>]{0,200}>|\{\\[^{}]{0,100}\}")
NOT_CUES = ("NOTE", "STYLE", "REGION")


class BadSubtitles(ValueError):
    """A file of subtitles that is none; `line` counts from 1."""

    def __init__(self, line: int, message: str):
        super().__init__(f"line {line}: {message}")
        self.line = line


@dataclass(frozen=True, slots=True)
class Cue:
    """What is said from one time to another, in seconds; lines are joined by a space."""

    start_s: float
    end_s: float
    text: str


def parse(text: str, *, is_vtt: bool) -> list[Cue]:
    """Return the cues of a file in their order; one repeated by scrolling captions comes once.

    Raises:
        BadSubtitles: no header, a timing that is none or runs backwards, or no cue at all.
    """
    lines = text.removeprefix("\ufeff").splitlines()
    if is_vtt and not (lines and re.match(r"WEBVTT(?:\s|$)", lines[0])):
        raise BadSubtitles(1, "expected the header WEBVTT")
    cues: list[Cue] = []
    number = 1 if is_vtt else 0
    while number < len(lines):
        block = number
        while number < len(lines) and lines[number].strip():
            number += 1
        cue = _cue(lines[block:number], block + 1)
        if cue is not None and not (cues and cues[-1].text == cue.text):
            cues.append(cue)
        number += 1
    if not cues:
        raise BadSubtitles(len(lines) or 1, "holds no cues")
    return cues


def _cue(lines: list[str], number: int) -> Cue | None:
    if not lines or lines[0].startswith(NOT_CUES):
        return None
    index = next((i for i, line in enumerate(lines[:2]) if "-->" in line), None)
    if index is None:
        if ":" in lines[0]:  # metadata that stands below the header
            return None
        raise BadSubtitles(number, "expected a cue with its timing, got other text")
    match = TIMING.match(lines[index])
    if match is None:
        raise BadSubtitles(number + index, "expected a timing as 00:00:01.000 --> 00:00:02.000")
    start_s, end_s = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
    if end_s < start_s:
        raise BadSubtitles(number + index, "the cue ends before it begins")
    said = " ".join(TAG.sub("", " ".join(lines[index + 1 :])).split())
    return Cue(start_s, end_s, said) if said else None


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, thousandths = (int(part or 0) for part in parts)
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000
