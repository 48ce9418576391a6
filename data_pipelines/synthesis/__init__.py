"""Rows that are made, not read: `build(config)` gives what makes them.

Generators of tasks make row i from (config, seed, i) alone; generators of documents make rows of
each document. Templates need no model; writers.py asks an endpoint or a model of ours instead.
Every row says how it was made and carries a check (data_pipelines/verify) that the gate runs:

- `check`: how the answer is verified; `topic`: the family; `level`, `difficulty`.
- `rejected` (preference_pairs): the wrong answer, in the shape of the completion.
- `cited` (document_questions): document, characters, quote, page.
- `media` (multimodal): kind, sha256, bytes, path below the media folder, caption.
"""

import functools
from collections.abc import Callable
from pathlib import Path

from data_pipelines.synthesis import base
from data_pipelines.synthesis import code_tasks
from data_pipelines.synthesis import creative
from data_pipelines.synthesis import document_questions
from data_pipelines.synthesis import instructions
from data_pipelines.synthesis import language
from data_pipelines.synthesis import maths
from data_pipelines.synthesis import multimodal
from data_pipelines.synthesis import preference_pairs
from data_pipelines.synthesis import reasoning_tasks
from data_pipelines.synthesis import scientific
from data_pipelines.synthesis import studio
from data_pipelines.synthesis.base import DocumentGenerator
from data_pipelines.synthesis.base import TaskGenerator
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.writers import Writer
from mistral_jax.config import generators

Make = Callable[[Draws, int, int], base.Task]


def build(
    config: generators.Generator,
    *,
    seed: int = 0,
    writer: Writer | None = None,
    media: str | Path | None = None,
) -> TaskGenerator | DocumentGenerator:
    """Return the generator of a config.

    Args:
        config: its node.
        seed: the corpus's.
        writer: who writes the texts (writers.build); None takes templates.
        media: folder or URI for the files of multimodal rows; None writes none.

    Raises:
        ValueError: the config names something that there is not.
    """
    if isinstance(config, generators.DocumentQuestions):
        return document_questions.DocumentQuestions(config, seed, writer)
    expert, version, make = _maker(config, media)
    return base.TaskRows(config, expert, version, make, seed, writer)


def _maker(config: generators.MadeRows, media: str | Path | None) -> tuple[str, int, Make]:
    """Return the kind's expert, its version and what makes its tasks."""
    match config:
        case generators.CodeTasks():
            make = functools.partial(
                code_tasks.make,
                library_share=config.standard_library_share,
                mutant_share=config.mutant_share,
                min_killed=config.min_killed,
            )
            return "code", code_tasks.VERSION, make
        case generators.Maths():
            return "math", maths.VERSION, maths.make
        case generators.ReasoningGym():
            datasets = reasoning_tasks.verify_names(config.datasets)
            make = functools.partial(reasoning_tasks.make, datasets=datasets)
            return "reasoning", reasoning_tasks.VERSION, make
        case generators.PreferencePairs():
            return "general", preference_pairs.VERSION, preference_pairs.make
        case generators.Scientific():
            return "scientific", scientific.VERSION, scientific.make
        case generators.Creative():
            return "creative", creative.VERSION, creative.make
        case generators.Language():
            return "language", language.VERSION, language.make
        case generators.Multimodal():
            room = studio.Studio(config.image_pixels, config.sample_rate, media)
            make = functools.partial(multimodal.make, studio=room)
            return "multimodal", multimodal.VERSION, make
        case generators.Instructions():
            return "general", instructions.VERSION, instructions.make
        case _:
            raise ValueError(f"expected a generator's config, got {type(config).__name__}")
