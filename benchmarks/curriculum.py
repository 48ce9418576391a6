"""Curriculum: steps to a probe loss, adaptive against all levels at once, at equal tokens a step.

Nested arithmetic modulo 10: level k has k + 1 operations inside each other, and the answer is the
value of each one from the inside out; only it counts in the loss. The same tiny model trains from
scratch, at a constant learning rate (decay would favour whatever comes last), with
data.curriculum adaptive (likelihood, all other numbers as by default) and none. Both arms are
measured on the same held-out sums of all five levels. The target is the lowest probe loss of the
arm without a curriculum over its last tenth of evaluations, on average; the ratio is of the steps
at which the arms first reach it. It is a report, not a gate: gains of curricula are often null.
Prints one line of JSON; `python -m benchmarks.curriculum [--steps N] [--seeds N]`.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

import jax
import numpy as np

from data_pipelines import levels
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from mistral_jax import job
from mistral_jax import metrics
from mistral_jax import tokenizers
from mistral_jax.config import load

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "tiny" / "dense.yaml"
TRAIN_DOCUMENTS = 4_000  # a level
PROBE_DOCUMENTS = 200  # a level
EVALUATE_EVERY = 10
PROBES = [f"probe_{level}" for level in range(levels.NUM_LEVELS)]
OVERRIDES = [
    "model.num_layers=2", "model.width=64", "model.head_width=16", "model.ffn.width=192",
    "data.sequence_length=64", "data.global_batch_sequences=32",
    "data.packing={kind: best_fit, block_rows: 64}",
    "optimizer.schedule={kind: constant}", "optimizer.weight_decay=0.0",
    "optimizer.learning_rate=2e-3", "evaluate.max_rows=60", "checkpoint.every_steps=100000",
    f"evaluate.every_steps={EVALUATE_EVERY}", "checkpoint.keep_best=0",
]  # fmt: skip
ARMS = {"uniform": "{kind: none}", "adaptive": "{kind: adaptive, measure: {kind: likelihood}}"}


def draw(depth: int, rng: np.random.Generator) -> tuple[str, str]:
    """Return an expression of `depth` nested operations and its values from the inside out."""
    text, value = (str(number := int(rng.integers(10))), number)
    answers = []
    for _ in range(depth):
        operator, operand = "+-*"[rng.integers(3)], int(rng.integers(10))
        text = f"({text}{operator}{operand})"
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[operator] % 10
        answers.append(str(value))
    return f"{text}=", " ".join(answers)


def write_folder(folder: Path, name: str, splits: dict[str, list[tuple[int, str, str]]]) -> None:
    """Write (level, expression, answer) as a prepared folder, levels beside it."""
    tokenizer = tokenizers.load_tokenizer("bytes")
    entries = {}
    for split, documents in splits.items():
        writer = shards.SplitWriter(folder / name / split)
        for number, (_, text, answer) in enumerate(documents):
            prompt = tokenizer.encode(text, bos=tokenizer.add_bos)
            target = [*tokenizer.encode(answer), tokenizer.eos_id]
            mask = np.repeat([0, 1], [len(prompt), len(target)]).astype(np.int8)
            tokens = np.array([*prompt, *target])
            writer.add(records.encode_record(tokens, mask, str(number), token_bytes=2))
        entries[split] = writer.close()
        if name == "math":
            found = np.array([level for level, _, _ in documents], np.uint8)
            entry = shards.file_entry(levels.write(folder / name / split, found))
            entries[split]["levels"] = entry
    manifest = {
        "version": sources.MANIFEST_VERSION, "name": name, "fingerprint": "", "token_bytes": 2,
        "tokenizer": {"name": tokenizer.name, "digest": tokenizer.digest},
        "counts": {}, "rejects": {"by_kind": {}}, "settings": {}, "splits": entries,
    }  # fmt: skip
    (folder / name / sources.MANIFEST).write_text(json.dumps(manifest))


def write_data(folder: Path) -> None:
    """Write the source `math` of five levels, and each level's probes as a source of its own."""
    rng = np.random.default_rng(0)
    train, held_out = [], []
    for level, probe in enumerate(PROBES):
        mine = [(level, *draw(level + 1, rng)) for _ in range(PROBE_DOCUMENTS)]
        write_folder(folder, probe, {"train": [], "eval": mine})
        held_out += mine
        train += [(level, *draw(level + 1, rng)) for _ in range(TRAIN_DOCUMENTS)]
    write_folder(folder, "math", {"train": train, "eval": held_out})


