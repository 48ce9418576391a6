"""A compiled step's report (compile_run.py, as JSON values) as Markdown and as one SVG.

The SVG stands alone: a stacked bar of a device's memory, and bars of the step's time by part.
"""

import html
import json
from pathlib import Path
from typing import Any

from mistral_jax.report import charts
from mistral_jax.report import units

Report = dict[str, Any]
WIDTH, LEFT, RIGHT = charts.WIDTH, 150, 92
BAR, GAP, TOP, LEGEND = 24, 12, 30, 24
MEMORY_PARTS = (
    ("parameters", "parameters"),
    ("frozen_parameters", "frozen parameters"),
    ("optimizer_state", "optimizer state"),
    ("batch", "batch"),
    ("temporaries", "temporaries"),
    ("code", "program"),
)
# The colours of page.css, light and dark, so that the picture stands alone.
STYLE = (
    "svg{--ink:#1b1a18;--soft:#6a665f;--rule:#e4e1da;--s0:#e4520e;--s1:#2563eb;--s2:#0d8f7f;"
    "--s3:#8b3fd9;--s4:#b7791f;--s5:#64748b}"
    "@media (prefers-color-scheme:dark){svg{--ink:#f0ede8;--soft:#a39d93;--rule:#35322e;"
    "--s0:#ff7a3d;--s1:#6ea0ff;--s2:#3ecfbb;--s3:#bf8cff;--s4:#e6b450;--s5:#94a3b8}}"
    "text{font:12.5px system-ui,sans-serif;fill:var(--soft)}.t{font-weight:600;fill:var(--ink)}"
    ".rail{fill:none;stroke:var(--rule)}.limit{stroke:var(--ink);stroke-dasharray:4 3}"
) + "".join(f".f{index}{{fill:var(--s{index})}}" for index in range(charts.NUM_COLOURS))


