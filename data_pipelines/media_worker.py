"""The decoder of media for decode_worker.py: Pillow, soundfile and PyAV behind one function.

Imports nothing of ours, and a library only when a file of its kind comes. The suffix fixes which
format a file may be in: none that opens further files (playlists, concatenations) is ever tried.
"""

import io
import json
import re

# suffix -> what the library calls the format
FORMATS = {
    "image": {
        ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".bmp": "BMP",
        ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
    },
    "audio": {
        ".wav": "", ".flac": "", ".ogg": "", ".mp3": "mp3", ".m4a": "mp4", ".aac": "aac",
        ".opus": "ogg",
    },
    "video": {
        ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska",
        ".avi": "avi", ".mpg": "mpeg", ".mpeg": "mpeg",
    },
}  # fmt: skip
BLOCK_FRAMES = 1 << 16
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the names of Python's objects; another in each run
MAX_VIDEO_FRAMES = 240
NOT_INSTALLED = "is not installed; set up with MISTRAL_JAX_LOCKS=data ./run doctor"


def decode(hint: str, data: bytes) -> dict:
    """Return metadata, or {"kind", "error"}."""
    asked = json.loads(hint)
    kind = next(kind for kind, suffixes in FORMATS.items() if asked["suffix"] in suffixes)
    name = FORMATS[kind][asked["suffix"]]
    try:
        if kind == "image":
            return _image(name, data, asked)
        if kind == "audio" and not name:
            return _sound(data)
        return _streams(kind, name, data, asked)
    except ImportError as error:
        return {"kind": "unsupported_type", "error": f"{error.name} {NOT_INSTALLED}"}
    except MemoryError:
        return _bad("needs more memory than one file may take")
    except Exception as error:  # noqa: BLE001  the libraries raise what they like on damaged files
        told = ADDRESS.sub("", str(error)[:200]) or type(error).__name__
        return _bad(f"cannot be decoded ({told})")


def _bad(message: str) -> dict:
    return {"kind": "bad_media", "error": message}


def _too_many(width: int, height: int, asked: dict) -> dict | None:
    if width * height <= asked["max_pixels"]:
        return None
    told = f"{width} x {height} pixels; at most {asked['max_pixels']} are decoded"
    return {"kind": "too_many_pixels", "error": told}


def _image(name: str, data: bytes, asked: dict) -> dict:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # our own cap comes before anything is decoded
    with Image.open(io.BytesIO(data), formats=[name]) as image:
        if refused := _too_many(*image.size, asked):
            return refused
        image.verify()
    with Image.open(io.BytesIO(data), formats=[name]) as image:
        frames = 0
        while frames < asked["max_frames"]:
            image.load()
            frames += 1
            try:
                image.seek(frames)
            except EOFError:
                break
            if refused := _too_many(*image.size, asked):
                return refused
        width, height = image.size
        return {
            "kind": "image",
            "format": name.lower(),
            "mode": image.mode,
            "width": width,
            "height": height,
            "frames": frames,
        }


def _sound(data: bytes) -> dict:
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        frames = 0
        while block := len(sound.read(BLOCK_FRAMES, dtype="int16")):
            frames += block
        if not frames:
            return _bad("holds no sound")
        return {
            "kind": "audio",
            "format": sound.format.lower(),
            "sample_rate": sound.samplerate,
            "channels": sound.channels,
            "duration_s": round(frames / sound.samplerate, 3),
        }


def _streams(kind: str, name: str, data: bytes, asked: dict) -> dict:
    import av

    # An empty list of protocols: a container cannot make the library open anything else.
    options = {"protocol_whitelist": ""}
    with av.open(io.BytesIO(data), format=name, container_options=options) as container:
        if kind == "audio":
            return _audio(container, name)
        if not container.streams.video:
            return _bad("holds no stream of video")
        return _video(container, name, asked)


def _audio(container, name: str) -> dict:
    stream = container.streams.audio[0] if container.streams.audio else None
    if stream is None:
        return _bad("holds no stream of sound")
    samples = sum(frame.samples for frame in container.decode(stream))
    if not samples:
        return _bad("holds no sound")
    rate = stream.codec_context.sample_rate
    return {
        "kind": "audio",
        "format": name,
        "codec": stream.codec_context.name,
        "sample_rate": rate,
        "channels": stream.codec_context.channels,
        "duration_s": round(samples / rate, 3),
    }


def _video(container, name: str, asked: dict) -> dict:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    width, height = stream.codec_context.width, stream.codec_context.height
    if refused := _too_many(width, height, asked):
        return refused
    decoded = 0
    for frame in container.decode(stream):
        decoded += 1
        is_past = frame.time is not None and frame.time >= asked["decoded_s"]
        if is_past or decoded >= MAX_VIDEO_FRAMES:
            break
    if not decoded:
        return _bad("no frame could be decoded")
    duration = container.duration or 0
    return {
        "kind": "video",
        "format": name,
        "codec": stream.codec_context.name,
        "width": width,
        "height": height,
        "duration_s": round(duration / 1_000_000, 3),
        "frames_per_s": round(float(stream.average_rate or 0), 3),
        "decoded_frames": decoded,
        "has_audio": bool(container.streams.audio),
    }
