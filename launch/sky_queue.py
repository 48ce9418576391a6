"""Refuses a managed job whose name SkyPilot has in its queue: `sky jobs launch` would add another.

`python -m launch.sky_queue --name NAME`; exit code 3 where a job of that name has not ended. It
asks `sky jobs queue`, whose JSON SkyPilot 0.14 has, and changes nothing. Two launches in the same
seconds still make two jobs: SkyPilot takes no name for itself alone. Standard library only.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

ASK = ("sky", "jobs", "queue", "--skip-finished", "--all", "--output=json")
# What sky says, with an exit code of failure, where its controller is not there or has stopped.
NO_JOBS = "No in-progress managed jobs"
EXIT_DONE, EXIT_FAILED, EXIT_GATE = 0, 1, 3


class Unanswered(ValueError):
    """SkyPilot gave no list; the message holds its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Look for the name, and return the exit code."""
    parser = argparse.ArgumentParser(prog="sky_queue")
    parser.add_argument("--name", required=True)
    name = parser.parse_args(arguments).name
    try:
        jobs = [job for job in queue() if job.get("job_name") == name]
    except Unanswered as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    except FileNotFoundError:
        print("error: there is no program 'sky' on PATH; install SkyPilot", file=sys.stderr)
        return EXIT_FAILED
    if not jobs:
        return EXIT_DONE
    told = ", ".join(f"{job.get('job_id')} ({job.get('status')})" for job in jobs)
    print(
        f"error: managed job {told} of the name {name} has not ended, and a second one would train "
        f"beside it: follow it with 'sky jobs logs --name={name}', or end it with 'sky jobs cancel "
        f"--yes --name={name}' and launch again",
        file=sys.stderr,
        flush=True,
    )
    return EXIT_GATE


def queue() -> list[dict[str, Any]]:
    """Return the user's managed jobs that have not ended, in SkyPilot's keys.

    Raises:
        Unanswered: SkyPilot failed, or printed something else.
    """
    done = subprocess.run(
        ASK, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        if NO_JOBS in done.stdout + done.stderr:
            return []
        said = (done.stderr.strip() or done.stdout.strip())[-500:]
        raise Unanswered(f"sky jobs queue does not tell which jobs there are ({said})")
    lines = done.stdout.splitlines()  # a server's own lines may stand in front of the list
    starts = [index for index, line in enumerate(lines) if line.startswith("[")]
    try:
        jobs = json.loads("\n".join(lines[starts[-1] :]))
    except (IndexError, ValueError):
        raise Unanswered(
            f"sky jobs queue printed no JSON list ({done.stdout[:200]!r}); SkyPilot 0.14 does"
        ) from None
    return jobs


if __name__ == "__main__":
    sys.exit(main())
