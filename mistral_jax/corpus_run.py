"""The verb `prepare CONFIG`: a corpus in a folder or a bucket, with its report."""

from pathlib import Path
from typing import Any

from data_pipelines.corpus import build
from data_pipelines.corpus import progress
from mistral_jax.config import corpus as corpus_config
from mistral_jax.report import corpus as corpus_report


def run(path: str, overrides: list[str]) -> dict[str, Any]:
    """Make the corpus of a config, and return what to show: counts and places."""
    config = corpus_config.load_corpus(path, overrides)
    folder = Path(config.output).expanduser()
    made = build.build(config, folder, progress=progress.Progress.for_terminal())
    report = corpus_report.write(made.folder)
    return summary(made) | {"report": str(report)}


def summary(made: build.Built) -> dict[str, Any]:
    """Return a corpus's counts in short."""
    manifest = made.manifest
    return {
        "name": manifest["name"],
        "output": str(made.folder),
        "reused": made.is_reused,
        "resumed_tasks": made.resumed_tasks,
        "funnel": {each["stage"]: each["rows"] for each in manifest["funnel"]},
        "rejects": manifest["rejects"]["by_kind"],
        "experts": {
            name: {
                split: {key: entry[split][key] for key in ("documents", "tokens")}
                for split in ("train", "eval")
            }
            for name, entry in manifest["experts"].items()
        },
    }
