"""The drawn parts of a corpus's report: histograms of an expert, and a picture of each metric."""

from typing import Any

from mistral_jax.report import bar_chart
from mistral_jax.report import charts
from mistral_jax.report.corpus_batches import Metric
from mistral_jax.report.files import Row

PASSED, FAILED, BAR = 1, 0, 5  # colours


def length_chart(expert: str, lengths: list[int], edges: list[int]) -> Any:
    """Return the histogram of documents' tokens, from the first bin in use to the last."""
    used = [place for place, count in enumerate(lengths) if count]
    if not used:
        return None
    bins = [
        bar_chart.Bin(
            _short(_edge(edges, place)),
            f"{_edge(edges, place):,} to {_edge(edges, place + 1) - 1:,} tokens",
            lengths[place],
        )
        for place in range(used[0], used[-1] + 1)
    ]
    return bar_chart.bar_chart(bins, label=f"{expert}: documents by tokens", colour=1)


def _edge(edges: list[int], place: int) -> int:
    """Return a bin's lower edge; powers of two where the manifest names no more."""
    return edges[place] if place < len(edges) else 1 << place


def _short(tokens: int) -> str:
    for unit, name in ((1 << 20, "M"), (1 << 10, "k")):
        if tokens >= unit:
            return f"{tokens / unit:g}{name}"
    return str(tokens)


def difficulty_chart(expert: str, difficulty: Row) -> Any:
    """Return the histogram of documents' difficulty."""
    edges, counts = difficulty.get("edges", []), difficulty.get("counts", [])
    if len(edges) != len(counts) + 1:
        return None
    bins = [
        bar_chart.Bin(f"{low:g}", f"difficulty {low:g} to {high:g}", count)
        for low, high, count in zip(edges, edges[1:], counts)
    ]
    return bar_chart.bar_chart(bins, label=f"{expert}: documents by difficulty", colour=3)


def metric_chart(metric: Metric) -> Row | None:
    """Return the picture of a metric: a dot for each batch, the bar, failed ones in colour."""
    dots = [*metric.passed, *metric.failed]
    if not dots:
        return None
    first, last = min(number for number, _ in dots), max(number for number, _ in dots)
    name = metric.name.replace("_", " ")
    series = []
    if metric.threshold is not None:
        side = "at most" if metric.is_upper else "at least"
        ends: list[charts.Point] = [
            (first, metric.threshold),
            (max(last, first + 1), metric.threshold),
        ]
        series.append(charts.Series(f"{side} {metric.threshold:g}", ends, colour=BAR))
    for label, points, colour in (
        ("passed", metric.passed, PASSED),
        ("failed", metric.failed, FAILED),
    ):
        if points:
            series.append(charts.Series(label, list(points), colour=colour, has_line=False))
    picture = charts.line_chart(
        series, label=f"{name} of each batch", x_name="batch", starts_at_zero=True
    )
    total = metric.num_passed + metric.num_failed
    failed = f"{metric.num_failed:,} of {total:,} failed" if metric.threshold is not None else ""
    tone = "bad" if metric.num_failed else ""
    return {"title": name.capitalize(), "failed": failed, "tone": tone, "picture": picture}
