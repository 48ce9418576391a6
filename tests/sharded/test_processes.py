"""Runs of two and four processes on loopback against the same run as one process."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mistral_jax import convert
from tests import processes

pytestmark = pytest.mark.sharded

TOLERANCE = 1e-5  # relative: other devices add up in another order


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> processes.Workshop:
    return processes.Workshop(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def one(workshop: processes.Workshop) -> dict:
    return workshop.train("one", "local_cpu", 1, 1)


@pytest.fixture(scope="module")
def two(workshop: processes.Workshop) -> dict:
    """Return the losses of two processes of two devices, parameters split over all four."""
    return workshop.train("two", workshop.target(2, 2), 2, 2)


def assert_same(found: dict, wanted: dict) -> None:
    assert list(found) == list(wanted)
    np.testing.assert_allclose([*found.values()], [*wanted.values()], rtol=TOLERANCE)


def test_two_processes_have_the_losses_of_one(workshop, one, two) -> None:
    assert_same(two, one)
    directory = workshop.folder / "two"
    assert json.loads((directory / "manifest.json").read_text())["processes"] == 2
    assert (directory / "report.html").is_file()
    assert (directory / "eval.json").is_file()


def test_four_processes_on_a_mixed_mesh_go_on_from_the_last_sound_step_of_two(
    workshop, one, two
) -> None:
    directory = workshop.folder / "two_on_four"
    shutil.copytree(workshop.folder / "two", directory)
    (directory / "measured.json").unlink()
    parts = (directory / "checkpoints" / "6" / "state" / "ocdbt.process_1" / "d").iterdir()
    largest = max(parts, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])  # only some of the four read it
    prompts = 'evaluate.sample_prompts=["a mesh", "of", "hosts", "a"]'
    found = workshop.train(
        "two_on_four", workshop.target(4, data=2), 4, 1, prompts, "evaluate.sample_max_tokens=2"
    )
    assert_same(found, one)
    assert "set aside a damaged checkpoint" in workshop.said(0)
    assert "going on at step 3 of 6" in workshop.said(0)
    assert (directory / "checkpoints-damaged" / "6").is_dir()
    samples = json.loads((directory / "samples" / "step_000006.json").read_text())
    assert len(samples["samples"]) == 4


def test_one_process_goes_on_from_a_checkpoint_of_two(workshop, one, two) -> None:
    workshop.without_end("two", "two_on_one")
    assert_same(workshop.train("two_on_one", "local_cpu", 1, 1), one)
    assert "going on at step 3 of 6" in workshop.said(0)


def test_adapters_on_a_base_from_disk_with_rows_shared_by_the_processes(workshop, one) -> None:
    base = workshop.folder / "base"
    convert.export_model(str(workshop.folder / "one"), str(base), format="hf", dtype="float32")
    more = [f"model.weights={base}", "data.tokenizer=bytes", "checkpoint.every_steps=6"]
    alone = workshop.train("lora_one", "local_cpu", 1, 1, *more, config="lora")
    # The tensor axis lies over both processes: each reads the rows of the whole batch.
    across = workshop.target(2, tensor=2)
    assert_same(workshop.train("lora_two", across, 2, 1, *more, config="lora"), alone)


def test_another_number_of_processes_than_the_targets_is_refused(workshop) -> None:
    command = workshop.command("refused", workshop.target(4))
    group = workshop.start(command, 2, 1)
    assert [process.wait(timeout=processes.LONGEST_S) for process in group] == [2, 2]
    assert "wants 4 process(es), one a host, but 2 take(s) part" in workshop.complained(0)
    assert "error:" not in workshop.complained(1), "the first process speaks for all"
    assert not Path(workshop.folder / "refused").exists()
