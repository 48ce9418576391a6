"""How often the detectors of toxicity, personal data and language are right, on labelled sets.

The sets are small and written by one hand: `probes/toxicity.jsonl` and `probes/language.jsonl`,
and the generated texts of pii_probes.py. Rates come with 95 % Wilson intervals; they hold for
texts like these and are no benchmark of the detectors.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipelines.processors import language
from data_pipelines.processors import pii
from data_pipelines.processors import secrets
from data_pipelines.processors import toxicity
from data_pipelines.quality import pii_probes
from mistral_jax.config import processors

PROBES = Path(__file__).parent / "probes"
Z_95 = 1.959964
TOXIC = "toxic"
ROC_THRESHOLDS = tuple(step / 100 for step in (1, 2, 5, *range(10, 100, 5), 98, 99))


def calibrate() -> dict[str, Any]:
    """Return the whole report: sets, rates and their intervals, by detector."""
    return {"toxicity": of_toxicity(), "pii": of_pii(), "language": of_language()}


def of_toxicity(thresholds: Sequence[float] = (0.5, 0.8)) -> dict[str, Any]:
    """Return recall and false positives of toxicity at thresholds, and the ROC points."""
    rows, told = _read("toxicity")
    scored = [(row["text"], row["label"], toxicity.probability(row["text"])) for row in rows]
    by_label: dict[str, list[float]] = {}
    for _, label, each in scored:
        by_label.setdefault(label, []).append(each)
    toxic = by_label[TOXIC]
    clean = [each for label, found in by_label.items() if label != TOXIC for each in found]
    return {
        "set": told,
        "counts": {label: len(found) for label, found in by_label.items()},
        "auc": round(_auc(toxic, clean), 4),
        "mean_probability": {
            label: round(sum(found) / len(found), 4) for label, found in by_label.items()
        },
        "thresholds": {f"{limit:g}": _at(by_label, limit) for limit in thresholds},
        "roc": [
            {
                "threshold": limit,
                "recall": round(_above(toxic, limit) / len(toxic), 4),
                "false_positives": round(_above(clean, limit) / len(clean), 4),
            }
            for limit in ROC_THRESHOLDS
        ],
        "missed": [text for text, label, each in scored if label == TOXIC and each < thresholds[0]],
        "taken_for_toxic": [
            text for text, label, each in scored if label != TOXIC and each >= thresholds[0]
        ],
    }


def _at(by_label: dict[str, list[float]], limit: float) -> dict[str, Any]:
    """Return the confusion table and the rates at one threshold."""
    above = {label: sum(each >= limit for each in found) for label, found in by_label.items()}
    rows = {label: len(found) for label, found in by_label.items()}
    hits, alarms = above[TOXIC], sum(above.values()) - above[TOXIC]
    return {
        "confusion": {
            label: {"above": above[label], "below": rows[label] - above[label]} for label in rows
        },
        "recall": rate(hits, rows[TOXIC]),
        "false_positives": rate(alarms, sum(rows.values()) - rows[TOXIC]),
        "precision": rate(hits, hits + alarms),
    }


def of_pii() -> dict[str, Any]:
    """Return precision and recall of each kind of personal data, and what was got wrong."""
    probes = pii_probes.probes()
    right, missed, false = Counter[str](), Counter[str](), Counter[str]()
    forms: dict[str, Counter[str]] = {}
    wrong: list[dict[str, Any]] = []
    for probe in probes:
        found = found_kinds(probe.text)
        wanted = set(probe.kinds)
        right.update(wanted & found)
        missed.update(wanted - found)
        false.update(found - wanted)
        forms.setdefault(probe.form, Counter())["right" if found == wanted else "wrong"] += 1
        if found != wanted:
            wrong.append({"text": probe.text, "wanted": sorted(wanted), "found": sorted(found)})
    lines = (json.dumps(asdict(probe)) for probe in probes)
    without = [probe for probe in probes if not probe.kinds]
    alarms = sum(bool(found_kinds(probe.text)) for probe in without)
    return {
        "set": {"name": "pii_probes", "rows": len(probes), "sha256": _digest(lines)},
        "kinds": {
            kind: {
                "recall": rate(right[kind], right[kind] + missed[kind]),
                "precision": rate(right[kind], right[kind] + false[kind]),
            }
            for kind in sorted({*right, *missed, *false})
        },
        "false_positives": rate(alarms, len(without)),
        "forms": {form: dict(sorted(counts.items())) for form, counts in forms.items()},
        "wrong": wrong[:40],
    }


def of_language() -> dict[str, Any]:
    """Return how often the language is right, by set and language, and what it was taken for."""
    rows, told = _read("language")
    config = processors.Language()
    sets: dict[str, Counter[str]] = {}
    languages: dict[str, Counter[str]] = {}
    for row in rows:
        found, _ = language.detect(row["text"], config)
        outcome = "right" if found == row["language"] else "unknown" if found == "und" else "wrong"
        sets.setdefault(row["set"], Counter())[outcome] += 1
        if row["set"] == "sentence":
            languages.setdefault(row["language"], Counter())[found] += 1
    return {
        "set": told,
        "min_confidence": config.min_confidence,
        "sets": {
            name: {
                **dict(sorted(counts.items())),
                "accuracy": rate(counts["right"], counts.total()),
                "wrong_language": rate(counts["wrong"], counts.total()),
            }
            for name, counts in sets.items()
        },
        "confusion": {name: dict(sorted(found.items())) for name, found in languages.items()},
    }


def found_kinds(text: str) -> set[str]:
    """Return the kinds of personal data and secrets that the steps find in a text."""
    spans = secrets.find(text)
    rest = pii.replaced(text, [(start, end, "secret") for start, end in spans])
    found = {kind for _, _, kind in pii.find(rest, tuple(pii.FINDERS))}
    return found | ({"secret"} if spans else set())


def rate(count: int, total: int) -> dict[str, Any]:
    """Return a share with its 95 % interval (Wilson 1927); None of nothing."""
    if not total:
        return {"value": None, "of": 0, "interval": None}
    share = count / total
    middle = share + Z_95**2 / (2 * total)
    half = Z_95 * math.sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2))
    scale = 1 + Z_95**2 / total
    low, high = max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
    return {"value": round(share, 4), "of": total, "interval": [round(low, 4), round(high, 4)]}


def _read(name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    data = (PROBES / f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in data.split("\n") if line]
    return rows, {"name": name, "rows": len(rows), "sha256": _digest(data.rstrip("\n").split("\n"))}


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _above(values: Sequence[float], limit: float) -> int:
    return sum(value >= limit for value in values)


def _auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return how often a positive value is above a negative one, ties as one half."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))
