"""Where media are made: images by Pillow, tones as WAV; each file named by its content."""

import functools
import hashlib
import io
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mistral_jax import storage


@dataclass(frozen=True, slots=True)
class Studio:
    """Where media are made.

    Attributes:
        pixels: width of an image; its height is three quarters of it.
        sample_rate: of tones, in Hz.
        folder: path or URI where the files go; None keeps only what the row says of them.
    """

    pixels: int = 192
    sample_rate: int = 8000
    folder: str | Path | None = None

    def image(
        self, draw: Callable[[Any, int, int], None], ground: tuple[int, int, int]
    ) -> dict[str, Any]:
        """Draw an image and return what is known of its file."""
        image_module, draw_module, _ = _pillow()
        width, height = self.pixels, self.pixels * 3 // 4
        image = image_module.new("RGB", (width, height), ground)
        draw(draw_module.Draw(image), width, height)
        out = io.BytesIO()
        image.save(out, "PNG")
        known = {"kind": "image", "format": "PNG", "width": width, "height": height, "mode": "RGB"}
        return known | self._keep(out.getvalue(), ".png")

    def tone(self, samples: np.ndarray) -> dict[str, Any]:
        """Write samples in [-1, 1] as 16-bit mono and return what is known of the file."""
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.sample_rate)
            file.writeframes(np.round(samples * 32_000).astype("<i2").tobytes())
        known = {
            "kind": "audio",
            "format": "WAV",
            "sample_rate": self.sample_rate,
            "channels": 1,
            "duration_s": round(len(samples) / self.sample_rate, 4),
        }
        return known | self._keep(out.getvalue(), ".wav")

    def _keep(self, data: bytes, suffix: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        name = f"{digest[:2]}/{digest}{suffix}"
        if self.folder is not None:
            place = f"{str(self.folder).rstrip('/')}/{name}"
            if not storage.exists(place):
                storage.write_bytes(place, data)
        return {"sha256": digest, "bytes": len(data), "path": name}


@functools.cache
def _pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image
        from PIL import ImageDraw
        from PIL import ImageFont
    except ImportError as missing:
        raise ImportError(
            "generator kind multimodal needs the package pillow; install it by "
            "MISTRAL_JAX_LOCKS=data ./run setup"
        ) from missing
    return Image, ImageDraw, ImageFont


@functools.cache
def font(size: int) -> Any:
    return _pillow()[2].load_default(size)