def write_json(report: Report, path: str | Path) -> None:
    """Write the report as JSON."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def write_all(report: Report, folder: str | Path) -> None:
    """Write JSON, Markdown and the picture, named after the run and the target."""
    base = Path(folder) / f"{report['run']}_on_{report['target']}"
    write_json(report, base.with_suffix(".json"))
    base.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    base.with_suffix(".svg").write_text(svg(report), encoding="utf-8")


def markdown(report: Report) -> str:
    """Return the report as Markdown; readable in a terminal as it is."""
    return (
        "\n\n".join(["## " + f"{report['run']} on {report['target']}", *_paragraphs(report)]) + "\n"
    )


def _paragraphs(report: Report) -> list[str]:
    return [
        _table(("what", "value"), _shape_rows(report)),
        "Memory of one device, from the compiler:",
        _table(("part", "size"), _memory_rows(report)),
        "Collectives of one device and step, read from the compiled module (loops counted as often "
        "as they turn); sent bytes by ring algorithms:",
        _table(("kind", "mesh axes", "devices", "runs", "buffers", "sent"), _sum_rows(report)),
        "What sends most, by place in the program:",
        _table(("kind", "mesh axes", "runs", "sent", "operation"), _largest_rows(report)),
        "Time of a step. Rooflines are lower bounds, each part alone at its full rate; times at a "
        "share of the peak are assumptions, not measurements:",
        _table(("part", "time"), _roofline_rows(report)),
        _table(
            ("assumed share of the peak", "step", "tokens/s", "days per 10^12 tokens", "USD"),
            _assumed_rows(report),
        ),
        _notes(report),
    ]


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(cells: tuple[str, ...]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(heads), rule, *(line(row) for row in rows)])


def _shape_rows(report: Report) -> list[tuple[str, ...]]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    tokens = report["global_batch_sequences"] * report["sequence_length"]
    devices = f"{report['num_devices']:,} x {report['accelerator_type']}"
    topology = "x".join(map(str, report["topology"]))
    share = report["active_parameters"] / report["parameters"]
    kernels = ", ".join(
        f"{name} {report[name]}" for name in ("attention", "experts", "remat") if report[name]
    )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return [
        ("devices", f"{devices}, topology {topology}"),
        ("mesh", mesh or "one device"),
        ("parameters", f"{report['parameters']:,}"),
        ("active for a token", f"{report['active_parameters']:,} ({share:.1%})"),
        ("trained, by", f"{report['trainable_parameters']:,}, {report['optimizer']}"),
        ("tokens a step", f"{tokens:,} = {report['global_batch_sequences']:,} rows of "
                          f"{report['sequence_length']:,}"),
        ("rows in a pass, passes", f"{report['micro_batch_sequences']} a device, "
                                   f"{report['accumulation']}"),
        ("how", kernels),
        ("equations of the step", f"{report['num_equations']:,}"),
        ("traced, compiled", f"{report['trace_s']:.1f} s, {report['compile_s']:.0f} s"),
        ("versions", versions),
    ]  # fmt: skip


def _memory_rows(report: Report) -> list[tuple[str, ...]]:
    memory = report["memory"]
    available = memory["available"]
    spare = 1 - memory["total"] / available
    rows = [(name, units.format_bytes(memory[part])) for part, name in MEMORY_PARTS if memory[part]]
    return [
        *rows,
        ("arguments as compiled", units.format_bytes(memory["arguments"])),
        ("outputs, of them in the arguments' place",
         f"{units.format_bytes(memory['outputs'])}, {units.format_bytes(memory['aliased'])}"),
        ("total", f"{units.format_bytes(memory['total'])} of {units.format_bytes(available)}, "
                  f"{spare:.1%} spare"),
        ("closed-form estimate (plan)", units.format_bytes(memory["predicted_total"])),
    ]  # fmt: skip


def _sum_rows(report: Report) -> list[tuple[str, ...]]:
    rows = [
        (each["kind"], _axes(each), f"{each['group']:,}", f"{each['count']:,}",
         units.format_bytes(each["buffer_bytes"]), units.format_bytes(each["sent_bytes"]))
        for each in report["collectives"]
    ]  # fmt: skip
    return rows or [("none", "-", "-", "-", "-", "-")]


def _largest_rows(report: Report) -> list[tuple[str, ...]]:
    rows = [
        (each["kind"], _axes(each), f"{each['count']:,}", units.format_bytes(each["sent_bytes"]),
         _short(each["source"]))
        for each in report["largest"]
    ]  # fmt: skip
    return rows or [("none", "-", "-", "-", "-")]


def _axes(each: Report) -> str:
    return ", ".join(each["axes"]) or "-"


def _short(source: str) -> str:
    """Return an operation's place without what every place has."""
    noise = ("while", "body", "eval_jaxpr", "closed_call", "jit(train_step)", "")
    kept = [part for part in source.split("/") if part not in noise]
    return "`" + "/".join(kept) + "`" if kept else "-"


def _times(report: Report) -> list[tuple[str, float]]:
    roofline = report["roofline"]
    parts = [
        ("compute", roofline["compute_s"]),
        ("with recomputation", roofline["executed_s"]),
        ("main memory", roofline["hbm_s"]),
        ("interconnect", roofline["ici_s"]),
    ]
    return [(name, value) for name, value in parts if value is not None]


def _roofline_rows(report: Report) -> list[tuple[str, ...]]:
    compute = report["roofline"]["compute_s"]
    rows = [
        (name, f"{units.format_seconds(value)}, {value / compute:.0%} of compute")
        for name, value in _times(report)
    ]
    predicted = units.format_seconds(report["predicted_seconds_per_step"])
    return [
        *rows,
        ("FLOPs of the mathematics, executed",
         f"{report['model_flops']:.3e}, {report['executed_flops']:.3e}"),
        ("main memory traffic of a device", units.format_bytes(report["hbm_bytes"])),
        ("predicted (plan)", f"{predicted}, {report['calibration']}"),
    ]  # fmt: skip