def run_arm(folder: Path, arm: str, seed: int, steps: int) -> tuple[dict[int, float], list[int]]:
    """Train; return the probe loss by step, and the level of each step."""
    probes = ", ".join(f"{{name: {name}, path: {folder / name}}}" for name in PROBES)
    run = load.load_run(CONFIG, [
        *OVERRIDES, f"data.train=[{{name: math, path: {folder / 'math'}}}]",
        f"data.eval=[{probes}]", f"data.curriculum={ARMS[arm]}", f"seed={seed}",
        f"optimizer.max_steps={steps}", f"output={folder}/{arm}_{seed}",
    ])  # fmt: skip
    done = job.train(run, target="local_cpu", say=lambda _: None)
    log = metrics.read_metrics(done.directory / metrics.METRICS_FILE)
    losses: dict[int, list[float]] = {}
    for line in log.evals:
        if line["eval"] in PROBES:
            losses.setdefault(line["step"], []).append(line["loss"])
    assert all(len(each) == len(PROBES) for each in losses.values()), "a probe is missing"
    level = [int(line.get("level/math", -1)) for line in log.steps]
    return {step: statistics.fmean(each) for step, each in losses.items()}, level


def first_step(losses: dict[int, float], target: float) -> int | None:
    """Return the first evaluated step at which the loss is the target or lower."""
    return next((step for step, loss in sorted(losses.items()) if loss <= target), None)


def compare(folder: Path, seed: int, steps: int) -> dict:
    """Run both arms; return where they came to."""
    uniform, _ = run_arm(folder, "uniform", seed, steps)
    adaptive, level = run_arm(folder, "adaptive", seed, steps)
    last = [loss for step, loss in uniform.items() if step > 0.9 * steps]
    target = statistics.fmean(last)
    there, here = first_step(uniform, target), first_step(adaptive, target)
    switches = [
        [step + 1, new] for step, (old, new) in enumerate(zip([0, *level], level)) if old != new
    ]
    return {
        "seed": seed, "target": round(target, 4), "steps_uniform": there, "steps_adaptive": here,
        "ratio": None if here is None or there is None else round(here / there, 3),
        "final_uniform": round(uniform[steps], 4), "final_adaptive": round(adaptive[steps], 4),
        "switches": switches,
    }  # fmt: skip


def main() -> None:
    """Run all seeds and print the line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        found = [compare(folder, seed, options.steps) for seed in range(options.seeds)]
    ratios = [each["ratio"] for each in found if each["ratio"] is not None]
    print(json.dumps({
        "metric": "curriculum: steps to the probe loss of all levels at once, adaptive / uniform",
        "value": round(statistics.median(ratios), 3) if ratios else None,
        "unit": "ratio of steps",
        "peer": "the same model, data and tokens a step with data.curriculum.kind=none",
        "ratio": round(statistics.median(ratios), 3) if ratios else None,
        "not_reached": sum(each["ratio"] is None for each in found),
        "seeds": found,
        "shapes": {
            "steps": options.steps, "documents_per_level": TRAIN_DOCUMENTS,
            "probes_per_level": PROBE_DOCUMENTS, "evaluate_every": EVALUATE_EVERY,
        },
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "n": len(found),
        "spread": [min(ratios), max(ratios)] if ratios else None,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
