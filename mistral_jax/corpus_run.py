"""The verb `prepare CONFIG`: a corpus in a folder or a bucket, with its report."""

import functools
import sys
from pathlib import Path
from typing import Any

from data_pipelines import prepare
from data_pipelines.corpus import build
from data_pipelines.corpus import map_task
from data_pipelines.corpus import progress
from data_pipelines.corpus import remote
from mistral_jax import api
from mistral_jax import protocols
from mistral_jax import storage
from mistral_jax.config import corpus as corpus_config
from mistral_jax.config.generators import ModelWriter
from mistral_jax.report import corpus as corpus_report
from mistral_jax.report import page


def run(path: str, overrides: list[str]) -> dict[str, Any]:
    """Make the corpus of a config, and return what to show: counts and places."""
    config = corpus_config.load_corpus(path, overrides)
    output = config.output
    load_writers(config)
    with progress.Progress() as shown:
        if storage.is_remote(output):
            report = functools.partial(corpus_report.write, place=output.rstrip("/"))
            made = remote.make(config, progress=shown, say=_to_stderr, finish=report)
        else:
            made = build.build(config, Path(output).expanduser(), progress=shown)
            corpus_report.write(made.folder)
    return summary(made, output) | {"report": f"{output.rstrip('/')}/{page.REPORT_FILE}"}


class ChatWriter:
    """A checkpoint that answers prompts in its own chat format: a protocols.Generator."""

    def __init__(self, weights: str):
        """Load the checkpoint."""
        self._model = api.load(weights)

    def generate(
        self, prompts: list[str], *, max_tokens: int, seed: int
    ) -> list[protocols.Completion]:
        """Return one answer for each prompt, the likeliest one."""
        return api.generate(self._model, prompts, max_tokens=max_tokens, seed=seed)


def load_writers(config: corpus_config.CorpusConfig) -> None:
    """Load the checkpoints that write texts of a corpus.

    Raises:
        ValueError: there are some, and the tasks would run in other processes than this one.
    """
    writers = [config.writer, *(each.writer for each in config.generators)]
    wanted = {each.weights for each in writers if isinstance(each, ModelWriter)}
    if wanted and config.executor != corpus_config.LocalExecutor(workers=1):
        raise ValueError(
            "writer.kind=model: a checkpoint is loaded once, in this process; set "
            "executor.workers=1, or serve it and name the server by writer.kind=endpoint"
        )
    map_task.models.update({weights: ChatWriter(weights) for weights in sorted(wanted)})


def summary(made: prepare.Prepared, output: str) -> dict[str, Any]:
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
