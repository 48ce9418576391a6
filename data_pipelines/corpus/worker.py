"""What a process of the executors runs: tasks by (module, number), one JSON line in, one out."""

import importlib
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any


def run(job: Path, module: str, number: int) -> dict[str, Any]:
    """Do one task, by the function `run` of a module; return what it says of its result."""
    return importlib.import_module(module).run(job, number)


def answer(job: str, module: str, number: int) -> dict[str, Any]:
    """Do one task; return {"result": ...}, or {"error": one sentence}."""
    try:
        return {"result": run(Path(job), module, number)}
    except Exception as error:  # the border of a process: all becomes a line
        if os.environ.get("MISTRAL_JAX_DEBUG"):
            raise
        return {"error": f"{error}" if isinstance(error, ValueError) else f"{error!r}"}


def main() -> None:
    """Answer lines until stdin ends."""
    job = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the lines
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    while True:
        task = json.loads(lines.get())
        answers.write(json.dumps(answer(job, task["module"], task["number"])) + "\n")
        answers.flush()


def _listen(lines: "queue.SimpleQueue[str]") -> None:
    """Pass lines on; when they end, so does the process, in the middle of a task too.

    Whoever gave the tasks was killed then, and the next one may begin to write the same parts.
    """
    for line in sys.stdin:
        lines.put(line)
    os._exit(1)


if __name__ == "__main__":
    main()
