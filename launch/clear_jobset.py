"""Makes room for a JobSet of the same name: one that failed is deleted, one that lives is kept.

`python -m launch.clear_jobset --namespace N --name NAME --contents DIGEST`, before `kubectl apply`.
DIGEST tells what the set would hold; that of the one that is there stands in its annotation. It
prints STAYS where nothing has to be applied: the set runs, or has completed with these contents.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence

from launch import follow_jobset

CONTENTS = "mistral-jax/contents"
STAYS = "launch: the set is there, and nothing of it is replaced"
NOT_FOUND = "(NotFound)"
DELETE_S = 300  # its pods may save for jobset.GRACE_S before they end
EXIT_DONE, EXIT_FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at the set, delete it where it is in the way, and return the exit code."""
    parser = argparse.ArgumentParser(prog="clear_jobset")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--contents", required=True)
    options = parser.parse_args(arguments)
    try:
        return clear(
            ["kubectl", f"--namespace={options.namespace}"], options.name, options.contents
        )
    except follow_jobset.Unanswered as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    except FileNotFoundError:
        print("error: there is no program 'kubectl' on PATH; install it", file=sys.stderr)
    return EXIT_FAILED


def clear(kubectl: list[str], name: str, contents: str) -> int:
    """Delete the set unless it lives or has completed with these contents.

    Deleting waits for the last pod (`--cascade=foreground`): two never write to one output.

    Raises:
        follow_jobset.Unanswered: kubectl failed.
    """
    try:
        found = follow_jobset.get(kubectl, "jobset", name)
    except follow_jobset.Unanswered as error:
        if NOT_FOUND in str(error):
            return EXIT_DONE
        raise
    delete = [kubectl[0], "delete", *kubectl[1:], "jobset", name]
    metadata = found["metadata"]
    is_same = metadata.get("annotations", {}).get(CONTENTS) == contents
    if "deletionTimestamp" in metadata:
        state = "being deleted"
    else:
        state = found.get("status", {}).get("terminalState") or "alive"
    if state == "alive" or (state == "Completed" and is_same):
        _say_why(name, state, is_same, shlex.join(delete))
        return EXIT_DONE
    print(f"{name} is there, {state}: it is deleted and created anew; the run goes on from its "
          "checkpoint", flush=True)  # fmt: skip
    waits = ["--ignore-not-found", "--cascade=foreground", "--wait=true", f"--timeout={DELETE_S}s"]
    return subprocess.run([*delete, *waits], stdin=subprocess.DEVNULL, check=False).returncode


def _say_why(name: str, state: str, is_same: bool, delete: str) -> None:
    if state == "Completed":
        print(f"{name} has completed; to run it again: {delete}, then launch again")
    elif not is_same:
        print(f"{name} goes on as it was started, and differs from what is launched now; to "
              f"replace it: {delete}, then launch again")  # fmt: skip
    print(STAYS, flush=True)


if __name__ == "__main__":
    sys.exit(main())
