"""Training processes that are killed or asked to stop, and then go on: the same bits."""

import random
import signal
import time

import pytest

from mistral_jax import checkpoint
from mistral_jax.config.evaluate import CheckpointConfig

pytestmark = pytest.mark.faults

SEED = 20261121
NUM_KILLS = 5


def test_killed_at_random_points_a_run_ends_with_the_same_bits(workshop, wait) -> None:
    generator = random.Random(SEED)
    checkpoints = workshop.folder / "killed" / "checkpoints"
    num_killed = num_while_saving = 0
    for number in range(NUM_KILLS):
        process = workshop.start("killed")
        if number == 0:  # while the data is prepared, or at the latest before the first step
            came = wait(lambda: (workshop.folder / "killed").exists(), process)
        else:
            first = workshop.last_step("killed")
            wanted = first + generator.randint(1, 4)
            came = wait(lambda wanted=wanted: workshop.last_step("killed") >= wanted, process)
            if number % 2:  # in the middle of a save
                came = wait(lambda: any(checkpoints.glob("*tmp*")), process)
            else:
                time.sleep(generator.uniform(0, 0.03))
        assert came
        num_while_saving += any(checkpoints.glob("*tmp*"))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        num_killed += process.returncode == -signal.SIGKILL
    assert num_killed == NUM_KILLS, "the process ended before it was killed"
    assert num_while_saving >= 1, "no kill met a save"
    out = workshop.finish("killed")
    assert "going on at step" in out
    assert "damaged" not in out, "a kill must not damage a finished checkpoint"
    assert workshop.losses("killed") == workshop.losses("whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_a_run_saves_exits_130_and_says_how_to_go_on(workshop, wait, number) -> None:
    name = number.name
    process = workshop.start(name)
    assert wait(lambda: workshop.last_step(name) >= 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    step = workshop.last_step(name)
    assert 3 <= step < 24, "the run ended before the signal came"
    assert f"{name}: saved at step {step}; run the same command to go on" in out
    assert not (workshop.folder / name / "report.html").exists()
    assert f"going on at step {step} of 24" in workshop.finish(name)
    assert workshop.losses(name) == workshop.losses("whole")


@pytest.mark.filterwarnings("ignore:left out of the choice")
def test_others_may_look_at_a_live_run_but_not_train_in_it(workshop, wait) -> None:
    process = workshop.start("live")
    assert wait(lambda: workshop.last_step("live") >= 3, process)
    process.send_signal(signal.SIGSTOP)
    second = workshop.start("live")
    _, err = second.communicate(timeout=120)
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 3, err
    assert "another process trains this run now" in err
    assert "Traceback" not in err
    folder = workshop.folder / "live" / "checkpoints"
    seen = set()
    while process.poll() is None:
        reader = checkpoint.Checkpointer(folder, CheckpointConfig(), is_reader=True)
        seen.update(reader.steps())
        reader.best_step()
        reader.close()
    assert len(seen) > 3, "nothing was saved while others looked"
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (out, err)
    assert workshop.losses("live") == workshop.losses("whole")
