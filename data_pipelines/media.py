"""Images, sound and video as media rows: decoded once to checked metadata, in a limited process.

The text of a row is a caption or transcript; facts["media"] says what was found in the file, with
its sha256. media_worker.py does the decoding; nothing is kept of what was decoded.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines import jsonl
from data_pipelines import limited_process
from data_pipelines import media_worker
from data_pipelines import subtitles
from data_pipelines.documents import Document
from data_pipelines.documents import Reject

SUFFIXES = {suffix: kind for kind, found in media_worker.FORMATS.items() for suffix in found}
SIDECARS = (".txt", ".caption", ".vtt", ".srt", ".json")
CAPTION_KEYS = ("caption", "text", "alt", "alt_text", "transcript", "title")
FACT_KEYS = {
    "licence": "licence", "license": "licence", "language": "language", "url": "url",
    "title": "title",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What one media file may cost.

    Attributes:
        max_pixels: of an image or a video's frame, width times height, before it is decoded.
        max_frames: of an animated image.
        decoded_s: how much of a video is decoded; sound is decoded as a whole.
        timeout_s: wall time for one file.
        memory_bytes: address space of the process that decodes.
    """

    max_pixels: int = 100_000_000
    max_frames: int = 500
    decoded_s: float = 1.0
    timeout_s: float = 60.0
    memory_bytes: int = 3 << 30


class MediaReader(limited_process.Reader):
    """Decodes media files one by one; use it as a context manager."""

    def __init__(self, limits: MediaLimits | None = None):
        self._limits = limits or MediaLimits()
        super().__init__(
            Path(media_worker.__file__),
            timeout_s=self._limits.timeout_s,
            memory_bytes=self._limits.memory_bytes,
        )

    def check(self, name: str, path: str, data: bytes) -> dict[str, Any] | Reject:
        """Return the metadata of a media file that was decoded, or why there is none.

        Args:
            name: the id of a reject.
            path: inside its archive or folder; its suffix says what the file should be.
            data: the whole file.
        """
        suffix = Path(path.lower()).suffix
        if suffix not in SUFFIXES:
            return Reject(name, "unsupported_type", f"media of type {suffix!r} are not read")
        hint = json.dumps({"suffix": suffix, **asdict(self._limits)})
        answer = self._process.ask(data, hint)
        if answer is None:
            return Reject(name, "bad_media", self._process.over_limits)
        if "error" in answer:
            kind = "bad_media" if answer["kind"] == "unreadable_content" else answer["kind"]
            return Reject(name, kind, answer["error"])
        digest = hashlib.sha256(data).hexdigest()
        return {**answer, "path": path, "bytes": len(data), "sha256": digest, "checked": True}

    def read(
        self, name: str, path: str, data: bytes, beside: Callable[[str], bytes | None]
    ) -> Document | Reject:
        """Return a media file as a row, with the caption that lies beside it.

        Args:
            name: the id.
            path: as in `check`.
            data: the whole file.
            beside: returns the bytes of a file by its name in the same folder, or None.
        """
        facts = self.check(name, path, data)
        if isinstance(facts, Reject):
            return facts
        caption = caption_beside(name, path.rpartition("/")[2], beside)
        if isinstance(caption, Reject):
            return caption
        text, found = caption
        return Document(name, "text", text=text, facts={**found, "media": facts})


def caption_beside(
    name: str, base: str, beside: Callable[[str], bytes | None]
) -> tuple[str, dict[str, Any]] | Reject:
    """Return the caption of a file that has its name, and what else is said there; "" without."""
    stems = dict.fromkeys((base.partition(".")[0], base.rpartition(".")[0]))
    text, facts = "", {}
    for stem in stems:
        for suffix in SIDECARS:
            data = beside(stem + suffix)
            if data is None or stem + suffix == base:
                continue
            try:
                said, found = read_caption(suffix, data)
            except jsonl.BadLine as bad:
                return Reject(name, bad.kind, f"{stem}{suffix}: {bad}")
            text, facts = text or said, {**found, **facts}
    return text, facts


def read_caption(suffix: str, data: bytes) -> tuple[str, dict[str, Any]]:
    """Return the text of a caption's file, and facts.

    Raises:
        BadLine: it is not what its suffix says.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise jsonl.BadLine("not_utf8", f"byte {error.start} is not UTF-8") from None
    if suffix in (".vtt", ".srt"):
        try:
            cues = subtitles.parse(text, is_vtt=suffix == ".vtt")
        except subtitles.BadSubtitles as bad:
            raise jsonl.BadLine("bad_subtitles", str(bad)) from None
        return "\n".join(cue.text for cue in cues), {"num_cues": len(cues)}
    if suffix != ".json":
        return text.strip(), {}
    row = jsonl.parse_object(data)
    said = next((v for k in CAPTION_KEYS if isinstance(v := row.get(k), str) and v.strip()), "")
    found = {new: row[old] for old, new in FACT_KEYS.items() if isinstance(row.get(old), str)}
    return said.strip().encode("utf-8", "replace").decode(), found
