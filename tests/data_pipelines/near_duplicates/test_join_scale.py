"""The join of many documents: right, and in bounded memory. In a process of its own each."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.near_duplicates import runs
from data_pipelines.near_duplicates import signatures
from mistral_jax.config.near_duplicates import NearDuplicates

CONFIG = NearDuplicates()
TASK_DOCUMENTS = 50_000
EVERY = 20  # each of these rows is a near copy of the row after its place in the task before
JOIN = """
import json, pathlib, resource, sys, time
from data_pipelines.near_duplicates import join, runs
from mistral_jax.config.near_duplicates import NearDuplicates
folder, num_tasks, task_documents = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
start = time.time()
found = join.join([runs.Run(folder, task) for task in range(num_tasks)], NearDuplicates())
usage = resource.getrusage(resource.RUSAGE_SELF)
roots = found.representatives
moved = (roots != range(len(roots))).nonzero()[0]
print(json.dumps({
    "documents": len(roots), "moved": len(moved),
    "right": int((roots[moved] == moved - task_documents + 1).sum()),
    "candidates": found.num_candidates, "queries": found.num_queries,
    "peak_bytes": usage.ru_maxrss * 1024, "cpu_s": usage.ru_utime + usage.ru_stime,
    "wall_s": time.time() - start,
}))
"""


def write_tasks(folder, first, last) -> None:
    """Write tasks of random signatures: each 20th row has 95 % of its values from a known one."""
    for task in range(first, last):
        signed = random_signatures(task)
        if task:
            copies = random_signatures(task - 1)[1::EVERY]
            rng = np.random.default_rng((task, 1))
            is_new = rng.random(copies.shape) < 0.05
            signed[::EVERY] = np.where(is_new, signed[::EVERY], copies)
        writer = runs.RunWriter(runs.Run(folder, task), CONFIG)
        for at in range(0, TASK_DOCUMENTS, 5000):
            writer.add_signatures(signed[at : at + 5000])
        writer.close()


def random_signatures(task: int) -> np.ndarray:
    """Return the signatures of unrelated documents."""
    rng = np.random.default_rng(task)
    shape = (TASK_DOCUMENTS, CONFIG.permutations)
    return rng.integers(0, signatures.NO_VALUE, shape, np.uint32)


def measure(folder, num_tasks: int) -> dict:
    """Join in a fresh process; assert that it finds the planted copies, and nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", JOIN, str(folder), str(num_tasks), str(TASK_DOCUMENTS)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    print(found)
    planted = (num_tasks - 1) * TASK_DOCUMENTS // EVERY
    assert found["documents"] == num_tasks * TASK_DOCUMENTS
    assert found["right"] == found["moved"] >= 0.999 * planted
    assert found["moved"] <= planted
    return found


@pytest.mark.slow
def test_memory_is_flat_from_one_to_four_times_the_corpus(tmp_path):
    write_tasks(tmp_path, 0, 5)
    once = measure(tmp_path, 5)
    write_tasks(tmp_path, 5, 20)
    four = measure(tmp_path, 20)
    added = four["documents"] - once["documents"]
    assert four["peak_bytes"] <= 1.2 * once["peak_bytes"] + 200 * added


@pytest.mark.slow
def test_ten_million_documents_are_joined_in_bounded_memory(tmp_path):
    write_tasks(tmp_path, 0, 200)
    found = measure(tmp_path, 200)
    assert found["peak_bytes"] < 2 << 30


@pytest.mark.slow
def test_a_ray_cluster_finds_the_same_clusters(tmp_path):
    write_tasks(tmp_path, 0, 2)
    script = (
        "import hashlib, pathlib, sys\n"
        "from data_pipelines.near_duplicates import join, runs\n"
        "from mistral_jax.config.near_duplicates import NearDuplicates\n"
        "made = [runs.Run(pathlib.Path(sys.argv[1]), task) for task in range(2)]\n"
        "found = join.join(made, NearDuplicates(runner=sys.argv[2]))\n"
        "print(found.num_pairs, hashlib.sha256(found.representatives.tobytes()).hexdigest())\n"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), runner],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for runner in ("native", "ray")
    }
    assert len(results) == 1
    assert next(iter(results)).startswith("2500 ")
