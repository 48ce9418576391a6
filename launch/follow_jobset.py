"""Waits for a JobSet's first pod and shows its log to the end of the set, over its restarts.

`python -m launch.follow_jobset --namespace N --name NAME`; exit code 0 where the set completed.
It asks kubectl, and changes nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

EXIT_DONE, EXIT_FAILED = 0, 1
MAX_UNANSWERED = 5


class Unanswered(ValueError):
    """kubectl gave no answer; the message holds its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow until the set is over, and return the exit code."""
    parser = argparse.ArgumentParser(prog="follow_jobset")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--poll-s", type=float, default=10.0)
    options = parser.parse_args(arguments)
    kubectl = ["kubectl", f"--namespace={options.namespace}"]
    try:
        return follow(kubectl, options.name, options.poll_s)
    except Unanswered as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    except FileNotFoundError:
        print("error: there is no program 'kubectl' on PATH; install it", file=sys.stderr)
    return EXIT_FAILED


def follow(kubectl: list[str], name: str, poll_s: float) -> int:
    """Show the log of each attempt's first pod until the set has an end.

    Raises:
        Unanswered: kubectl failed several times in a row.
    """
    told, seen, unanswered = "", set(), 0
    while True:
        try:
            status = get(kubectl, "jobset", name).get("status", {})
            pod = _first_pod(kubectl, name)
            unanswered = 0
        except Unanswered:
            unanswered += 1
            if unanswered > MAX_UNANSWERED:
                raise
            time.sleep(poll_s)
            continue
        end = status.get("terminalState") or ""
        state = f"{end or _describe(pod)}; restarts: {status.get('restarts', 0)}"
        if state != told:
            print(f"{name}: {state}", flush=True)
            told = state
        uid = pod["metadata"]["uid"] if pod else None
        phase = pod["status"].get("phase") if pod else None
        if pod and uid not in seen and phase in ("Running", "Succeeded", "Failed"):
            seen.add(uid)
            _show_log(kubectl, pod["metadata"]["name"])
            continue
        if end:
            return EXIT_DONE if end == "Completed" else EXIT_FAILED
        time.sleep(poll_s)


def _first_pod(kubectl: list[str], name: str) -> dict[str, Any] | None:
    """Return the newest pod with index 0; None before there is one."""
    labels = f"jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0"
    found = get(kubectl, "pods", f"--selector={labels}").get("items", [])
    return max(found, key=lambda pod: pod["metadata"].get("creationTimestamp", ""), default=None)


def _describe(pod: dict[str, Any] | None) -> str:
    """Return in words where a pod stands, with the reason where it waits."""
    if pod is None:
        return "no pod yet: the set waits in its queue or for the controller"
    phase = pod["status"].get("phase", "Unknown")
    conditions = pod["status"].get("conditions") or []
    reasons = [each.get("message", "") for each in conditions if each.get("status") == "False"]
    for container in pod["status"].get("containerStatuses") or []:
        waiting = container.get("state", {}).get("waiting") or {}
        reasons = [f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip(), *reasons]
    reason = next((text for text in reasons if text), "")
    return f"pod 0 is {phase}" + (f" ({reason})" if phase == "Pending" and reason else "")


def get(kubectl: list[str], *words: str) -> dict[str, Any]:
    """Return what `kubectl get` answers, as JSON.

    Raises:
        Unanswered: it failed, or answered something else.
    """
    argv = [*kubectl, "get", *words, "--output=json"]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unanswered(f"kubectl get {words[0]}: {done.stderr.strip()}")
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise Unanswered(f"kubectl get {words[0]} answered {done.stdout[:200]!r}") from None


def _show_log(kubectl: list[str], pod: str) -> None:
    argv = [*kubectl, "logs", "--follow", "--tail=-1", pod]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as log:
        for line in log.stdout or ():
            print(line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
