"""Rendered media: the files say what the captions say, and are named by their content."""

import hashlib
import wave

import numpy as np
import pytest

from data_pipelines import synthesis
from mistral_jax.config import generators

Image = pytest.importorskip("PIL.Image", reason="the extra `data` is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    config = generators.Multimodal(kind="multimodal", name="m")
    return folder, list(synthesis.build(config, media=folder).rows(0, 60))


def test_files_are_named_by_their_content_and_rows_know_them(made):
    folder, rows = made
    for row in rows:
        media = row.facts["media"]
        data = (folder / media["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == media["sha256"]
        assert len(data) == media["bytes"]
        if media["kind"] == "image":
            with Image.open(folder / media["path"]) as image:
                image.load()
                assert (image.format, image.size) == ("PNG", (media["width"], media["height"]))
                assert len(image.getcolors(100_000)) > 1
    assert {row.facts["media"]["kind"] for row in rows} == {"image", "audio"}


def test_tones_have_the_pitches_of_their_caption(made):
    folder, rows = made
    notes = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
    heard = 0
    for row in rows:
        media = row.facts["media"]
        if media["kind"] != "audio":
            continue
        with wave.open(str(folder / media["path"])) as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
        names = media["caption"].partition(": ")[2].rstrip(".").split(", ")
        for part, name in zip(np.split(samples, len(names)), names):
            spectrum = np.abs(np.fft.rfft(part, 1 << 15))
            pitch = spectrum.argmax() * rate / (1 << 15)
            step = round(12 * np.log2(pitch / 261.6256))
            assert f"{notes[step % 12]}{4 + step // 12}" == name
            heard += 1
    assert heard > 20


def test_the_coloured_cells_of_a_comparison_are_those_that_were_counted(made):
    folder, rows = made
    seen = 0
    for row in rows:
        if row.facts["topic"] != "comparison":
            continue
        grid = [
            line.partition(": ")[2].split()
            for line in row.facts["media"]["caption"].rstrip(".").split("; ")
        ]
        with Image.open(folder / row.facts["media"]["path"]) as image:
            step = image.width / 6
            pixels = [
                [image.getpixel((int((c + 0.5) * step), int((r + 0.5) * step))) for c in range(6)]
                for r in range(4)
            ]
        colours = {}
        for names, values in zip(grid, pixels):
            for name, value in zip(names, values):
                assert colours.setdefault(name, value) == value
        assert len(set(colours.values())) == len(colours)
        seen += 1
    assert seen
