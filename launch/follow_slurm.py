"""Submits an sbatch job once and follows it to its end, over its stays in the queue.

`python -m launch.follow_slurm submit --folder F -- SBATCH...` and `... follow --folder F`. F/job
holds the job's number, F/job-N.log its log, F/exit-N the run's exit code once it has ended.
Standard library only.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

JOB = "job"
UNKNOWN = "Invalid job id"  # what squeue says of a job that it has forgotten
EXIT_DONE, EXIT_FAILED = 0, 1
NO_ANSWER = 5  # times in a row before the job counts as gone: a controller may be restarting


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two verbs."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="follow_slurm")
    parser.add_argument("verb", choices=("submit", "follow"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--poll-s", type=float, default=5.0)
    options = parser.parse_args(words[:split])
    try:
        if options.verb == "submit":
            return submit(options.folder, words[split + 1 :])
        return follow(options.folder, options.poll_s)
    except FileNotFoundError as error:
        print(f"error: {error}; is this a login node of the cluster?", file=sys.stderr)
        return EXIT_FAILED


def submit(folder: Path, sbatch: list[str]) -> int:
    """Submit, unless the job of an earlier launch is queued or runs."""
    if (folder / JOB).exists():
        job = (folder / JOB).read_text(encoding="utf-8").strip()
        code, complaint, state = _ask(job)
        if state is not None:
            print(f"job {job} was submitted before: {state}", flush=True)
            return EXIT_DONE
        if code and UNKNOWN not in complaint and not (folder / f"exit-{job}").exists():
            print(
                f"error: squeue does not tell whether job {job} of an earlier launch runs "
                f"({complaint.strip()[:300]}); launch again when it answers: a second job would "
                "train beside the first",
                file=sys.stderr,
            )
            return EXIT_FAILED
    done = subprocess.run(
        sbatch, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    print(done.stderr, end="", file=sys.stderr, flush=True)
    if done.returncode:
        return done.returncode
    job = done.stdout.strip().partition(";")[0]  # NUMBER;CLUSTER on a federation
    if not job.isdecimal():
        print(f"error: expected a job's number of sbatch, got {done.stdout!r}", file=sys.stderr)
        return EXIT_FAILED
    (folder / JOB).write_text(f"{job}\n", encoding="utf-8")
    print(f"submitted job {job}", flush=True)
    return EXIT_DONE


def follow(folder: Path, poll_s: float) -> int:
    """Show the job's states and log until it is over; return the run's exit code."""
    job = (folder / JOB).read_text(encoding="utf-8").strip()
    log, end = folder / f"{JOB}-{job}.log", folder / f"exit-{job}"
    seen, told, unanswered = 0, None, 0
    while True:
        has_ended, state = end.exists(), _state(job)  # first: what was written before is read after
        if state is not None and state != told:
            print(f"job {job}: {state}", flush=True)
            told = state
        seen += _copy(log, seen)
        if has_ended:
            return int(end.read_text(encoding="utf-8"))
        unanswered = unanswered + 1 if state is None else 0
        if unanswered > NO_ANSWER:
            print(
                f"error: job {job} has left the queue without an exit code: cancelled, or its node "
                f"failed; 'sacct --jobs={job}' tells, and launching again goes on",
                file=sys.stderr,
            )
            return EXIT_FAILED
        time.sleep(poll_s)


def _state(job: str) -> str | None:
    """Return the job's state, with the reason where it waits; None where it is not in the queue."""
    return _ask(job)[2]


def _ask(job: str) -> tuple[int, str, str | None]:
    """Return squeue's exit code, its complaint, and the state."""
    argv = ["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T|%r"]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    state, _, reason = done.stdout.strip().partition("|")
    over = ("", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
    if done.returncode or state in over:
        return done.returncode, done.stderr, None
    shown = f"{state} ({reason})" if state == "PENDING" and reason != "None" else state
    return done.returncode, done.stderr, shown


def _copy(log: Path, start_byte: int) -> int:
    """Print what a log holds beyond a byte; return how much that was."""
    try:
        with log.open("rb") as file:
            file.seek(start_byte)
            block = file.read()
    except FileNotFoundError:
        return 0
    sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()
    return len(block)


if __name__ == "__main__":
    sys.exit(main())
