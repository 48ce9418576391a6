"""Line charts as inline SVG: axes with round ticks, a legend, a hover line with the exact values.

No script and no colours of its own: classes `s0`..`s5` and CSS variables of page.css give them, so
that the same SVG serves light and dark.
"""

import dataclasses
import html
import itertools
import math
from collections.abc import Callable

from markupsafe import Markup

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 40
MAX_POINTS = 400
MAX_HITS = 160
NUM_COLOURS = 6
ROUND_STEPS = (1, 2, 2.5, 5, 10)

Number = int | float  # JSON has both
Point = tuple[Number, Number | None]


@dataclasses.dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: for the legend and the hover text.
        points: (x, y) by rising x; y None or not finite breaks the line.
        colour: index of a CSS class, below NUM_COLOURS.
        is_faint: drawn thin and pale, as raw values behind a smoothed line.
        has_dots: a dot at every point.
        has_line: False for dots alone.
    """

    name: str
    points: list[Point]
    colour: int = 0
    is_faint: bool = False
    has_dots: bool = False
    has_line: bool = True


def finite(value: Number | None) -> bool:
    """Tell whether a value can be drawn."""
    return value is not None and math.isfinite(value)


def smooth(points: list[Point]) -> list[Point]:
    """Return the exponential mean over about a twelfth of the points, corrected at the start."""
    decay = 1 - 1 / max(3.0, len(points) / 12)
    total = weight = 0.0
    result: list[Point] = []
    for x, y in points:
        if y is None or not math.isfinite(y):
            result.append((x, None))
            continue
        total, weight = decay * total + y, decay * weight + 1
        result.append((x, total / weight))
    return result


def round_ticks(low: Number, high: Number, count: int) -> list[Number]:
    """Return about `count` round numbers that lie within [low, high]."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough = span / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in ROUND_STEPS if factor * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def format_number(value: Number) -> str:
    """Return a number short enough for an axis: 1.25, 12k, 4e-05."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if size >= 1e-3:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _thin(points: list, limit: int) -> list:
    """Return at most `limit` of the points, the first and the last among them."""
    if len(points) <= limit:
        return points
    stride = (len(points) - 1) / (limit - 1)
    return [points[round(index * stride)] for index in range(limit)]


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Data ranges, and the way from data to the picture."""

    low_x: Number
    high_x: Number
    low_y: Number
    high_y: Number

    def x(self, value: Number) -> float:
        share = (value - self.low_x) / ((self.high_x - self.low_x) or 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: Number) -> float:
        share = (value - self.low_y) / ((self.high_y - self.low_y) or 1)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _frame(series: list[Series], *, starts_at_zero: bool) -> _Frame | None:
    drawn = [(x, y) for one in series for x, y in one.points if finite(y)]
    if not drawn:
        return None
    low_x, high_x = min(x for x, _ in drawn), max(x for x, _ in drawn)
    low_y, high_y = min(float(y or 0) for _, y in drawn), max(float(y or 0) for _, y in drawn)
    pad = (high_y - low_y) * 0.06 or abs(high_y) * 0.1 or 1.0
    bottom = min(0.0, low_y) if starts_at_zero else low_y - pad
    return _Frame(low_x, high_x if high_x > low_x else low_x + 1, bottom, high_y + pad)


def line_chart(
    series: list[Series],
    *,
    label: str,
    x_name: str = "step",
    marks: list[tuple[Number, str]] | None = None,
    starts_at_zero: bool = False,
    format_value: Callable[[Number], str] = format_number,
) -> Markup | None:
    """Return an SVG and its legend; None where there is nothing to draw.

    Args:
        series: lines, later ones on top.
        label: what the picture shows, for screen readers.
        x_name: name of the horizontal axis.
        marks: vertical lines (x, name).
        starts_at_zero: whether the vertical axis includes zero.
        format_value: for the hover text.
    """
    frame = _frame(series, starts_at_zero=starts_at_zero)
    if frame is None:
        return None
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(label)}">',
        *_axes(frame, x_name),
        *_marks(frame, marks or []),
        *(_line(frame, one) for one in series),
        *_hits(frame, series, x_name, format_value),
        "</svg>",
        _legend(series),
    ]
    return Markup("".join(parts))  # every text in it went through html.escape


