"""Media files are decoded in their process, or refused; nothing large is decoded at all."""

import io
import struct
import zlib

import pytest

from data_pipelines import media
from data_pipelines.catalog import samples
from data_pipelines.documents import Document
from data_pipelines.documents import Reject


@pytest.fixture(scope="module")
def reader():
    with media.MediaReader() as opened:
        yield opened


def encoded(name: str) -> bytes:
    """Return a tenth of a second of silence in a format that PyAV writes."""
    import av
    import numpy as np

    codec, container_name = {"mp3": ("mp3", "mp3"), "m4a": ("aac", "mp4")}[name]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_name) as container:
        stream = container.add_stream(codec, rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1600), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """Return a PNG whose header promises more pixels than a reader should make."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        check = struct.pack(">I", zlib.crc32(name + data))
        out += struct.pack(">I", len(data)) + name + data + check
    return out


@pytest.mark.parametrize(
    ("path", "data", "facts"),
    [
        ("a/b.gif", samples.picture("GIF"), {"kind": "image", "frames": 1, "path": "a/b.gif"}),
        ("b.webp", samples.picture("WEBP"), {"format": "webp", "mode": "RGB"}),
        ("c.mp3", encoded("mp3"), {"kind": "audio", "sample_rate": 16000, "channels": 1}),
        ("c.m4a", encoded("m4a"), {"kind": "audio", "codec": "aac", "sample_rate": 16000}),
        ("d.mp4", samples.video(), {"kind": "video", "decoded_frames": 5, "has_audio": False}),
    ],
)
def test_a_media_file_becomes_checked_metadata(reader, path, data, facts):
    found = reader.check("x", path, data)
    assert isinstance(found, dict), found
    assert facts.items() <= found.items()
    assert (found["bytes"], found["checked"]) == (len(data), True)
    assert found["kind"] == "image" or 0.05 < found["duration_s"] < 0.6


@pytest.mark.parametrize(
    ("path", "data", "kind"),
    [
        ("a.png", huge_png(60_000, 60_000), "too_many_pixels"),
        ("a.png", huge_png(100, 100), "bad_media"),
        ("a.png", samples.picture("JPEG"), "bad_media"),
        ("a.jpg", samples.picture("JPEG")[:300], "bad_media"),
        ("a.wav", samples.sound()[:44], "bad_media"),
        ("a.flac", samples.sound()[:20], "bad_media"),
        ("a.mp4", samples.video()[:400], "bad_media"),
        ("a.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "bad_media"),
        ("a.mp3", b"#EXTM3U\n/etc/passwd\n", "bad_media"),
        ("a.svg", b"<svg/>", "unsupported_type"),
    ],
)
def test_what_cannot_be_decoded_is_refused_and_the_next_is_read(reader, path, data, kind):
    refused = reader.check("x", path, data)
    assert isinstance(refused, Reject)
    assert (refused.id, refused.kind) == ("x", kind)
    assert isinstance(reader.check("y", "ok.png", samples.picture()), dict)


def test_captions_of_every_kind_are_found_beside_a_file(reader):
    cases = {
        "a.txt": (b"a lamp\n", "a lamp"),
        "a.json": (b'{"alt": "a lamp", "license": "MIT"}', "a lamp"),
        "a.srt": (b"1\n00:00:01,000 --> 00:00:02,000\na lamp\n", "a lamp"),
    }
    for name, (data, text) in cases.items():
        made = reader.read("x", "f/a.png", samples.picture(), {name: data}.get)
        assert isinstance(made, Document)
        assert made.text == text
    assert made.facts["num_cues"] == 1
    bad = reader.read("x", "a.png", samples.picture(), {"a.json": b"{"}.get)
    assert isinstance(bad, Reject)
    assert (bad.kind, bad.reason.partition(":")[0]) == ("bad_json", "a.json")


def test_a_decoder_that_is_late_costs_one_file():
    with media.MediaReader(media.MediaLimits(timeout_s=0.001)) as hurried:
        refused = hurried.check("x", "a.png", samples.picture())
    assert isinstance(refused, Reject)
    assert "took over 0.001 s" in refused.reason
