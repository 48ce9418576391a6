"""Checkpoints whose bytes have changed: noticed, said, and the step before is taken."""

import random
from pathlib import Path

import pytest

from mistral_jax import job
from mistral_jax.config import load

pytestmark = pytest.mark.faults

CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "dense.yaml"
SEED = 20261121
NUM_STEPS = 24
NUM_FLIPS = 8


def go_on(workshop, name: str) -> list[str]:
    """Go on with a run in this process; return what was said."""
    said: list[str] = []
    run = load.load_run(CONFIG, workshop.overrides(name))
    result = job.train(run, say=said.append)
    assert (result.reason, result.step) == ("done", NUM_STEPS)
    return said


def array_files(directory: Path) -> list[Path]:
    """Return the files of the newest step's arrays, largest first."""
    files = list((directory / "checkpoints" / str(NUM_STEPS) / "state").rglob("*"))
    return sorted((p for p in files if p.is_file()), key=lambda p: (-p.stat().st_size, p))


def assert_noticed_or_harmless(workshop, directory: Path) -> bool:
    """Go on; return whether the newest step was set aside, and the step before taken.

    Bytes that no array is read from (a name, a gap) may change without harm: then the restored
    step has passed its digests, array by array, and nothing is said.
    """
    said = go_on(workshop, directory.name)
    is_set_aside = any("set aside a damaged checkpoint" in line for line in said)
    resumed_at = NUM_STEPS - 1 if is_set_aside else NUM_STEPS
    assert f"going on at step {resumed_at} of {NUM_STEPS}" in said
    assert (directory / "checkpoints-damaged" / str(NUM_STEPS)).is_dir() == is_set_aside
    assert workshop.losses(directory.name) == workshop.losses("whole")
    return is_set_aside


@pytest.mark.parametrize("number", range(NUM_FLIPS))
def test_flipped_bit_in_the_newest_step_is_noticed(workshop, number: int) -> None:
    directory = workshop.copy(f"flip{number}")
    generator = random.Random(SEED + number)
    # The arrays' bytes; the rest of a step is Orbax's own bookkeeping.
    path = array_files(directory)[0]
    data = bytearray(path.read_bytes())
    place = generator.randrange(len(data))
    data[place] ^= 1 << generator.randrange(8)
    path.write_bytes(data)
    assert_noticed_or_harmless(workshop, directory)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_of_the_newest_step_is_noticed(workshop, kept: float) -> None:
    directory = workshop.copy(f"cut{kept}")
    path = array_files(directory)[0]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    is_set_aside = assert_noticed_or_harmless(workshop, directory)
    assert is_set_aside or kept > 0.9  # the last bytes may be of no array


def test_two_damaged_steps_fall_back_to_the_third(workshop) -> None:
    directory = workshop.copy("two")
    for step in (NUM_STEPS, NUM_STEPS - 1):
        for path in (directory / "checkpoints" / str(step) / "state").rglob("*"):
            if path.is_file() and path.stat().st_size > 1000:
                path.write_bytes(path.read_bytes()[:100])
    said = go_on(workshop, "two")
    assert sum("set aside a damaged checkpoint" in line for line in said) == 2
    assert f"going on at step {NUM_STEPS - 2} of {NUM_STEPS}" in said
    assert workshop.losses("two") == workshop.losses("whole")
