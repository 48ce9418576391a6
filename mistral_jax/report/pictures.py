"""The report's sections that are drawn: curves by step, bars of memory and time."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from mistral_jax.report import charts
from mistral_jax.report import units
from mistral_jax.report.files import Row
from mistral_jax.report.files import RunFiles

MEMORY_PARTS = (
    "frozen_parameters", "trained_parameters", "optimizer_state", "gradients",
    "activations", "layer_work", "gathered_weights", "dispatch", "loss_chunk", "batch", "runtime",
)  # fmt: skip


def curves(files: RunFiles) -> list[Row]:
    """Return the pictures: training loss, held-out loss, learning rate, speed."""
    steps = files.metrics.steps
    marks = []
    if files.resume:
        resumed, killed = files.resume["resumed_at"], files.resume["killed_at"]
        marks = [(resumed, f"resumed at {resumed}"), (killed, f"killed at {killed}")]
    raw = _points(steps, "loss")
    pictures = [
        (
            "Training loss, nats per token",
            charts.line_chart(
                [
                    charts.Series("each step", raw, colour=0, is_faint=True),
                    charts.Series("smoothed", charts.smooth(raw), colour=0),
                ],
                label="training loss by step",
                marks=marks,
                format_value=lambda value: f"{value:.4f}",
            ),
        ),
        ("Held-out loss, nats per token", _held_out_chart(files.metrics.evals)),
        ("Learning rate", _single_chart(steps, "learning_rate", colour=2)),
        ("Tokens per second", _single_chart(steps, "tokens_per_s", colour=3)),
    ]
    return [{"title": name, "picture": picture} for name, picture in pictures if picture]


def _points(lines: list[Row], name: str) -> list[charts.Point]:
    return [(line["step"], line.get(name)) for line in lines]


def _held_out_chart(evals: list[Row]) -> Any:
    sources = list(dict.fromkeys(line["eval"] for line in evals))
    series = [
        charts.Series(
            name,
            _points([line for line in evals if line["eval"] == name], "loss"),
            colour=index + 1,
            has_dots=True,
        )
        for index, name in enumerate(sources)
    ]
    return charts.line_chart(
        series, label="held-out loss by step", format_value=lambda value: f"{value:.4f}"
    )


def _single_chart(steps: list[Row], name: str, *, colour: int) -> Any:
    label = name.replace("_", " ")
    series = charts.Series(label, _points(steps, name), colour=colour)
    return charts.line_chart([series], label=f"{label} by step", starts_at_zero=True)


def predictions(files: RunFiles) -> list[Row]:
    """Return predicted against measured memory and time, as bars."""
    if not files.plan:
        return []
    groups = [
        ("Peak memory", files.plan["memory"]["total"], "peak_memory_bytes", units.format_bytes),
        ("Time per step", files.plan["seconds_per_step"], "seconds_per_step", units.format_seconds),
    ]
    found = []
    for name, predicted, field, form in groups:
        pairs = [("predicted", predicted, 1)]
        if files.measured.get(field) is not None:
            pairs.append(("measured", files.measured[field], 0))
        found.append({"title": name, "bars": bars(pairs, form)})
    return found


def memory_parts(files: RunFiles) -> list[Row]:
    """Return the parts of the predicted memory, as bars."""
    if not files.plan:
        return []
    memory = files.plan["memory"]
    parts = [(part.replace("_", " "), memory[part], 5) for part in MEMORY_PARTS if memory[part]]
    return bars(parts, units.format_bytes)


def bars(
    parts: Sequence[tuple[str, charts.Number, int]], form: Callable[[charts.Number], str]
) -> list[Row]:
    """Return (name, value, colour) as bars for the template, the largest one full."""
    largest = max((value for _, value, _ in parts), default=0) or 1
    return [
        {
            "label": label,
            "value": form(value),
            "percent": round(100 * value / largest, 1),
            "colour": colour,
        }
        for label, value, colour in parts
    ]
