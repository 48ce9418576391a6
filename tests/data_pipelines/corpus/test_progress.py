"""corpus/progress.py: counts, time left and speed; plain lines where there is no terminal."""

import io

import pytest
from rich.console import Console

from data_pipelines.corpus import progress


class Clock:
    """Seconds that the test turns on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def entry(accepted: int, rejected: int, rows: int, size_bytes: int = 0) -> dict:
    read = {"web": {"accepted": accepted, "rejected": {"empty": rejected}, "examples": []}}
    return {"read": read, "rows": rows, "bytes": size_bytes}


def plain(clock: Clock) -> tuple[progress.Progress, io.StringIO]:
    stream = io.StringIO()
    return progress.Progress(console=Console(file=stream, width=200), clock=clock), stream


def test_rows_are_counted_and_the_time_left_is_that_of_the_bytes_left():
    clock = Clock()
    shown = progress.Progress(is_silent=True, clock=clock)
    shown.stage("map", 4, total_bytes=80_000_000)
    assert shown.eta_s() is None
    clock.now += 10
    shown.task_done(entry(90, 10, 70, size_bytes=20_000_000))
    assert (shown.rows_read, shown.rows_kept, shown.rows_rejected) == (100, 70, 30)
    assert shown.eta_s() == pytest.approx(30.0)
    line = "map 1/4  read 100  kept 70  rejected 30  MB/s 2.0  ETA 0:30  elapsed 0:10"
    assert shown.line() == line


def test_tasks_of_an_earlier_run_cost_no_time():
    clock = Clock()
    shown = progress.Progress(is_silent=True, clock=clock)
    shown.stage("encode", 10, done=6)
    clock.now += 8
    shown.task_done({"rows": 5, "rejected": {}})
    assert shown.eta_s() == pytest.approx(24.0)
    assert shown.line().startswith("encode 7/10")
    assert shown.rows_read == 0


def test_plain_lines_come_at_the_edges_and_every_ten_seconds():
    clock = Clock()
    shown, stream = plain(clock)
    with shown:
        shown.stage("inventory", 1)
        shown.stage("map", 100, done=1)
        for _ in range(99):
            clock.now += 1
            shown.task_done(entry(1, 0, 1))
        shown.say("a word")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "inventory: done in 0:00"
    assert lines[1] == "map: 100 tasks, 1 of them done by an earlier run"
    assert lines[2] == "map 11/100  read 10  kept 10  ETA 1:29  elapsed 0:10"
    assert len(lines) == 2 + 9 + 2
    assert lines[-2:] == ["a word", "map: done in 1:39, 99 tasks"]
    shown.close()
    assert stream.getvalue().splitlines() == lines


def test_a_silent_one_counts_and_prints_nothing(capfd):
    with progress.Progress.silent() as shown:
        shown.stage("map", 2)
        shown.task_done(entry(3, 0, 3))
        shown.say("nobody hears this")
    assert shown.rows_read == 3
    assert capfd.readouterr().out == ""


def test_the_panel_has_bar_and_facts_and_goes_with_close(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    clock = Clock()
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True)
    with progress.Progress(console=console, clock=clock) as shown:
        shown.stage("map", 3)
        clock.now += 5
        shown.task_done(entry(1200, 34, 1000, size_bytes=10_000_000))
        panel = Console(file=io.StringIO(), width=100)
        panel.print(shown.render())
        text = panel.file.getvalue()
    for part in (
        "preparing",
        "map",
        "━",
        "1/3",
        "read 1,234",
        "kept 1,000",
        "MB/s 2.0",
        "ETA 0:10",
    ):
        assert part in text, part
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back
