"""Where text comes from and how it becomes rows: sources, weights, lengths, the tokenizer."""

from typing import Annotated
from typing import Literal

from pydantic import Field

from mistral_jax.config.base import Count
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegativeInt
from mistral_jax.config.base import Positive
from mistral_jax.config.curriculum import Curriculum
from mistral_jax.config.curriculum import NoCurriculum


class Source(Node):
    """One weighted source: a prepared folder (with manifest.json), or raw documents.

    Raw means a folder, one file or an archive of PDF, Markdown, text or JSONL.
    """

    name: str
    path: str
    weight: Positive = 1.0


class BestFitPacking(Node):
    """Best-fit packing inside blocks of rows; a document is split only when longer than a row."""

    kind: Literal["best_fit"] = "best_fit"
    block_rows: Count = 512


class NoPacking(Node):
    """One document a row, cut at the row's end; the rest of the row is padding."""

    kind: Literal["none"] = "none"
    block_rows: Count = 512


Packing = Annotated[BestFitPacking | NoPacking, Field(discriminator="kind")]


class DataConfig(Node):
    """The data of a run.

    `train` and `eval` take a path or a list of weighted sources. `eval_fraction` of the documents
    of `train` are held out, chosen by a hash of their text; `eval` names further sources that the
    run only looks at.

    Attributes:
        max_examples_per_document: rows of `train`'s JSONL that are kept of those made from one
            document.
        epochs: how often the run goes through `train`, in place of optimizer.max_steps. A pass
            ends where the source that runs out first, against its weight, has run through once;
            a curriculum does not make it longer or shorter.
    """

    train: str | tuple[Source, ...]
    eval: str | tuple[Source, ...] | None = None
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    sequence_length: Count
    global_batch_sequences: Count
    tokenizer: str = "auto"
    packing: Packing = BestFitPacking()
    shuffle: bool = True
    curriculum: Curriculum = NoCurriculum()
    max_documents: Count | None = None
    max_examples_per_document: Count | None = None
    epochs: Positive | None = None
    prefetch_batches: NonNegativeInt = 2
    worker_count: NonNegativeInt = 0