def _axes(frame: _Frame, x_name: str) -> list[str]:
    parts = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in round_ticks(frame.low_y, frame.high_y, 5):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{y}" dy=".35em" text-anchor="end">'
            f"{format_number(value)}</text>"
        )
    ticks = [t for t in round_ticks(frame.low_x, frame.high_x, 6) if t == int(t)]
    for value in ticks:
        x = frame.x(value)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(
            f'<text class="tick" x="{x}" y="{bottom + 18}" text-anchor="middle">'
            f"{format_number(value)}</text>"
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="name" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{html.escape(x_name)}</text>"
    )
    return parts


def _marks(frame: _Frame, marks: list[tuple[Number, str]]) -> list[str]:
    parts = []
    for row, (value, name) in enumerate(marks):
        if not frame.low_x <= value <= frame.high_x:
            continue
        x = frame.x(value)
        # Two marks that are near each other: one text to the left, the other to the right.
        is_left = x > WIDTH * 0.75 or (row == 0 and len(marks) > 1 and x > WIDTH * 0.3)
        anchor, shift = ("end", -5) if is_left else ("start", 5)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="note" x="{x + shift}" y="{TOP + 10 + 15 * row}" '
            f'text-anchor="{anchor}">{html.escape(name)}</text>'
        )
    return parts


def _line(frame: _Frame, series: Series) -> str:
    points = _thin(series.points, MAX_POINTS)
    runs: list[list[str]] = [[]]
    for x, y in points:
        if y is None or not math.isfinite(y):
            runs.append([])
        else:
            runs[-1].append(f"{frame.x(x)},{frame.y(y)}")
    style = f"s{series.colour % NUM_COLOURS}" + (" faint" if series.is_faint else "")
    lines = [
        f'<polyline class="line {style}" points="{" ".join(run)}"/>'
        for run in runs
        if run and series.has_line
    ]
    is_dotted = series.has_dots or not series.has_line or any(len(run) == 1 for run in runs)
    dots = [
        f'<circle class="dot {style}" cx="{at.split(",")[0]}" cy="{at.split(",")[1]}" r="3.5"/>'
        for run in runs
        for at in run
        if is_dotted
    ]
    return "".join(lines + dots)


def _hits(
    frame: _Frame, series: list[Series], x_name: str, format_value: Callable[[Number], str]
) -> list[str]:
    """Return invisible columns that show a line and the values when pointed at."""
    values = [{x: y for x, y in one.points if finite(y)} for one in series]
    xs = _thin(sorted({x for table in values for x in table}), MAX_HITS)
    places = [frame.x(x) for x in xs]
    edges = [LEFT, *((a + b) / 2 for a, b in itertools.pairwise(places)), WIDTH - RIGHT]
    parts = []
    for x, place, start, stop in zip(xs, places, edges, edges[1:]):
        lines = [f"{x_name} {x:g}"] + [
            f"{one.name} {format_value(float(table[x] or 0))}"
            for one, table in zip(series, values)
            if x in table
        ]
        title = html.escape("\n".join(lines))
        parts.append(
            f'<g class="hit"><rect x="{start:.1f}" y="{TOP}" width="{stop - start:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/><line x1="{place}" x2="{place}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"/><title>{title}</title></g>'
        )
    return parts


def _legend(series: list[Series]) -> str:
    if len(series) < 2:
        return ""
    items = "".join(
        f'<span><i class="s{one.colour % NUM_COLOURS}{" faint" if one.is_faint else ""}"></i>'
        f"{html.escape(one.name)}</span>"
        for one in series
    )
    return f'<div class="legend">{items}</div>'
