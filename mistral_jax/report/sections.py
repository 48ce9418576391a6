"""The report's sections as plain values for the template, one function a section.

The drawn ones are in pictures.py.

From: metrics.jsonl, manifest.json, config.yaml, plan.json, measured.json, eval.json, resume.json,
samples/step_*.json, export/parity.json. A section whose file is missing is empty.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mistral_jax.report import pictures
from mistral_jax.report import units
from mistral_jax.report.files import Row
from mistral_jax.report.files import RunFiles


def build(files: RunFiles) -> Row:
    """Return every variable of the template but the caller's own.

    Raises:
        ValueError: a file lacks a field; the message names the file and the field.
    """
    builders: dict[str, tuple[str, Callable[[RunFiles], Any]]] = {
        "subtitle": ("manifest.json", subtitle),
        "tiles": ("eval.json, measured.json or plan.json", tiles),
        "curves": ("metrics.jsonl", pictures.curves),
        "held_out": ("eval.json", held_out),
        "samples": ("samples/", samples),
        "resume": ("resume.json", resume),
        "exports": ("export/parity.json", exports),
        "predictions": ("plan.json or measured.json", pictures.predictions),
        "memory_parts": ("plan.json", pictures.memory_parts),
        "plan_sentence": ("plan.json", plan_sentence),
        "data": ("manifest.json", data),
        "facts": ("manifest.json", facts),
        "versions": ("manifest.json", versions),
    }
    values: Row = {"title": title(files), "config": files.config, "made_from": made_from(files)}
    for name, (source, builder) in builders.items():
        try:
            values[name] = builder(files)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{files.folder / source}: field missing or of the wrong type ({error}); "
                "delete the file or run again"
            ) from None
    return values


def title(files: RunFiles) -> str:
    """Return the run's name: from its config, else from its folder."""
    found = re.search(r"^name:[ \t]*(\S.*?)[ \t]*$", files.config, re.MULTILINE)
    return found.group(1).strip("'\"") if found else files.folder.resolve().name


def made_from(files: RunFiles) -> str:
    """Return which run the page tells of."""
    digest = str(files.manifest.get("config_hash", ""))[:12]
    return f"{files.folder.resolve().name}" + (f", config {digest}" if digest else "")


def subtitle(files: RunFiles) -> str:
    """Return one line: how many parameters train, how far, where."""
    manifest, parts = files.manifest, []
    if "parameters" in manifest:
        total, trained = manifest["parameters"], manifest["trainable_parameters"]
        share = "" if total == trained else f" ({trained / total:.2%})"
        parts.append(f"{total:,} parameters, {trained:,} trained{share}")
    if files.metrics.steps:
        parts.append(f"{files.metrics.steps[-1]['step']:,} steps")
    if manifest.get("devices"):
        devices = [str(device) for device in manifest["devices"]]
        parts.append(devices[0] if len(devices) == 1 else f"{len(devices)} x {devices[0]}")
    return " · ".join(parts)


