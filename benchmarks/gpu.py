"""Every GPU row of the scoreboard in one run, offline, into one JSON; imports no jax.

`python -m benchmarks.gpu [--rows attention lora] [--minutes 9] [--out FILE] [--tiny]`. Each row is
a process of its own (gpu_rows/), so that it begins with an empty device and cannot take the others
down. A row that no longer fits the time is skipped and says so; any error makes the exit code 1.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure

FOLDER = Path(__file__).resolve().parent
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "tokamax",
    "triton",
    "jax-triton",
    "jax-cuda13-plugin",
)
# A row may take longer than estimated, if nothing else waits for the time.
PATIENCE = 3.0
END_SECONDS = 10
MOST_MEMORY = 0.95


@dataclasses.dataclass(frozen=True)
class Row:
    """A module of gpu_rows.

    Attributes:
        rows: its numbers on the scoreboard.
        estimate_s: on one H200, start of the process included; not begun with less time left.
        needs_gib: device memory below which it is not tried.
        cap_gib: device memory that it may take; None is nearly all.
    """

    rows: str
    estimate_s: int
    needs_gib: float
    cap_gib: float | None = None


# In the order of their worth, after the limits, which the others are measured by. The estimates
# are guesses: not yet run on a GPU.
ROWS = {
    "limits": Row("limits", 25, 12),
    "mixture": Row("P2, P18", 65, 40),
    "lora": Row("P7", 90, 20),
    "qlora": Row("P8", 70, 20, cap_gib=22),
    "decode": Row("P13", 60, 20),
    "attention": Row("P4", 60, 8),
    "dense": Row("P1", 45, 75),
    "cross_entropy": Row("P6", 35, 8),
    "prefill": Row("P14", 45, 20),
    "compiling": Row("P15", 40, 4),
}


def graphics_card() -> dict[str, Any]:
    """Return the first NVIDIA device's name, memory and driver, as far as they can be read."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"name": None, "memory_gib": None, "driver": None, "why": "no nvidia-smi"}
    query = "--query-gpu=name,memory.total,driver_version"
    command = [tool, query, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    fields = [field.strip() for field in (done.stdout.splitlines() or [""])[0].split(",")]
    if done.returncode or len(fields) != 3:
        return {"name": None, "memory_gib": None, "driver": None, "why": done.stderr[:200]}
    name, memory_mib, driver = fields
    memory = float(memory_mib) if memory_mib.replace(".", "").isdigit() else None
    return {"name": name, "memory_gib": memory and round(memory / 1024, 1), "driver": driver}


def peers_python() -> str:
    """Return the interpreter of the peers: as told, this one if it has torch, else the suite's."""
    told = os.environ.get(measure.PEERS_PYTHON)
    if told is not None:
        return told
    if importlib.util.find_spec("torch") is not None:
        return sys.executable
    return str(FOLDER.parent / ".venv-peers" / "bin" / "python")


def run_row(
    name: str, *, is_tiny: bool, peaks: dict[str, float], limit_s: float, share: float = MOST_MEMORY
) -> dict:
    """Return a row's facts and lines; a row that ends badly keeps the lines that it printed.

    JAX may take a `share` of the device's memory.
    """
    command = [sys.executable, "-m", f"benchmarks.gpu_rows.{name}"]
    command += ["--tiny"] if is_tiny else []
    for option, value in peaks.items():
        command += [f"--{option}", str(value)]
    environment = {
        **os.environ,
        # The peer shares the device: memory is taken as needed.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.4f}",
        measure.PEERS_PYTHON: peers_python(),
    }
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        # A session of its own, so that the peer ends with it.
        process = subprocess.Popen(
            command, cwd=FOLDER.parent, stdout=out, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip
        error = None
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            end(process)
            code, error = 0, f"stopped after {limit_s:.0f} s"
        out.seek(0)
        log.seek(0)
        printed = [json.loads(line) for line in out.read().splitlines() if line.startswith(b"{")]
        text = log.read().decode(errors="replace")
    if code:
        last = (text.strip().splitlines() or ["no message"])[-1]
        error = f"ended with code {code}: {last[:300]}"
    lines = [line for line in printed if "metric" in line]
    if error is not None:
        lines.append({"metric": name, "value": None, "error": error})
    if any(line["error"] for line in lines):
        print(text[-4000:], file=sys.stderr)
    facts = next((line["facts"] for line in printed if "facts" in line), {})
    return {"facts": facts, "lines": lines, "seconds": round(time.monotonic() - started, 1)}


def end(process: subprocess.Popen) -> None:
    """End a row's process and its peer."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def refusal(row: Row, memory_gib: float | None, left_s: float) -> str | None:
    """Return why a row is not begun, or None."""
    if left_s < row.estimate_s:
        return f"out of time: {left_s:.0f} s are left, it takes about {row.estimate_s} s"
    if memory_gib is not None and memory_gib < row.needs_gib:
        return f"needs {row.needs_gib:g} GiB of device memory, here are {memory_gib:g}"
    return None


def show(line: dict) -> str:
    """Return a line for the terminal."""
    if line.get("skipped"):
        return f"{line['metric']}: skipped, {line['skipped']}"
    if line["error"]:
        return f"{line['metric']}: FAILED, {line['error']}"
    shares = ("of_spec", "of_gemm", "of_limit", "of_ideal", "of_best", "of_materialised_time")
    shown = [f"{name} {line[name]}" for name in shares if line.get(name) is not None]
    against = "" if line["ratio"] is None else f", {line['ratio']}x {line['peer']}"
    return f"{line['metric']}: {line['value']} {line['unit']}{against}" + "".join(
        f", {part}" for part in shown
    )


def run_rows(names: list[str], *, is_tiny: bool, seconds: float, card: dict) -> list[dict]:
    """Run the rows in order and print their lines."""
    started = time.monotonic()
    done: list[dict] = []
    peaks: dict[str, float] = {}
    for name in names:
        row = ROWS[name]
        left_s = seconds - (time.monotonic() - started)
        memory_gib = None if is_tiny else card["memory_gib"]
        result: dict[str, Any] = {"row": name, "scoreboard": row.rows}
        if reason := refusal(row, memory_gib, left_s):
            line = {"metric": name, "value": None, "error": None, "skipped": reason}
            result |= {"facts": {}, "lines": [line], "seconds": 0.0}
        else:
            limit_s = min(left_s, PATIENCE * row.estimate_s)
            share = MOST_MEMORY
            if row.cap_gib is not None and memory_gib:
                share = min(share, row.cap_gib / memory_gib)
            result |= run_row(name, is_tiny=is_tiny, peaks=peaks, limit_s=limit_s, share=share)
        for line in result["lines"]:
            line["row"] = name
            print(show(line), flush=True)
            if line.get("case") == "matmul":
                peaks["gemm-tflops"] = line["value"]
            if line.get("case") == "copy":
                peaks["copy-gb-per-s"] = line["value"]
        done.append(result)
    return done


def versions() -> dict[str, str]:
    """Return the versions of what is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(arguments: list[str]) -> int:
    """Run, write, return the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=tuple(ROWS))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="toy shapes, on any platform")
    options = parser.parse_args(arguments)
    card = graphics_card()
    if card["name"] is None and not options.tiny:
        print(f"no NVIDIA GPU was found ({card['why']}); --tiny runs anywhere", file=sys.stderr)
        return 2
    names = [name for name in ROWS if name in options.rows]
    began = time.monotonic()
    rows = run_rows(names, is_tiny=options.tiny, seconds=60 * options.minutes, card=card)
    lines = [line for row in rows for line in row["lines"]]
    facts = [row["facts"] for row in rows if row["facts"]]
    peers = [fact["peer_versions"] for fact in facts if fact.get("peer_versions")]
    report = {
        "device": facts[0]["device"] if facts else card["name"],
        "driver": card["driver"],
        "memory_gib": card["memory_gib"],
        "machine": measure.machine(),
        "versions": versions() | (peers[0] if peers else {}),
        "date": datetime.date.today().isoformat(),
        "is_tiny": options.tiny,
        "seconds": round(time.monotonic() - began, 1),
        "seconds_by_row": {row["row"]: row["seconds"] for row in rows},
        "rows": lines,
    }
    label = re.sub(r"\W+", "_", str(report["device"]).lower()).strip("_")
    tiny = "_tiny" if options.tiny else ""
    path = options.out or FOLDER / "results" / f"gpu_{label}{tiny}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    failed = [line for line in lines if line["error"]]
    skipped = [line for line in lines if line.get("skipped")]
    print(f"{len(lines)} lines, {len(failed)} failed, {len(skipped)} skipped: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
