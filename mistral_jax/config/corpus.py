"""A corpus: sources and generators in, one prepared folder for each expert out (`prepare CONFIG`).

What happens to a row in between is set in the nodes beside this file: sources, processors, gate,
near_duplicates, verify, generators.
"""

from pathlib import Path
from typing import Annotated
from typing import Any
from typing import Literal

from pydantic import Field

from mistral_jax.config import load
from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegativeInt
from mistral_jax.config.base import Seed
from mistral_jax.config.corpus_sources import CorpusSource
from mistral_jax.config.gate import Gate
from mistral_jax.config.generators import Generator
from mistral_jax.config.generators import TemplateWriter
from mistral_jax.config.generators import Writer
from mistral_jax.config.near_duplicates import NearDuplicates
from mistral_jax.config.processors import Processors
from mistral_jax.config.verify import VerifyConfig


class LocalExecutor(Node):
    """Tasks in processes of this machine.

    Attributes:
        workers: processes; 0 takes one for each core.
    """

    kind: Literal["local"] = "local"
    workers: NonNegativeInt = 0


class RayExecutor(Node):
    """Tasks on a Ray cluster, whose hosts see the output folder under the same path.

    Attributes:
        address: of the cluster; "auto" finds the one that this host belongs to, "local" starts
            one here.
        workers: tasks at a time; 0 takes one for each core of the cluster.
    """

    kind: Literal["ray"]
    address: str = "auto"
    workers: NonNegativeInt = 0


JOIN_ON = {"runner", "ray_address", "join_keys"}
Executor = Annotated[LocalExecutor | RayExecutor, Field(discriminator="kind")]


class CorpusConfig(Node):
    """Everything that decides what a prepared corpus holds, and where it goes.

    Attributes:
        name: of the corpus, in its manifest and report.
        seed: of the generators.
        sources: what is read, in this order.
        generators: what is made, after all sources.
        writer: who writes the generators' texts, where one does not say otherwise.
        processors: the steps that rows of each kind go through.
        gate: what a batch of rows must reach, or it is set aside.
        verify: limits of the sandbox and the checkers.
        near_duplicates: how they are found; null looks for exact duplicates only.
        output: folder or URI; gets a folder for each expert, manifest.json and report.html.
        tokenizer: the model's, as `train` takes it; null writes no shards, only readable files.
        readable: what people get beside the shards, for each expert: train_dataset and
            val_dataset as JSONL or Parquet.
        max_documents: PDFs that are read, in the order of the sources.
        max_bad_fraction: of a source's rows; above it the run stops and says so.
        min_rows_for_stop: so many rows are read of a source before that rule holds.
        task_bytes: input of one task: what a killed run does over again.
        task_rows: rows of a generator in one task.
        executor: where tasks run.
        eval_fraction: share of near-duplicate clusters that is held out.
    """

    name: str
    output: str
    seed: Seed = 0
    tokenizer: str | None = None
    sources: tuple[CorpusSource, ...] = ()
    generators: tuple[Generator, ...] = ()
    writer: Writer = TemplateWriter()
    processors: Processors = Processors()
    gate: Gate = Gate()
    verify: VerifyConfig = VerifyConfig()
    near_duplicates: NearDuplicates | None = NearDuplicates()
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    readable: Literal["jsonl", "parquet"] | None = "jsonl"
    max_documents: Count = 50_000
    max_bad_fraction: Fraction = 0.01
    min_rows_for_stop: Count = 1000
    task_bytes: Count = 32 << 20
    task_rows: Count = 4096
    executor: Executor = LocalExecutor()

    def facts(self) -> dict[str, Any]:
        """Return everything that decides what the corpus holds, and nothing of the machine."""
        on_machine: Any = {"output": True, "executor": True, "near_duplicates": JOIN_ON}
        return self.model_dump(mode="json", exclude=on_machine)


def load_corpus(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> CorpusConfig:
    """Read, override and validate a corpus's config.

    Raises:
        ConfigError: one line per mistake, each with the dotted path and what is allowed.
    """
    tree = load.merge_trees(load.read_tree(path), load.parse_overrides(list(overrides)))
    if isinstance(executor := tree.get("executor"), dict):
        executor.setdefault("kind", "local")  # so that executor.workers=1 alone says enough
    return load.validate(tree, CorpusConfig, where=str(path))
