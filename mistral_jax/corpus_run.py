"""The verb `prepare CONFIG`: a corpus in a folder or a bucket, with its report."""

import sys
from pathlib import Path
from typing import Any

from data_pipelines.corpus import build
from data_pipelines.corpus import progress
from data_pipelines.corpus import remote
from mistral_jax import storage
from mistral_jax.config import corpus as corpus_config
from mistral_jax.report import corpus as corpus_report
from mistral_jax.report import page


def run(path: str, overrides: list[str]) -> dict[str, Any]:
    """Make the corpus of a config, and return what to show: counts and places."""
    config = corpus_config.load_corpus(path, overrides)
    output = config.output
    with progress.Progress() as shown:
        if storage.is_remote(output):
            made = remote.make(config, progress=shown, say=_to_stderr, finish=corpus_report.write)
        else:
            made = build.build(config, Path(output).expanduser(), progress=shown)
            corpus_report.write(made.folder)
    return summary(made, output) | {"report": f"{output.rstrip('/')}/{page.REPORT_FILE}"}


def summary(made: build.Built, output: str) -> dict[str, Any]:
    """Return a corpus's counts in short."""
    manifest = made.manifest
    return {
        "name": manifest["name"],
        "output": output,
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


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
