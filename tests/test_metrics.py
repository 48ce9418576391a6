"""metrics.py: every step once in the file, whatever happens, and a panel that can be read."""

import io
import json
import math
import subprocess
import sys

import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from mistral_jax import metrics


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def write_steps(folder, first, last, *, resume_step=0):
    with metrics.MetricsWriter(
        folder, total_steps=20, resume_step=resume_step, console=quiet()
    ) as writer:
        for step in range(first, last + 1):
            writer.log(step, loss=1 / step, tokens_per_s=100.0)


def test_steps_come_back_with_the_exact_loss(tmp_path):
    write_steps(tmp_path, 1, 5)
    steps = metrics.read_metrics(tmp_path / "metrics.jsonl").steps
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert float.fromhex(steps[2]["loss_hex"]) == 1 / 3 == steps[2]["loss"]


def test_resume_drops_later_steps_so_that_each_stands_once(tmp_path):
    write_steps(tmp_path, 1, 8)
    with metrics.MetricsWriter(tmp_path, total_steps=20, resume_step=8, console=quiet()) as writer:
        writer.log_eval(8, "docs", 2.0)
        writer.log_eval(9, "docs", 1.5)
        writer.log_text(9, "sample", "later")
    write_steps(tmp_path, 6, 10, resume_step=5)
    log = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in log.steps] == list(range(1, 11))
    assert (log.evals, log.texts) == ([], [])


def test_resume_keeps_the_held_out_losses_before_it(tmp_path):
    with metrics.MetricsWriter(tmp_path, total_steps=20, console=quiet()) as writer:
        writer.log_eval(0, "docs", 2.5)
        writer.log(1, loss=2.0)
    write_steps(tmp_path, 2, 3, resume_step=1)
    (line,) = metrics.read_metrics(tmp_path / "metrics.jsonl").evals
    assert (line["eval"], float.fromhex(line["loss_hex"])) == ("docs", 2.5)


def test_a_run_that_saved_nothing_writes_its_step_0_again(tmp_path):
    for loss in (2.5, 2.25):
        with metrics.MetricsWriter(tmp_path, total_steps=20, console=quiet()) as writer:
            writer.log_eval(0, "docs", loss)
    (line,) = metrics.read_metrics(tmp_path / "metrics.jsonl").evals
    assert line["loss"] == 2.25


def test_line_cut_short_by_a_crash_is_left_out_and_repaired(tmp_path):
    write_steps(tmp_path, 1, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert [line["step"] for line in metrics.read_metrics(path).steps] == [1, 2]
    write_steps(tmp_path, 3, 4, resume_step=2)
    assert [line["step"] for line in metrics.read_metrics(path).steps] == [1, 2, 3, 4]
    assert path.read_bytes().endswith(b"\n")


def test_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\nnonsense\n{"step":3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is not a metrics line"):
        metrics.read_metrics(path)


def test_nan_loss_is_valid_json(tmp_path):
    with metrics.MetricsWriter(tmp_path, total_steps=2, console=quiet()) as writer:
        writer.log(1, loss=math.nan)
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    line = json.loads(text, parse_constant=pytest.fail)
    assert (line["loss"], line["loss_hex"]) == (None, "nan")


def test_killed_process_loses_no_finished_line(tmp_path):
    code = (
        "import io, os, signal, sys; from rich.console import Console\n"
        "from mistral_jax import metrics\n"
        "console = Console(file=io.StringIO())\n"
        "w = metrics.MetricsWriter(sys.argv[1], total_steps=9, console=console)\n"
        "[w.log(step, loss=0.5) for step in (1, 2, 3)]\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert len(metrics.read_metrics(tmp_path / "metrics.jsonl").steps) == 3


def test_tensorboard_file_holds_the_scalars(tmp_path):
    write_steps(tmp_path, 1, 2)
    (path,) = (tmp_path / "tensorboard").iterdir()
    tags, data, offset = set(), path.read_bytes(), 0
    while offset < len(data):  # record: length 8, checksum 4, event, checksum 4
        size = int.from_bytes(data[offset : offset + 8], "little")
        event = event_pb2.Event.FromString(data[offset + 12 : offset + 12 + size])
        tags |= {(value.tag, event.step) for value in event.summary.value}
        offset += 16 + size
    assert ("train/loss", 2) in tags


def test_plain_lines_without_a_terminal(tmp_path):
    console = quiet()
    with metrics.MetricsWriter(tmp_path, total_steps=2, console=console) as writer:
        writer.log(1, loss=2.5, tokens_per_s=1234.0)
        writer.log_eval(1, "docs", 2.25)
        writer.say("a [bracket] stays")
    shown = console.file.getvalue()
    assert "step 1/2  loss 2.5000  tok/s 1,234  MFU n/a" in shown
    assert "held-out loss of docs 2.2500" in shown
    assert "a [bracket] stays" in shown
    assert "\x1b" not in shown


def test_panel_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with metrics.MetricsWriter(tmp_path, total_steps=4, console=console) as writer:
        for step in (1, 2, 3, 4):
            writer.log(step, loss=4.0 - step, tokens_per_s=50.0, mfu=0.41)
        writer.log_eval(4, "docs", 1.125)
    shown = console.file.getvalue()
    for fact in ("training", "4/4", "41.0%", "docs 1.1250", "█▆▃▁"):
        assert fact in shown


def test_ci_gets_plain_lines_even_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "true")
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with metrics.MetricsWriter(tmp_path, total_steps=1, console=console) as writer:
        writer.log(1, loss=1.0)
    assert "training" not in console.file.getvalue()
    assert "step 1/1" in console.file.getvalue()


def test_sparkline_spans_lowest_to_highest():
    assert metrics.sparkline([3.0, 2.0, 1.0], 10) == "█▅▁"
    assert metrics.sparkline([1.0] * 5, 3) == "▁▁▁"
    assert len(metrics.sparkline([float(i) for i in range(1000)], 40)) == 40
    assert metrics.sparkline([math.nan], 10) == ""


def test_metrics_imports_no_jax():
    code = "import sys; from mistral_jax import metrics; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
