"""A run directory with plausible numbers, for the report's tests and for looking at the page."""

import json
import math
import random
from pathlib import Path

from rich.console import Console

from launch import plan
from launch import target
from mistral_jax import metrics
from mistral_jax.config import load
from mistral_jax.config import presets

CONFIGS = Path(__file__).parents[2] / "configs"
PROMPTS = (
    "What does a checkpoint hold?",
    "Write a Python function that splits a document into rows.",
    "How do I resume a run that was killed?",
)
BEFORE = (
    "A checkpoint is a place where people stop. It can hold many things, such as bags, cars and "
    "documents of travellers.",
    "Here is a function that splits a document:\n\ndef split(document):\n    return document",
    "You can resume a run by running it again. If it was killed, you can start it again.",
)
AFTER = (
    "Parameters, the optimizer's state, the random key, the position in the data and the config, "
    "each array with a digest that is checked when it is read back.",
    "def split_rows(tokens, length):\n    return [tokens[i : i + length]\n"
    "            for i in range(0, len(tokens), length)]",
    "Give the same command again: the run finds its last checkpoint and goes on bit for bit.",
)


def make_run(folder: Path, *, num_steps: int = 60) -> Path:
    """Write every file that the report reads."""
    noise = random.Random(0)
    run = load.load_run(CONFIGS / "demo" / "finetune.yaml")
    machine = target.load_target("local_cpu", ["host_memory_gib=16", "host_cores=2"])
    planned = plan.resolve(run, machine, decoder=presets.PRESETS["smollm2_135m"])
    with metrics.MetricsWriter(
        folder, total_steps=num_steps, console=Console(quiet=True)
    ) as writer:
        for step in range(num_steps + 1):
            share = step / num_steps
            if step:
                writer.log(
                    step,
                    loss=2.1 + 0.95 * math.exp(-4 * share) + noise.gauss(0, 0.09),
                    learning_rate=4e-4 * min(step / 5, 0.55 + 0.45 * math.cos(math.pi * share)),
                    tokens_per_s=noise.gauss(412, 9) if step > 1 else 61,
                    grad_norm=0.8 + noise.random(),
                )
            if step % 20 == 0:
                writer.log_eval(step, "documents", 2.16 + 0.84 * math.exp(-3.2 * share))
                writer.log_eval(step, "general control", 2.71 + 0.012 * share)
    files = {
        "plan.json": planned.model_dump(mode="json"),
        "measured.json": {
            "peak_memory_bytes": 2_180_000_000, "seconds_per_step": 2.49, "wall_s": 221.4,
        },
        "eval.json": {"sources": {
            "documents": {"rows": 64, "before": 3.0012, "after": 2.1943, "difference": -0.8069,
                          "interval_low": -0.8611, "interval_high": -0.7544},
            "general control": {"rows": 64, "before": 2.7104, "after": 2.7221,
                                "difference": 0.0117, "interval_low": -0.0041,
                                "interval_high": 0.0276},
        }},
        "resume.json": {"killed_at": 25, "resumed_at": 20, "steps": [
            {"step": step, "before_hex": value.hex(), "after_hex": value.hex(), "equal": True}
            for step, value in zip(range(21, 26), (2.61, 2.58, 2.49, 2.553, 2.471))
        ]},
        "export/parity.json": [
            {"format": "peft", "path": "export/peft", "size_bytes": 19_559_000,
             "largest_logit_difference": 0.0},
            {"format": "safetensors", "path": "export/hf", "size_bytes": 538_090_408,
             "largest_logit_difference": 2.3e-05},
            {"format": "gguf", "path": "export/model.gguf", "size_bytes": 271_000_000,
             "largest_logit_difference": 0.0184},
        ],
        "manifest.json": {
            "config_hash": run.science_hash(), "git_revision": "3f2a91c07d (clean)",
            "versions": {"python": "3.12.1", "jax": "0.12.0.1", "flax": "0.12.12",
                         "orbax-checkpoint": "0.12.6", "grain": "0.2.18"},
            "devices": ["cpu, 2 cores"], "seed": 0,
            "data": [
                {"name": "documents", "digest": "9c1d" * 16, "documents": 412, "tokens": 318_204},
                {"name": "general control", "digest": "07ab" * 16, "documents": 64,
                 "tokens": 16_384},
            ],
            "parameters": 134_515_008, "trainable_parameters": 4_884_480,
            "start_checkpoint_digest": "5be0" * 16,
        },
        "samples/step_000000.json": {"step": 0, "samples": [
            {"prompt": prompt, "text": text} for prompt, text in zip(PROMPTS, BEFORE)
        ]},
        f"samples/step_{num_steps:06d}.json": {"step": num_steps, "samples": [
            {"prompt": prompt, "text": text} for prompt, text in zip(PROMPTS, AFTER)
        ]},
    }  # fmt: skip
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
    (folder / "config.yaml").write_text(load.dump_yaml(run), encoding="utf-8")
    return folder
