"""What every benchmark shares: interleaved rounds, a peer process, one JSON line.

A figure counts only beside a peer of the same run, after a check that both compute the same.
Rounds of ours and of the peer take turns, so that a machine whose speed drifts hurts both.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PEERS_PYTHON = "MISTRAL_JAX_PEERS_PYTHON"
SCRIPTS = Path(__file__).resolve().parent / "peer_scripts"


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Seconds of each round, ours and the peer's, in the order they ran."""

    ours: list[float]
    peer: list[float]

    @property
    def speedup(self) -> float:
        """Median over rounds of peer time / our time, pair by pair."""
        return statistics.median(p / o for o, p in zip(self.ours, self.peer, strict=True))


class PeerProcess:
    """A script in the peers' environment that answers each line on stdin with a line of JSON."""

    def __init__(self, script: str, *arguments: str) -> None:
        """Start it and wait until it says that it is ready.

        Raises:
            OSError: the peers' environment is not there, or the script failed.
        """
        default = Path(__file__).resolve().parent.parent / ".venv-peers" / "bin" / "python"
        python = os.environ.get(PEERS_PYTHON, str(default))
        if not Path(python).exists():
            raise OSError(f"{python}: no peers' environment; run ./run peers once")
        command = [python, str(SCRIPTS / script), *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions: dict[str, str] = self._answer()

    def ask(self, request: str) -> dict[str, Any]:
        """Send one line, return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"the peer ended with code {self._process.wait()}; see its output")
        return json.loads(line)


def interleave(
    ours: Callable[[], float], peer: Callable[[], float], *, num_rounds: int, num_warm: int = 1
) -> Rounds:
    """Run both in turns; each call returns its own seconds. Warm rounds are thrown away."""
    rounds = Rounds([], [])
    for index in range(num_warm + num_rounds):
        our_seconds, peer_seconds = ours(), peer()
        if index >= num_warm:
            rounds.ours.append(our_seconds)
            rounds.peer.append(peer_seconds)
    return rounds


def burst(step: Callable[[], float], *, num_steps: int = 3) -> Callable[[], float]:
    """Return a round of several steps in a row: the mean seconds of all but the first.

    A training process is never idle between steps, but in turns with a peer it is: virtual
    machines then take its freed pages back, and the first step pays for getting them again.
    """

    def run() -> float:
        return statistics.mean([step() for _ in range(num_steps)][1:])

    return run


def check_close(name: str, ours: float, peer: float, relative: float) -> None:
    """Refuse to time two things that do not compute the same.

    Raises:
        SystemExit: they differ by more than the tolerance.
    """
    if abs(ours - peer) > relative * abs(peer):
        raise SystemExit(f"{name}: ours {ours}, peer {peer}: differ by more than {relative}")


def report(metric: str, **fields: Any) -> None:
    """Print one line of JSON with versions, machine and date."""
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")
    }
    versions |= {"python": platform.python_version()} | fields.pop("versions", {})
    line = {
        "metric": metric,
        **fields,
        "versions": versions,
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(line))


def machine() -> str:
    """Return architecture, cores, processor and accelerator."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()}, {os.cpu_count()} cores, {names[0] if names else 'unknown'}"


def spread(values: list[float] | Mapping[int, float], *, digits: int = 3) -> list[float]:
    """Return smallest and largest, rounded."""
    numbers = list(values.values()) if isinstance(values, Mapping) else values
    return [round(min(numbers), digits), round(max(numbers), digits)]
