"""The process behind limited_process.py: inputs in on stdin, a decoder's answers out as JSON.

Runs as a script with two arguments, the limit of its address space and the decoder's file, and
imports nothing of ours. A request is two lengths of 8 bytes, little endian, then the hint and the
data; an answer is one length and the JSON.
"""

import json
import os
import resource
import runpy
import sys

MAX_ANSWER_BYTES = 1 << 30


def main() -> None:
    """Answer requests until stdin ends."""
    limit, decoder = int(sys.argv[1]), sys.argv[2]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.dup(1)
    os.dup2(2, 1)  # what a C library prints must not get between the answers
    decode = runpy.run_path(decoder)["decode"]
    with os.fdopen(out, "wb") as answers:
        while len(sizes := sys.stdin.buffer.read(16)) == 16:
            hint = sys.stdin.buffer.read(int.from_bytes(sizes[:8], "little")).decode()
            data = sys.stdin.buffer.read(int.from_bytes(sizes[8:], "little"))
            try:
                answer = decode(hint, data)
            except Exception as error:  # noqa: BLE001  the border of a process: all is answered
                said = f"cannot be read ({type(error).__name__})"
                answer = {"kind": "unreadable_content", "error": said}
            frame = json.dumps(answer).encode()
            answers.write(len(frame).to_bytes(8, "little") + frame)
            answers.flush()


if __name__ == "__main__":
    main()