def tiles(files: RunFiles) -> list[Row]:
    """Return the key figures of the page's top."""
    found = []
    for name, one in list(files.held_out.get("sources", {}).items())[:2]:
        is_sure = one["interval_high"] < 0 or one["interval_low"] > 0
        tone = ("good" if one["difference"] < 0 else "bad") if is_sure else ""
        found.append(
            _tile(
                f"held-out loss, {name}",
                f"{one['before']:.3f} → {one['after']:.3f}",
                f"{one['difference']:+.3f} nats, {one['rows']} rows",
                tone,
            )
        )
    speeds = [line["tokens_per_s"] for line in files.metrics.steps if line.get("tokens_per_s")]
    if speeds:
        middle = sorted(speeds)[len(speeds) // 2]
        found.append(_tile("speed", f"{middle:,.0f} tok/s", "median over the steps"))
    measured = files.measured
    if "peak_memory_bytes" in measured:
        peak = units.format_bytes(measured["peak_memory_bytes"])
        found.append(_tile("peak memory", peak, "measured"))
    if "wall_s" in measured:
        found.append(
            _tile("time", units.format_seconds(measured["wall_s"]), "wall clock, whole run")
        )
    if files.resume:
        rows = files.resume["steps"]
        is_equal = bool(rows) and all(row["equal"] for row in rows)
        value, tone = ("bit-identical", "good") if is_equal else ("differs", "bad")
        found.append(_tile("resume after kill", value, f"{len(rows)} steps compared", tone))
    return found


def _tile(label: str, value: str, detail: str, tone: str = "") -> Row:
    return {"label": label, "value": value, "detail": detail, "tone": tone}


def held_out(files: RunFiles) -> list[Row]:
    """Return a row for each held-out source."""
    rows = []
    for name, one in files.held_out.get("sources", {}).items():
        if one["interval_high"] < 0:
            tone, reading = "good", "better"
        elif one["interval_low"] > 0:
            tone, reading = "bad", "worse"
        else:
            tone, reading = "", "no clear change"
        rows.append(
            {
                "name": name,
                "rows": f"{one['rows']:,}",
                "before": f"{one['before']:.4f}",
                "after": f"{one['after']:.4f}",
                "difference": f"{one['difference']:+.4f}",
                "interval": f"{one['interval_low']:+.4f} to {one['interval_high']:+.4f}",
                "tone": tone,
                "reading": reading,
            }
        )
    return rows


def samples(files: RunFiles) -> list[Row]:
    """Return each prompt with what the model said first and last."""
    if not files.samples:
        return []
    ordered = sorted(files.samples, key=lambda file: file["step"])
    ends = ordered[:1] if len(ordered) == 1 else [ordered[0], ordered[-1]]
    answers: dict[str, list[Row]] = {}
    for file in ends:
        when = "before training" if file["step"] == 0 else f"after step {file['step']}"
        for sample in file["samples"]:
            said = {"when": when, "text": sample["text"]}
            answers.setdefault(sample["prompt"], []).append(said)
    return [{"prompt": prompt, "said": said} for prompt, said in answers.items()]


def resume(files: RunFiles) -> Row:
    """Return the proof that a killed run goes on exactly."""
    if not files.resume:
        return {}
    one = files.resume
    return {
        "sentence": (
            f"The process was killed at step {one['killed_at']}; a new one went on from the "
            f"checkpoint of step {one['resumed_at']}."
        ),
        "rows": [
            {key: row[key] for key in ("step", "before_hex", "after_hex", "equal")}
            for row in one["steps"]
        ],
    }


def exports(files: RunFiles) -> list[Row]:
    """Return a row for each exported file."""
    return [
        {
            "format": row["format"],
            "path": row["path"],
            "size": units.format_bytes(row["size_bytes"]),
            "difference": f"{row['largest_logit_difference']:.2e}",
        }
        for row in files.parity
    ]


def plan_sentence(files: RunFiles) -> str:
    """Return how the run sat on its machine."""
    if not files.plan:
        return ""
    plan = files.plan
    return (
        f"{plan['global_batch_sequences']} rows of {plan['sequence_length']} tokens a step as "
        f"{plan['micro_batch_sequences']} x {plan['accumulation']} passes x "
        f"{plan['data_parallel']} devices on {plan['target']}; attention {plan['attention']}, "
        f"remat {plan['remat']}. Predicted times are {plan['calibration']}: they assume "
        f"{plan['assumed_utilization']:.0%} of the peak."
    )


def data(files: RunFiles) -> list[Row]:
    """Return a row for each data source."""
    return [
        {
            "name": one["name"],
            "documents": f"{one['documents']:,}",
            "tokens": f"{one['tokens']:,}",
            "digest": str(one["digest"])[:16],
        }
        for one in files.manifest.get("data", [])
    ]


def facts(files: RunFiles) -> list[tuple[str, str]]:
    """Return what identifies the run."""
    manifest = files.manifest
    labels = {
        "config_hash": "config hash",
        "git_revision": "git revision",
        "start_checkpoint_digest": "start checkpoint",
        "seed": "seed",
        "devices": "devices",
    }
    found = []
    for field, label in labels.items():
        value = manifest.get(field)
        if value in (None, "", []):
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        found.append((label, shown))
    return found


def versions(files: RunFiles) -> list[tuple[str, str]]:
    """Return package names and versions."""
    return [(name, str(value)) for name, value in files.manifest.get("versions", {}).items()]


def commands(folder: Path) -> list[tuple[str, str]]:
    """Return commands that fit any run."""
    return [
        ("Ask the trained model", f'./run generate {folder} "Explain what a checkpoint holds."'),
        (
            "Train on your own folder of documents",
            "./run train configs/demo/finetune.yaml data.train=~/my_documents",
        ),
        (
            "Predict a real Mistral-7B LoRA on one 24 GB GPU, before paying for it",
            "./run plan configs/mistral_7b/lora.yaml --target g5_2xlarge",
        ),
        (
            "Train a real Mistral-7B",
            "./run train configs/mistral_7b/lora.yaml --target g5_2xlarge "
            "model.weights=~/Mistral-7B-v0.3 data.train=~/my_documents",
        ),
    ]
