"""Follow a far log through lost connections: what prints it is run again from where it broke.

    python -m launch.follow -- ssh ... HOST 'sh .../host.sh python -m launch.detach follow ...'

The command gets the bytes that came before on its stdin, and prints what follows them. Exit code
255 is ssh's own: the connection, not the run. Standard library only.
"""

import subprocess
import sys
import time
from collections.abc import Sequence

LOST_CODE = 255
FIRST_WAIT_S = 2.0
LONGEST_WAIT_S = 60.0
GIVE_UP_S = 1800.0
BLOCK_BYTES = 1 << 16


def follow(
    argv: Sequence[str], *, first_wait_s: float = FIRST_WAIT_S, give_up_s: float = GIVE_UP_S
) -> int:
    """Copy the command's output until it ends other than by a lost connection; return its code.

    Args:
        argv: the command.
        first_wait_s: before it is run again; doubled for each time in a row without output.
        give_up_s: without a byte for so long over lost connections, give up with 255.
    """
    seen, wait_s, last = 0, first_wait_s, time.monotonic()
    while True:
        code, copied = _copy_once(argv, seen)
        seen += copied
        if code != LOST_CODE:
            return code
        if copied:
            wait_s, last = first_wait_s, time.monotonic()
        if time.monotonic() - last > give_up_s:
            text = f"launch: no connection for {give_up_s / 60:.0f} min; the run goes on without us"
            print(f"{text}: launch again to attach", file=sys.stderr, flush=True)
            return code
        text = f"launch: connection lost; the run goes on; trying again in {wait_s:.0f} s"
        print(text, file=sys.stderr, flush=True)
        time.sleep(wait_s)
        wait_s = min(LONGEST_WAIT_S, 2 * wait_s)


def _copy_once(argv: Sequence[str], seen: int) -> tuple[int, int]:
    copied = 0
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(f"{seen}\n".encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended before it read; its exit code tells
        while block := process.stdout.read(BLOCK_BYTES):
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
            copied += len(block)
    return process.returncode, copied


if __name__ == "__main__":
    sys.exit(follow(sys.argv[sys.argv.index("--") + 1 :]))
