"""What 1 TB and 100 TB would take: CPU-hours, wall time and cost, from the measured rates.

Every figure is one of: a rate out of results/ (corpus_engine.json, pdf_pages.json), a machine's
price and number of vCPUs as listed (MACHINES says where and when), or a sum of them. Assumed: map
and encode are linear in bytes and run at full width; the join's work grows with the number of
documents; a vCPU of the machine gives between 0.5 and 1.2 of a core here. Not in it: storage,
transfer, idle tails, failed machines, generators. `python -m benchmarks.projection [--table]`
prints one line of JSON, or a table for docs/data.md.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks import measure

RESULTS = Path(__file__).resolve().parent / "results"
TERABYTE = 1e12
SIZES_TB = (1, 100)
INPUTS = {"text": "text", "pdf": "PDF", "plain_pdf": "PDF of text alone"}
CORE_FACTORS = (0.5, 1.0, 1.2)


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine to rent.

    Attributes:
        vcpus: as the vendor counts them.
        count: how many at once.
        usd_per_hour: list price, on demand, Linux.
        source: of the price, and when it was read.
    """

    name: str
    vcpus: int
    count: int
    usd_per_hour: float
    source: str


LISTED = "third-party copies of the vendor's list, read 2026-11; not checked with the vendor"
MACHINES = (
    Machine("AWS c6a.48xlarge", 192, 8, 7.344, f"us-east-1; {LISTED}"),
    Machine("GCP c2d-standard-112", 112, 8, 5.08, f"list of 2026-08; {LISTED}"),
    Machine("AWS g5.2xlarge", 8, 1, 1.212, "launch/targets/g5_2xlarge.yaml: list, not re-checked"),
)


def read(name: str) -> dict[str, Any]:
    """Return a result of this folder.

    Raises:
        SystemExit: it has not been measured.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path}: expected a measured result; run python -m benchmarks {name}")
    return json.loads(path.read_bytes())


def core_hours(engine: dict[str, Any], pdf: dict[str, Any]) -> dict[str, float]:
    """Return the core-hours of this machine for a terabyte of each kind of input.

    A terabyte of PDF has as many pages as its pages are small: by the bytes of the real ones here,
    and, as an upper bound, by those of plain ones that hold nothing but text.
    """
    whole = engine["everything_on"]["value"]  # MB of text a CPU-second, tokens included
    reading = pdf["out_of_zip"]["value"]
    page_s = 1 / reading + pdf["characters_a_page"] / 1e6 / whole
    return {
        "text": TERABYTE / 1e6 / whole / 3600,
        "pdf": TERABYTE / pdf["real_bytes_a_page"] * page_s / 3600,
        "plain_pdf": TERABYTE / pdf["bytes_a_page"] * page_s / 3600,
    }


def rows_of(hours: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for each size, kind of input and machine."""
    rows = []
    for size in SIZES_TB:
        for kind in hours:
            for machine in MACHINES:
                by_factor = [size * hours[kind] / factor for factor in CORE_FACTORS]
                rows.append(
                    {
                        "terabytes": size,
                        "input": kind,
                        "machine": machine.name,
                        "machines": machine.count,
                        "vcpu_hours": [round(each) for each in by_factor],
                        "wall_hours": [
                            round(each / machine.vcpus / machine.count, 2) for each in by_factor
                        ],
                        "usd": [
                            round(each / machine.vcpus * machine.usd_per_hour) for each in by_factor
                        ],
                    }
                )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| input | machines | vCPU-hours | wall hours | USD |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        told = [_told(row[key]) for key in ("vcpu_hours", "wall_hours", "usd")]
        what = f"{row['terabytes']} TB {INPUTS[row['input']]}"
        lines.append(f"| {what} | {row['machines']} x {row['machine']} | {' | '.join(told)} |")
    return "\n".join(lines)


def _told(values: list[float]) -> str:
    slow, same, _ = values
    return f"{same:,.10g} ({slow:,.10g} at half speed)"


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="Markdown instead of JSON")
    options = parser.parse_args()
    engine, pdf = read("corpus_engine"), read("pdf_pages")
    hours = core_hours(engine, pdf)
    rows = rows_of(hours)
    if options.table:
        print(table(rows))
        return
    measure.report(
        "projection: core-hours of this machine for a terabyte of text, from measured rates",
        value=round(hours["text"]),
        unit="core-hours / TB",
        peer="a terabyte of PDF",
        peer_value=round(hours["pdf"]),
        ratio=round(hours["pdf"] / hours["text"], 2),
        plain_pdf=round(hours["plain_pdf"]),
        inputs={
            "text_megabytes_per_cpu_s": engine["everything_on"]["value"],
            "pdf_pages_per_cpu_s_out_of_zip": pdf["out_of_zip"]["value"],
            "pdf_bytes_a_page": pdf["real_bytes_a_page"],
            "plain_pdf_bytes_a_page": pdf["bytes_a_page"],
            "pdf_characters_a_page": pdf["characters_a_page"],
            "measured": {"corpus_engine": engine["date"], "pdf_pages": pdf["date"]},
            "measured_on": engine["machine"],
        },
        assumptions={
            "core_factors": list(CORE_FACTORS),
            "linear": "map and encode by bytes, the join by documents; rows of 16 kB as measured: "
            "many short rows cost more",
            "left_out": "storage, transfer, idle tails, failed machines, generators",
        },
        machines=[dataclasses.asdict(machine) for machine in MACHINES],
        rows=rows,
        command="python -m benchmarks.projection",
    )


if __name__ == "__main__":
    main()
