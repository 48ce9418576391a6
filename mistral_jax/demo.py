"""The main job, end to end, on this machine: documents in, a fine-tuned model out, a report.

Everything runs through the same code as `train` and `export`; the training is a child process,
killed once on purpose to show that the run goes on bit for bit.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from launch import plan as plan_lib
from launch import plan_table
from launch import target as target_lib
from mistral_jax import convert
from mistral_jax import corpus
from mistral_jax import doctor
from mistral_jax import export
from mistral_jax import metrics
from mistral_jax import run_directory
from mistral_jax.config import load
from mistral_jax.config import run as run_config
from mistral_jax.report import write as report

CONFIG = corpus.ROOT / "configs" / "demo" / "finetune.yaml"
EXPORTS = (("peft", "float32"), ("hf", "float32"), ("gguf", "float16"))
SAVED_STEP, KILLED_STEP = 20, 25
POLL_S, CHILD_LIMIT_S = 0.1, 1800
NOTE = (
    "SmolLM2-135M-Instruct stands in for a 7B here, so that two CPU cores are enough. "
    "Every step below is the same code for a Mistral checkpoint."
)


def run(overrides: list[str]) -> int:
    """Run the demo, or show the report of the finished one; `fresh=true` starts beside it."""
    console = Console()
    started = time.monotonic()
    is_fresh = "fresh=true" in overrides
    others = [text for text in overrides if not text.startswith("fresh=")]
    directory = run_directory.choose(load.load_run(CONFIG, others), fresh=is_fresh)
    finished = directory / "report.html"
    if (directory / "export" / "parity.json").is_file() and finished.is_file():
        console.print(f"The demo is finished: [bold]{finished.resolve()}[/bold]")
        console.print("Run it again beside this one: ./run demo fresh=true")
        return 0
    arguments = [*others, f"output={directory}", f"data.train={directory / 'corpus'}"]
    experiment = load.load_run(CONFIG, arguments)
    _show_machine(console, experiment)
    console.rule("2  documents")
    folder = corpus.build(directory / "corpus")
    for path in sorted(folder.iterdir()):
        console.print(f"  {path.name}  {path.stat().st_size / 1024:,.0f} KiB")
    console.rule("3  fine-tune with LoRA, kill it, go on")
    _train_with_a_kill(console, arguments, directory)
    console.rule("4  export, and read back")
    _export(console, directory)
    console.rule("5  report")
    path = report.write_report(directory, notes=[NOTE], next_commands=_next_commands(directory))
    _show_end(console, directory, path, time.monotonic() - started)
    return 0


def _show_machine(console: Console, experiment: run_config.RunConfig) -> None:
    console.rule("1  this machine, and the plan")
    for finding in doctor.check():
        if not finding.ok:
            console.print(f"  [red]{finding.name}[/red]: {finding.detail}; {finding.fix}")
    console.print(plan_table.plan_table(plan_lib.resolve(experiment, _local())))
    console.print(NOTE)


def _local() -> target_lib.Target:
    return target_lib.load_target("local_cpu")


def _train_with_a_kill(console: Console, arguments: list[str], directory: Path) -> None:
    command = [sys.executable, "-m", "mistral_jax.cli", "train", str(CONFIG), *arguments]
    log = directory / metrics.METRICS_FILE
    before: dict[int, str] = {}
    if _last_step(log) < SAVED_STEP:
        child = subprocess.Popen(command)
        limit = time.monotonic() + CHILD_LIMIT_S
        while child.poll() is None and _last_step(log) < KILLED_STEP:
            if time.monotonic() > limit:
                child.kill()
                raise TimeoutError(f"no step {KILLED_STEP} within {CHILD_LIMIT_S} s; see {log}")
            time.sleep(POLL_S)
        if child.poll() is not None:
            raise OSError(f"training ended by itself with code {child.returncode}; see above")
        child.send_signal(signal.SIGKILL)
        child.wait()
        before = _losses(log)
        console.print(f"\nkilled with -9 at step {max(before)}; starting the same command again\n")
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise OSError(f"training ended with code {done.returncode}; see above")
    if before:
        _write_resume(console, directory, before, _losses(log))


def _write_resume(
    console: Console, directory: Path, before: dict[int, str], after: dict[int, str]
) -> None:
    saved = max(step for step in before if step % SAVED_STEP == 0)
    steps = [
        {
            "step": step,
            "before_hex": before[step],
            "after_hex": after[step],
            "equal": before[step] == after[step],
        }
        for step in sorted(before)
        if step > saved
    ]
    content = {"killed_at": max(before), "resumed_at": saved, "steps": steps}
    (directory / "resume.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    equal = sum(row["equal"] for row in steps)
    console.print(f"{equal} of {len(steps)} losses after the kill are equal in every bit")


def _losses(log: Path) -> dict[int, str]:
    return {row["step"]: row["loss_hex"] for row in metrics.read_metrics(log).steps}


def _last_step(log: Path) -> int:
    return max(_losses(log), default=0) if log.is_file() else 0


def _export(console: Console, directory: Path) -> None:
    folder = directory / "export"
    done: list[export.Exported] = []
    model = convert.artifact.load_run(directory, compute="float32")
    expected = export.reference_logits(model.reader(), model.definition.config)
    for format, dtype in EXPORTS:
        exported = convert.export_artifact(
            model, folder / format, format=format, dtype=dtype, expected=expected
        )
        done.append(exported)
        console.print(
            f"  {format:5} {exported.size_bytes / 2**20:7.1f} MiB  "
            f"largest logit difference {exported.largest_logit_difference:.2g}  {exported.path}"
        )
    export.write_parity(folder, done)


def _next_commands(directory: Path) -> list[tuple[str, str]]:
    return [
        ("Talk to the model you just trained", f"./run chat {directory}"),
        (
            "Train on your own folder of documents",
            "./run train configs/demo/finetune.yaml data.train=~/my_docs output=runs/my_docs",
        ),
        (
            "The same on a real Mistral, one 24 GB GPU",
            "./run train configs/mistral_7b/lora.yaml --target g5_2xlarge "
            "model.weights=~/Mistral-7B-v0.3 data.train=~/my_docs",
        ),
    ]


def _show_end(console: Console, directory: Path, path: Path, seconds: float) -> None:
    results: dict[str, Any] = json.loads((directory / "eval.json").read_text(encoding="utf-8"))
    for name, row in results["sources"].items():
        console.print(
            f"  held-out loss, {name}: {row['before']:.3f} -> {row['after']:.3f} "
            f"({row['difference']:+.3f}, 95 % interval {row['interval_low']:+.3f} to "
            f"{row['interval_high']:+.3f}, {row['rows']} rows)"
        )
    console.print(f"\n  {seconds / 60:.1f} minutes. Report: [bold]{path.resolve()}[/bold]\n")
    for what, command in _next_commands(directory):
        console.print(f"  {what}:\n    {command}", highlight=False, soft_wrap=True)
