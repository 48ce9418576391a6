"""Which tasks of the stage `map` are needed, under the limits of documents."""

from typing import Any

from data_pipelines.corpus.job import Job


class NeededTasks:
    """Which tasks are needed at all: none after `max_documents`, whatever the order of ends."""

    def __init__(self, job: Job):
        self._job = job
        self._said: dict[int, dict[str, Any]] = {}
        self._next = 0
        self._num_pdfs = 0
        self._num_rows = [0] * len(job.makers)
        self._last_of: dict[int, int] = {}
        self._last: int | None = None

    def add(self, number: int, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """Take what a task said; return what counts from now on, in the order of the tasks."""
        self._said[number] = entry
        counting = []
        while self._next < len(self._job.tasks) and (
            self._next in self._said or not self.is_wanted(self._next)
        ):
            said = self._said.pop(self._next, None)
            if said is None or not self.is_wanted(self._next):  # a process may have been too eager
                self._next += 1
                continue
            counting.append(said)
            maker = self._job.tasks[self._next]["maker"]
            self._num_pdfs += said["pdfs"]
            self._num_rows[maker] += said["documents"]
            limit = self._limit_of(maker)
            if limit is not None and self._num_rows[maker] >= limit:
                self._last_of.setdefault(maker, self._next)
            if self._last is None and self._num_pdfs >= self._job.config.max_documents:
                self._last = self._next
            self._next += 1
        return counting

    def is_wanted(self, number: int) -> bool:
        """Return whether a task has rows that may be kept, as far as is known."""
        task = self._job.tasks[number]
        if number > self._last_of.get(task["maker"], number):
            return False
        return self._last is None or number <= self._last or "files" not in task

    def _limit_of(self, maker: int) -> int | None:
        listed = self._job.config.sources
        return listed[maker].max_documents if maker < len(listed) else None
