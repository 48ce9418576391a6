"""Asks gcloud again where one answer is not enough: `... -m launch.queued_resource VERB -- ARGV`.

`request` runs a create unless the queued resource is there, `wait` a describe until it is ACTIVE,
`agree` a command on every host that has to print the same versions. The command behind `--` is
run as it stands. Standard library only.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence

from launch import versions

EXIT_DONE, EXIT_FAILED = 0, 1
REMIND_S = 600.0
PATIENCE_S = 900.0  # so long gcloud may fail while we wait: a queue takes hours, a network fails
# What the states of a queued resource mean to who waits.
STATES = {
    "CREATING": "the request is being written down",
    "ACCEPTED": "in the queue; nothing is paid yet",
    "WAITING_FOR_RESOURCES": "in the queue; nothing is paid yet",
    "PROVISIONING": "chips are found; the hosts start",
    "ACTIVE": "the slice is there, and paid from now on",
    "SUSPENDING": "the hosts are being taken away",
    "SUSPENDED": "the hosts were taken away",
    "DELETING": "the slice is being deleted",
    "FAILED": "the request failed",
}
GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")


class Refused(ValueError):
    """The slice cannot be had, or its hosts differ; the message says what to do."""


class Unanswered(Refused):
    """gcloud failed; asked again, it may answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="queued_resource")
    parser.add_argument("verb", choices=("request", "wait", "agree"))
    parser.add_argument("--poll-s", type=float, default=20.0)
    parser.add_argument("--hosts", type=int, default=1)
    options = parser.parse_args(words[:split])
    argv = words[split + 1 :]
    if not argv:
        parser.error("expected a command behind --")
    try:
        match options.verb:
            case "request":
                return request(argv)
            case "wait":
                return wait(argv, options.poll_s)
            case _:
                return agree(argv, options.hosts)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    except FileNotFoundError:
        print(f"error: there is no program {argv[0]!r} on PATH; install it", file=sys.stderr)
        return EXIT_FAILED


def request(create: list[str]) -> int:
    """Create the queued resource, unless it is there; one that lost its slice is replaced.

    Raises:
        Refused: the one that is there failed, or gcloud does not answer.
    """
    # gcloud compute tpus queued-resources create NAME [options]
    kept = [word for word in create[6:] if word.startswith(("--zone=", "--project=", "--quiet"))]
    describe = [*create[:4], "describe", create[5], *kept, "--format=json"]
    state, reason = _state(describe)
    if state in ("SUSPENDED", "SUSPENDING"):
        _say(f"{create[5]}: {STATES[state]}; the request is replaced, and the run goes on later")
        delete = [*create[:4], "delete", create[5], *kept, "--force"]
        if code := _run(delete):
            return code
        state = None
    if state is None:
        return _run(create)
    if state in GONE:
        raise Refused(_explain(create[5], state, reason))
    _say(f"{create[5]} was asked for before: {state}, {STATES.get(state, 'see gcloud')}")
    return EXIT_DONE


def wait(describe: list[str], poll_s: float) -> int:
    """Ask until the slice is ACTIVE, and tell each change.

    A slice that becomes ACTIVE is paid, whether or not anybody still waits for it: once gcloud has
    answered, it may fail for PATIENCE_S.

    Raises:
        Refused: it failed or was taken away; nobody has to wait longer.
    """
    told, told_at, answered_at = None, 0.0, None
    while True:
        try:
            state, reason = _state(describe)
        except Unanswered as error:
            if answered_at is None or time.monotonic() - answered_at > PATIENCE_S:
                raise
            _say(f"{describe[5]}: {error}; asking again")
            time.sleep(poll_s)
            continue
        answered_at = time.monotonic()
        if state is None:
            raise Refused(f"{describe[5]}: gcloud does not know it (any more); launch again")
        if state != told or time.monotonic() - told_at > REMIND_S:
            _say(f"{describe[5]}: {state}, {STATES.get(state, 'see gcloud')}")
            told, told_at = state, time.monotonic()
        if state == "ACTIVE":
            return EXIT_DONE
        if state in GONE:
            raise Refused(_explain(describe[5], state, reason))
        time.sleep(poll_s)


def agree(argv: list[str], num_hosts: int) -> int:
    """Run a command on every host and compare what they print.

    Raises:
        Refused: a host is missing, or two differ; the message holds both lines.
    """
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, end="", flush=True)
        return done.returncode
    said = [line for line in done.stdout.splitlines() if line.startswith(versions.PREFIX)]
    lines = [line.removeprefix(versions.PREFIX) for line in said]
    if len(lines) != num_hosts:
        raise Refused(
            f"expected an answer of {num_hosts} hosts, got {len(lines)}; see that the slice is "
            "whole (gcloud compute tpus tpu-vm describe) and launch again"
        )
    if others := [line for line in lines if line != lines[0]]:
        raise Refused(
            f"the hosts disagree on versions: one has {lines[0]}; another {others[0]}; delete "
            ".venv in the project's folder on every host (ssh --worker=all) and launch again"
        )
    _say(f"{num_hosts} hosts agree: {lines[0]}")
    return EXIT_DONE


def _state(describe: list[str]) -> tuple[str | None, str]:
    """Return the queued resource's state and what gcloud says of a failure; None: it is not there.

    Raises:
        Unanswered: gcloud failed.
        Refused: it answered something else.
    """
    done = subprocess.run(
        describe, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        if "NOT_FOUND" in done.stderr:
            return None, ""
        print(done.stderr, end="", file=sys.stderr, flush=True)
        raise Unanswered(f"{describe[0]} describe ended with exit code {done.returncode}")
    try:
        state = json.loads(done.stdout)["state"]
        name = state["state"]
    except (ValueError, KeyError, TypeError):
        raise Refused(
            f"gcloud describes {describe[5]} without a state: {done.stdout[:200]!r}; update it "
            "with 'gcloud components update'"
        ) from None
    return name, state.get("failedData", {}).get("error", {}).get("message", "")


def _explain(name: str, state: str, reason: str) -> str:
    why = f" ({reason})" if reason else ""
    if state == "FAILED":
        return (
            f"{name}: {STATES[state]}{why}; delete it with 'gcloud compute tpus queued-resources "
            f"delete {name} --force', then launch again, with another launcher.zone, "
            "launcher.spot=true or a smaller target if there was no capacity"
        )
    return f"{name}: {STATES[state]}{why}; launch again: a new slice goes on from the checkpoint"


def _run(argv: list[str]) -> int:
    return subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
