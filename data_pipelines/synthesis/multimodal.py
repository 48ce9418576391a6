"""Rendered glyphs, charts and tones with captions that are known, as files beside the shards.

A row's text is its caption or a question with its answer; `facts["media"]` says what the file is,
its sha256 and its place under the media folder. Pixels and samples are computed from the row's
choices, so the same row gives the same file. Levels: glyphs, scenes, charts, sequences, reasoning.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipelines.synthesis import studio as studios
from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws

VERSION = 1
COLOURS = {
    "red": (210, 40, 40),
    "blue": (40, 80, 200),
    "green": (30, 140, 60),
    "orange": (240, 140, 20),
    "purple": (130, 50, 160),
    "brown": (130, 80, 40),
    "black": (20, 20, 20),
    "teal": (0, 130, 130),
}
GROUNDS = ((255, 255, 255), (245, 240, 225), (230, 240, 250), (235, 250, 235))
NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
ENDINGS = (
    " Answer after 'Answer:'.",
    " End with 'Answer:' and the result.",
    " Put it after 'Answer:'.",
)


def _task(
    draws: Draws,
    topic: str,
    media: dict[str, Any],
    asked: str,
    reason: str,
    answer: str,
    wrong: str,
) -> Task:
    mark = "<image>" if media["kind"] == "image" else "<audio>"
    opening = draws.pick(
        (
            "",
            "",
            "{name} shows this. ",
            "From the archive of {place}: ",
            "{name} sent it from {place}. ",
            "Item {n}. ",
        )
    ).format(name=draws.pick(words.PEOPLE), place=draws.pick(words.PLACES), n=draws.between(1, 999))
    return Task(
        prompt=f"{mark}\n{opening}{asked}{draws.pick(ENDINGS)}",
        completion=f"{reason}\nAnswer: {answer}",
        check={"kind": "exact", "expected": answer, "after": "Answer:", "fold": True},
        topic=topic,
        wrong=f"{reason}\nAnswer: {wrong}",
        kind="media",
        facts={"media": {**media, "caption": reason}},
    )


def glyphs(draws: Draws, studio: studios.Studio) -> Task:
    """Read a rendered string."""
    alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
    text = "".join(draws.pick(alphabet) for _ in range(draws.between(3, 6)))
    colour = draws.pick(tuple(COLOURS))
    size = studio.pixels // 7
    ground, left = draws.pick(GROUNDS), draws.between(4, studio.pixels // 6)
    top = draws.between(4, studio.pixels // 3)
    media = studio.image(
        lambda pen, w, h: pen.text((left, top), text, COLOURS[colour], font=studios.font(size)),
        ground,
    )
    asked = draws.pick(("What is written here?", "Read the characters.", "Transcribe the image."))
    return _task(
        draws,
        "glyphs",
        media,
        asked,
        f"{colour.capitalize()} letters say {text}.",
        text,
        text[::-1] + "?",
    )


def _shape(
    pen: Any, shape: str, box: tuple[float, float, float, float], fill: tuple[int, int, int]
) -> None:
    x0, y0, x1, y1 = box
    match shape:
        case "circle":
            pen.ellipse(box, fill=fill)
        case "square":
            pen.rectangle(box, fill=fill)
        case _:
            pen.polygon([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)], fill=fill)


def scene(draws: Draws, studio: studios.Studio) -> Task:
    """Count or locate shapes on a grid."""
    shapes = ("circle", "square", "triangle")
    cells = draws.sample([(c, r) for c in range(4) for r in range(3)], draws.between(4, 9))
    things = [(draws.pick(shapes), draws.pick(tuple(COLOURS)[:5]), cell) for cell in cells]
    step = studio.pixels / 4
    shrink = draws.between(4, 9)

    def draw(pen: Any, width: int, height: int) -> None:
        for shape, colour, (c, r) in things:
            box = (
                c * step + shrink,
                r * step + shrink,
                (c + 1) * step - shrink,
                (r + 1) * step - shrink,
            )
            _shape(pen, shape, box, COLOURS[colour])

    media = studio.image(draw, draws.pick(GROUNDS))
    listed = ", ".join(
        f"a {colour} {shape} in row {r + 1}, column {c + 1}"
        for shape, colour, (c, r) in sorted(things, key=lambda t: t[2][::-1])
    )
    if draws.chance(0.5):
        shape = draws.pick(shapes)
        count = sum(each[0] == shape for each in things)
        asked = draws.pick((f"How many {shape}s are there?", f"Count the {shape}s."))
        return _task(
            draws, "scene_count", media, asked, f"There is {listed}.", str(count), str(count + 1)
        )
    shape, colour, (c, r) = draws.pick(things)
    asked = f"What is in row {r + 1}, column {c + 1}? Name colour and shape."
    other = draws.pick([each for each in shapes if each != shape])
    return _task(
        draws,
        "scene_place",
        media,
        asked,
        f"There is {listed}.",
        f"{colour} {shape}",
        f"{colour} {other}",
    )


def chart(draws: Draws, studio: studios.Studio) -> Task:
    """Read a bar chart with labelled bars."""
    count = draws.between(3, 5)
    names = draws.sample([each for each in words.NOUNS if len(each) <= 5], count)
    values = draws.sample(range(3, 60), count)
    colours = [COLOURS[each] for each in draws.sample(tuple(COLOURS), count)]

    def draw(pen: Any, width: int, height: int) -> None:
        font, gap = studios.font(studio.pixels // 16), width / count
        base, scale = height - studio.pixels // 10, (height * 0.68) / max(values)
        for at, (name, value, colour) in enumerate(zip(names, values, colours)):
            left = at * gap
            pen.rectangle(
                (left + gap * 0.2, base - value * scale, left + gap * 0.8, base), fill=colour
            )
            pen.text((left + gap * 0.1, base + 2), name, (0, 0, 0), font=font)
            pen.text(
                (left + gap * 0.3, base - value * scale - studio.pixels / 13),
                str(value),
                (0, 0, 0),
                font=font,
            )
        pen.line((0, base, width, base), fill=(0, 0, 0))

    media = studio.image(draw, (255, 255, 255))
    caption = "A bar chart: " + ", ".join(f"{n} {v}" for n, v in zip(names, values)) + "."
    if draws.chance(0.5):
        best = names[values.index(max(values))]
        asked = draws.pick(("Which bar is the highest?", "Name the largest category."))
        wrong = draws.pick([each for each in names if each != best])
        return _task(draws, "chart_highest", media, asked, caption, best, wrong)
    low, high = draws.sample(range(count), 2)
    low, high = sorted((low, high), key=lambda at: values[at])
    asked = f"By how much does {names[high]} exceed {names[low]}?"
    value = values[high] - values[low]
    return _task(
        draws,
        "chart_difference",
        media,
        asked,
        caption,
        str(value),
        str(value + draws.between(1, 9)),
    )


def line_chart(draws: Draws, studio: studios.Studio) -> Task:
    """Say in which step a curve rises most."""
    count = draws.between(5, 7)
    values = [draws.between(5, 95)]
    while len(values) < count:
        values.append(min(99, max(1, values[-1] + draws.between(-30, 30))))
    rises = [b - a for a, b in itertools.pairwise(values)]
    colour = draws.pick(tuple(COLOURS))

    def draw(pen: Any, width: int, height: int) -> None:
        font, gap = studios.font(studio.pixels // 16), width / (count + 1)
        points = [
            ((at + 0.6) * gap, height * (0.84 - value / 140)) for at, value in enumerate(values)
        ]
        pen.line(points, fill=COLOURS[colour], width=2)
        for at, ((x, y), value) in enumerate(zip(points, values)):
            pen.text((x - 4, y - studio.pixels / 12), str(value), (0, 0, 0), font=font)
            pen.text((x, height * 0.88), str(at + 1), (90, 90, 90), font=font)

    media = studio.image(draw, (255, 255, 255))
    caption = f"A {colour} curve through " + ", ".join(map(str, values)) + "."
    if draws.chance(0.5) and rises.count(max(rises)) == 1:
        at = rises.index(max(rises))
        asked = (
            "Between which two neighbouring points does the curve rise most? Answer as 'a to b'."
        )
        return _task(
            draws,
            "line_rise",
            media,
            asked,
            caption,
            f"{at + 1} to {at + 2}",
            f"{at + 2} to {at + 1}",
        )
    asked = "What is the sum of the first and the last value?"
    value = values[0] + values[-1]
    return _task(
        draws, "line_sum", media, asked, caption, str(value), str(value + draws.between(1, 9))
    )


def tones(draws: Draws, studio: studios.Studio) -> Task:
    """Name the notes of a short melody, or say where it goes."""
    steps = [draws.between(0, 19) for _ in range(draws.between(2, 5))]
    seconds = draws.pick((0.12, 0.15, 0.2))
    length = int(seconds * studio.sample_rate)
    clock = np.arange(length) / studio.sample_rate
    fade = np.minimum(
        1.0, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.01 * studio.sample_rate)
    )
    loud = draws.between(40, 90) / 100
    parts = [
        loud * fade * np.sin(2 * math.pi * 261.6256 * 2 ** (step / 12) * clock) for step in steps
    ]
    media = studio.tone(np.concatenate(parts))
    names = [f"{NOTES[step % 12]}{4 + step // 12}" for step in steps]
    caption = f"Tones of {seconds} s each: {', '.join(names)}."
    if draws.chance(0.5):
        asked = draws.pick(
            ("Which notes are played, in order?", "Write down the melody as note names.")
        )
        return _task(
            draws, "tones", media, asked, caption, " ".join(names), " ".join(names[::-1]) + " C4"
        )
    best = names[steps.index(max(steps))]
    asked = draws.pick(("What is the highest note?", "Name the highest of these tones."))
    wrong = draws.pick(["C3", "C6", "D3"])
    return _task(draws, "tones_highest", media, asked, caption, best, wrong)


def comparison(draws: Draws, studio: studios.Studio) -> Task:
    """Reason over a scene: which colour fills most cells, what is left of what."""
    colours = draws.sample(tuple(COLOURS), 3)
    grid = [[draws.pick(colours) for _ in range(6)] for _ in range(4)]
    step = studio.pixels / 6

    def draw(pen: Any, width: int, height: int) -> None:
        for r, row in enumerate(grid):
            for c, colour in enumerate(row):
                pen.rectangle(
                    (c * step + 1, r * step + 1, (c + 1) * step - 2, (r + 1) * step - 2),
                    fill=COLOURS[colour],
                )

    media = studio.image(draw, (255, 255, 255))
    counts = {colour: sum(row.count(colour) for row in grid) for colour in colours}
    rows = "; ".join(f"row {r + 1}: {' '.join(row)}" for r, row in enumerate(grid))
    a, b = draws.sample(colours, 2)
    asked = draws.pick(
        (
            f"How many more {a} than {b} cells are there? A negative number means fewer.",
            f"Subtract the number of {b} cells from that of the {a} ones.",
        )
    )
    value = counts[a] - counts[b]
    return _task(
        draws, "comparison", media, asked, f"{rows}.", str(value), str(value + draws.between(1, 4))
    )


LEVELS: tuple[tuple[Callable[[Draws, studios.Studio], Task], ...], ...] = (
    (glyphs,),
    (scene,),
    (chart, tones),
    (line_chart, tones),
    (comparison, line_chart),
)


def make(draws: Draws, level: int, index: int, *, studio: studios.Studio) -> Task:
    """Return a task of the level."""
    del index
    return draws.pick(LEVELS[level])(draws, studio)
