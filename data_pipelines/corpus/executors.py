"""Where tasks run: in this process, in processes of this machine, or on a Ray cluster.

A task is (module, number) of a job folder, and all that it does is in files under that folder, so
every executor gives the same result. worker.py is what a process runs.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.corpus import worker
from mistral_jax.config.corpus import Executor
from mistral_jax.config.corpus import RayExecutor

MAX_TRIES = 2
Done = tuple[int, dict[str, Any]]


class TaskFailed(ValueError):
    """A task cannot be done; the message says which and why."""


def run_tasks(executor: Executor, job: Path, module: str, numbers: Iterable[int]) -> Iterator[Done]:
    """Do tasks, and yield (number, what it said) of each as it ends, in any order.

    Tasks begin in the order given; no more of them begin when the caller stops asking.

    Args:
        executor: where.
        job: the job's folder; see job.py.
        module: whose function `run(job, number)` does a task.
        numbers: the tasks.

    Raises:
        TaskFailed: a task ended with an error, or its process died twice.
    """
    if isinstance(executor, RayExecutor):
        yield from _on_ray(executor, job, module, numbers)
        return
    count = executor.workers or os.cpu_count() or 1
    if count == 1:
        for number in numbers:
            yield number, worker.run(job, module, number)
        return
    with _Workers(job, count) as workers:
        yield from workers.run(module, numbers)


class _Workers:
    """Processes that take a line each and answer with a line."""

    def __init__(self, job: Path, count: int):
        self._job = job
        self._count = count
        self._selector = selectors.DefaultSelector()
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            _end(process)
        self._selector.close()

    def run(self, module: str, numbers: Iterable[int]) -> Iterator[Done]:
        waiting = iter(numbers)
        again: list[int] = []
        tries: dict[int, int] = {}

        def give(process: subprocess.Popen | None) -> bool:
            """Hand the next task to a process, a new one where None; False without a task."""
            number = again.pop() if again else next(waiting, None)
            if number is None:
                return False
            process = process or self._start()
            tries[number] = tries.get(number, 0) + 1
            assert process.stdin is not None and process.stdout is not None, "started with pipes"
            with contextlib.suppress(BrokenPipeError):  # it has died; its stdout tells
                process.stdin.write(json.dumps({"module": module, "number": number}) + "\n")
                process.stdin.flush()
            self._selector.register(process.stdout, selectors.EVENT_READ, (process, number))
            return True

        for _ in range(self._count):
            if not give(None):
                break
        while self._selector.get_map():
            for key, _ in self._selector.select():
                process, number = key.data
                self._selector.unregister(key.fileobj)
                answer = process.stdout.readline()
                if answer:
                    yield number, _checked(json.loads(answer), module, number)
                    give(process)
                    continue
                _end(process)
                self._processes.remove(process)
                if tries[number] >= MAX_TRIES:
                    raise TaskFailed(
                        f"{self._job}: the process of task {number} of stage {_stage_of(module)} "
                        f"died twice (exit {process.returncode}); if memory is short, take fewer "
                        "executor.workers"
                    )
                again.append(number)
                give(None)

    def _start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", worker.__name__, str(self._job)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=-1,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._processes.append(process)
        return process


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


def _stage_of(module: str) -> str:
    return module.rpartition(".")[2].removesuffix("_task")


def _checked(answer: dict[str, Any], module: str, number: int) -> dict[str, Any]:
    if "error" in answer:
        raise TaskFailed(f"task {number} of stage {_stage_of(module)}: {answer['error']}")
    return answer["result"]


def _on_ray(
    executor: RayExecutor, job: Path, module: str, numbers: Iterable[int]
) -> Iterator[Done]:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "executor.kind=ray: Ray is not installed; set up with MISTRAL_JAX_LOCKS='data ray'"
        ) from None
    if not ray.is_initialized():
        where = None if executor.address == "local" else executor.address
        cpus = executor.workers or None if where is None else None
        ray.init(where, num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(worker.answer)
    at_once = executor.workers or int(ray.cluster_resources().get("CPU", 1))
    waiting = iter(numbers)
    running: dict[Any, int] = {}
    while True:
        while len(running) < at_once and (number := next(waiting, None)) is not None:
            running[remote.remote(str(job), module, number)] = number
        if not running:
            return
        finished, _ = ray.wait(list(running), num_returns=1)
        number = running.pop(finished[0])
        yield number, _checked(ray.get(finished[0]), module, number)