def _assumed_rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (
            f"{each['utilization']:.0%}",
            units.format_seconds(each["seconds_per_step"]),
            f"{each['tokens_per_s']:,.0f}",
            f"{each['days_per_trillion_tokens']:,.1f}",
            _dollars(each["usd_per_trillion_tokens"]),
        )
        for each in report["assumed"]
    ]


def _dollars(value: float | None) -> str:
    return "no price known" if value is None else f"{value:,.0f}"


def _notes(report: Report) -> str:
    notes = [
        "Interconnect: all links of a chip busy, nothing hidden behind compute. Main memory: "
        "operands and results of every fusion."
    ]
    if report["unknown_loops"]:
        notes.append(
            f"Trip counts of {len(report['unknown_loops'])} loops could not be read; they count "
            "once."
        )
    return " ".join(notes)


def svg(report: Report) -> str:
    """Return the picture as a whole SVG file."""
    memory, times = _memory_bar(report, TOP), _times(report)
    start = TOP + BAR + 86
    parts = [*memory, _title(start - 10, "Seconds of a step at the full rate of each part")]
    longest = max((value for _, value in times), default=0) or 1
    for row, (name, value) in enumerate(times):
        y = start + row * (BAR + GAP)
        width = (WIDTH - LEFT - RIGHT) * value / longest
        parts.append(_text(LEFT - 8, y + BAR / 2, name, anchor="end"))
        parts.append(_rect(LEFT, y, width, min(row, 5), f"{name}: {units.format_seconds(value)}"))
        parts.append(_text(LEFT + width + 6, y + BAR / 2, units.format_seconds(value)))
    height = start + len(times) * (BAR + GAP) + 6
    label = html.escape(f"memory and time of {report['run']} on {report['target']}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{label}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _memory_bar(report: Report, y: charts.Number) -> list[str]:
    memory = report["memory"]
    available, total = memory["available"], memory["total"]
    scale = (WIDTH - LEFT - RIGHT) / max(available, total)
    title = f"Memory of one device: {units.format_bytes(total)} of {units.format_bytes(available)}"
    parts = [_title(y - 10, title), _text(LEFT - 8, y + BAR / 2, report["target"], anchor="end")]
    width = (WIDTH - LEFT - RIGHT) * available / max(available, total)
    parts.append(f'<rect class="rail" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}"/>')
    x, legend_x, legend_y = float(LEFT), float(LEGEND), y + BAR + 10
    drawn = [(name, memory[part]) for part, name in MEMORY_PARTS if memory[part] * scale >= 0.5]
    for colour, (name, size) in enumerate(drawn):
        text = f"{name} {units.format_bytes(size)}"
        parts.append(_rect(x, y, size * scale, colour, text))
        x += size * scale
        if legend_x + 7 * len(text) + 14 > WIDTH:
            legend_x, legend_y = float(LEGEND), legend_y + 18
        parts.append(_rect(legend_x, legend_y, 10, colour, name, height=10))
        parts.append(_text(legend_x + 14, legend_y + 5, text))
        legend_x += 7 * len(text) + 24
    parts.append(
        f'<line class="limit" x1="{LEFT + width:.1f}" x2="{LEFT + width:.1f}" y1="{y - 4}" '
        f'y2="{y + BAR + 4}"/>'
    )
    return parts


def _title(y: charts.Number, text: str) -> str:
    return f'<text class="t" x="{LEFT}" y="{y:.1f}">{html.escape(text)}</text>'


def _text(x: charts.Number, y: charts.Number, text: str, *, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


def _rect(
    x: charts.Number,
    y: charts.Number,
    width: charts.Number,
    colour: int,
    title: str,
    *,
    height: charts.Number = BAR,
) -> str:
    return (
        f'<rect class="f{colour % charts.NUM_COLOURS}" x="{x:.1f}" y="{y:.1f}" '
        f'width="{width:.1f}" height="{height}"><title>{html.escape(title)}</title></rect>'
    )
