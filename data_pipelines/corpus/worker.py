"""What a process of the executors runs: tasks by (stage, number), one JSON line in, one out."""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

# Modules are imported by name when a stage first needs them: encoding needs no language model.
STAGES = {
    "map": "data_pipelines.corpus.map_task",
    "encode": "data_pipelines.corpus.encode_task",
}


def run(job: Path, stage: str, number: int) -> dict[str, Any]:
    """Do one task and return what it says of its result."""
    return importlib.import_module(STAGES[stage]).run(job, number)


def answer(job: str, stage: str, number: int) -> dict[str, Any]:
    """Do one task; return {"result": ...}, or {"error": one sentence}."""
    try:
        return {"result": run(Path(job), stage, number)}
    except Exception as error:  # noqa: BLE001  the border of a process: all becomes a line
        if os.environ.get("MISTRAL_JAX_DEBUG"):
            raise
        return {"error": f"{error}" if isinstance(error, ValueError) else f"{error!r}"}


def main() -> None:
    """Answer lines until stdin ends."""
    job = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the lines
    for line in sys.stdin:
        task = json.loads(line)
        answers.write(json.dumps(answer(job, task["stage"], task["number"])) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
