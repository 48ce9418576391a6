"""Histograms as inline SVG: counts over bins, the names of the bins below, exact counts on hover.

Colours are classes of page.css, as in charts.py.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 360, 150
LEFT, RIGHT, TOP, BOTTOM = 4, 4, 16, 26
MAX_NAMES = 6
MIN_BAR_HEIGHT = 1.5  # a bin with one document among millions is still seen
FILL = 0.86  # of a bin's width


@dataclasses.dataclass(frozen=True)
class Bin:
    """One bar: what stands below its left edge, what is counted in it, and how many."""

    name: str
    title: str
    count: int


def bar_chart(bins: Sequence[Bin], *, label: str, colour: int = 0) -> Markup | None:
    """Return an SVG; None where there is nothing to count.

    Args:
        bins: from left to right.
        label: what the picture shows, for screen readers.
        colour: index of a CSS class, 0 to 5.
    """
    largest = max((each.count for each in bins), default=0)
    if not largest:
        return None
    width = (WIDTH - LEFT - RIGHT) / len(bins)
    bottom = HEIGHT - BOTTOM
    stride = math.ceil(len(bins) / MAX_NAMES)
    parts = [
        f'<svg class="chart bins" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(label)}">'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    ]
    for place, each in enumerate(bins):
        x = LEFT + place * width
        parts.append(_bar(each, x, width, largest, bottom, colour))
        if place % stride == 0:
            parts.append(
                f'<text x="{x + width * (1 - FILL) / 2:.1f}" y="{bottom + 17}">'
                f"{html.escape(each.name)}</text>"
            )
    parts.append("</svg>")
    return Markup("".join(parts))  # every text in it went through html.escape


def _bar(each: Bin, x: float, width: float, largest: int, bottom: int, colour: int) -> str:
    height = (bottom - TOP) * each.count / largest
    height = max(height, MIN_BAR_HEIGHT) if each.count else 0.0
    title = html.escape(f"{each.title}: {each.count:,}")
    peak = ""
    if each.count == largest:  # the only number on the axis: the highest bar's
        # Near an edge the text grows inwards.
        middle = x + width / 2
        anchor = "start" if middle < 50 else "end" if middle > WIDTH - 50 else "middle"
        at = x if anchor == "start" else x + width if anchor == "end" else middle
        peak = (
            f'<text x="{at:.1f}" y="{bottom - height - 5:.1f}" text-anchor="{anchor}">'
            f"{each.count:,}</text>"
        )
    return (
        f'<rect class="f{colour}" x="{x + width * (1 - FILL) / 2:.1f}" y="{bottom - height:.1f}" '
        f'width="{width * FILL:.1f}" height="{height:.1f}"><title>{title}</title></rect>{peak}'
    )
