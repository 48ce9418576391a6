"""Training processes that are killed or asked to stop, and then go on: the same bits."""

import random
import signal
import time

import pytest

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
def test_asked_to_stop_a_run_saves_exits_0_and_says_how_to_go_on(workshop, wait, number) -> None:
    name = number.name
    process = workshop.start(name)
    assert wait(lambda: workshop.last_step(name) >= 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    step = workshop.last_step(name)
    assert 3 <= step < 24, "the run ended before the signal came"
    assert f"{name}: saved at step {step}; run the same command to go on" in out
    assert not (workshop.folder / name / "report.html").exists()
    assert f"going on at step {step} of 24" in workshop.finish(name)
    assert workshop.losses(name) == workshop.losses("whole")
