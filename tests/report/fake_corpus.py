"""A corpus folder's manifest and batches with plausible numbers, for tests and for looking."""

import json
import math
import random
from pathlib import Path
from typing import Any

EXPERTS = {
    "code": ("filtered_code", "code", "MIT", ("syntax_basics", "functions", "algorithms",
                                              "systems", "optimization")),
    "math": ("textbooks", "math", "CC-BY-4.0", ("arithmetic", "algebra", "calculus", "proofs",
                                                "research")),
    "general": ("filtered_web", "text", "ODC-By-1.0", ("facts", "steps", "formats", "choices",
                                                       "projects")),
}  # fmt: skip
KINDS = {"too_short": 812, "not_utf8": 31, "contaminated": 9, "repeated_lines": 402, "no_text": 3}
GATE = {"batch_rows": 512, "min_diversity": 0.7, "min_complexity": 0.25, "min_accuracy": 0.95,
        "max_toxicity": 0.1}  # fmt: skip


def make_corpus(folder: Path, *, num_batches: int = 60) -> Path:
    """Write the files that the report reads."""
    folder.mkdir(parents=True)
    noise = random.Random(0)
    (folder / "manifest.json").write_text(json.dumps(manifest(noise)), encoding="utf-8")
    with (folder / "batches.jsonl").open("w", encoding="utf-8") as file:
        for number in range(num_batches):
            file.write(json.dumps(_batch(number, noise)) + "\n")
    return folder


def _batch(number: int, noise: random.Random) -> dict[str, Any]:
    is_bad = number % 23 == 7
    return {
        "source": "filtered_web" if is_bad else "filtered_code", "task": number // 4,
        "batch": number % 4, "rows": 512,
        "diversity": round(0.41 if is_bad else noise.gauss(0.91, 0.03), 4),
        "distinct_2": noise.gauss(0.6, 0.05), "vendi": noise.gauss(300, 20),
        "complexity": noise.gauss(0.5, 0.05),
        "accuracy": None if number % 3 else 1.0, "toxicity": abs(noise.gauss(0.02, 0.01)),
        "failed": ["diversity"] if is_bad else [],
    }  # fmt: skip


def manifest(noise: random.Random) -> dict[str, Any]:
    """Return a corpus's manifest as the engine writes it."""
    stages = ("read", "generated", "processed", "gated", "exact", "near", "kept")
    rows = (20_000, 3_000, 21_743, 20_719, 20_104, 19_820, 19_811)
    return {
        "version": 1, "kind": "corpus", "name": "eight experts, small", "fingerprint": "ab12" * 16,
        "settings": {"gate": GATE, "name": "eight experts, small", "processors": {
            "code": [{"kind": "clean"}, {"kind": "secrets"}], "text": [{"kind": "clean"}]}},
        "tokenizer": {"name": "mistral-common:v3", "vocab_size": 32768, "digest": "d1" * 32},
        "versions": {"python": "3.12.11", "pypdfium2": "5.15.2", "rensa": "0.5.0"},
        "inputs": {"files": 1_204, "bytes": 93_412_333},
        "funnel": [{"stage": stage, "rows": n} for stage, n in zip(stages, rows, strict=True)],
        "sources": {
            source: {"type": source, "expert": expert, "kind": kind, "licence": licence,
                     "files": 400, "read": 6_600, "rejected": 419, "set_aside": 341,
                     "duplicates": 205, "near_duplicates": 95, "bridges": 3, "kept": 6_603,
                     "tokens": 4_404_123}
            for expert, (source, kind, licence, _) in EXPERTS.items()
        },
        "experts": {expert: _expert(expert, levels, noise)
                    for expert, (_, _, _, levels) in EXPERTS.items()},
        "length_bins": [1 << k for k in range(20)],
        "rejects": {
            "file": "rejects.jsonl", "by_kind": KINDS,
            "by_source": {"filtered_web": KINDS},
            "examples": {kind: [{"id": f"web/dump.jsonl.gz!dump.jsonl#{n}",
                                 "reason": f"expected something else than {kind}, at line {n}"}
                                for n in (3, 44, 1811)] for kind in KINDS},
        },
        "licences": {"MIT": {"documents": 6_603, "tokens": 4_404_123},
                     "CC-BY-4.0": {"documents": 6_603, "tokens": 4_404_100},
                     "ODC-By-1.0": {"documents": 6_603, "tokens": 3_000_000}},
        "languages": {name: {"documents": n // 500, "tokens": n} for name, n in
                      (("en", 9_800_000), ("de", 910_000), ("fr", 88_000), ("ja", 1_003))},
        "made_by": {"read": {"documents": 16_800, "tokens": 11_000_000},
                    "code_tasks/1": {"documents": 3_000, "tokens": 800_000}},
        "pii": {"email": 91, "phone": 12, "iban": 1},
        "batches": {"file": "batches.jsonl", "passed": 57, "failed": 3},
        "near_duplicates": {
            "clusters": 161, "rows": 445, "sizes": {"2": 120, "3": 31, "4": 8, "10": 1, "25": 1},
            "largest": [{"size": 25, "kept": "src/LICENSE",
                         "members": [f"pkg_{n:02d}/LICENSE" for n in range(24)]},
                        {"size": 10, "kept": "a.md", "members": ["b.md"]}],
        },
        "split": {"eval_fraction": 0.2, "bridges": 9, "from_before": 4_000},
        "scans": {"documents": 2, "examples": ["pdf/scan_1987.pdf", "archive.zip!plates.pdf"]},
    }  # fmt: skip


def _expert(name: str, levels: tuple[str, ...], noise: random.Random) -> dict[str, Any]:
    counts = [round(5_000 * math.exp(-((k - 9) ** 2) / 5) * (0.7 + noise.random())) for k in
              range(20)]  # fmt: skip
    total = sum(counts)
    held_out = total // 5
    sizes = [total // 5] * 4 + [total - 4 * (total // 5)]
    return {
        "folder": name,
        "train": {"documents": total - held_out, "tokens": 500 * (total - held_out)},
        "eval": {"documents": held_out, "tokens": 500 * held_out},
        "levels": [{"name": level, "documents": size, "tokens": 500 * size}
                   for level, size in zip(levels, sizes, strict=True)],
        "lengths": counts,
        "difficulty": {"edges": [n / 20 for n in range(21)],
                       "counts": [round(total / 20 * (0.6 + 0.8 * noise.random()))
                                  for _ in range(20)]},
    }  # fmt: skip
