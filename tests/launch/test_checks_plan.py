"""launch/checks_plan.py: what is said of the time of a run whose data decides its length."""

from pathlib import Path

import pytest

from launch import start
from tests.launch import preflights

EPOCHS = ("optimizer.max_steps=null", "data.epochs=3")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    preflights.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_hours_of_epochs_are_not_known_here(place: Path) -> None:
    seen = preflights.context(*EPOCHS)
    assert "hours depend on the data" in preflights.passes("time", seen).detail
    assert seen.plan is not None
    assert "hours and cost depend on the data" in start._summary(seen.plan)


def test_a_limit_of_hours_is_said_where_the_hours_are_not_known(place: Path) -> None:
    seen = preflights.context(*EPOCHS, "data.global_batch_sequences=16", target="slurm_h100")
    answer = preflights.fails("time", seen, status="warning")
    assert "launcher.time_limit ends the run after" in answer.detail
