"""Rows made fit to learn, step after step: cleaned, judged, freed of personal data, named.

`make_resources` once for a config, then `build` in each worker: the function it returns takes a
row through the steps and gives it back, or the reject of the first step that keeps it out. Steps
are pure: the same row gives the same result in every process. Steps that need an optional library
import it when the first row comes.
"""

from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors import clean
from data_pipelines.processors import code
from data_pipelines.processors import decontaminate
from data_pipelines.processors import expert
from data_pipelines.processors import language
from data_pipelines.processors import maths
from data_pipelines.processors import media
from data_pipelines.processors import pii
from data_pipelines.processors import quality
from data_pipelines.processors import secrets
from data_pipelines.processors import standard_form
from data_pipelines.processors import toxicity
from data_pipelines.processors.resources import Resources
from mistral_jax.config.processors import Decontaminate
from mistral_jax.config.processors import Processors
from mistral_jax.config.processors import Step

VERSION = 1  # counts up when a step gives something else for the same row
BUILDERS: dict[str, Callable[..., Callable[[Row], Row | Reject]]] = {
    "clean": clean.build,
    "code": code.build,
    "decontaminate": decontaminate.build,
    "expert": expert.build,
    "language": language.build,
    "maths": maths.build,
    "media": media.build,
    "pii": pii.build,
    "quality": quality.build,
    "secrets": secrets.build,
    "standard_form": standard_form.build,
    "toxicity": toxicity.build,
}


def build(
    steps: Iterable[Step], *, resources: Resources | None = None
) -> Callable[[Row], Row | Reject]:
    """Return the function that takes a row through the steps.

    Raises:
        ValueError: a step needs resources that were not made.
    """
    built = [BUILDERS[step.kind](step, resources or Resources()) for step in steps]

    def run(row: Row) -> Row | Reject:
        for step in built:
            result = step(row)
            if isinstance(result, Reject):
                return result
            row = result
        return row

    return run


def make_resources(config: Processors, folder: Path) -> Resources:
    """Write what the steps of a config need into a folder, and return where it is.

    Raises:
        ValueError: an evaluation set cannot be read.
    """
    steps = [
        step for kind in (config.text, config.code, config.math, config.media) for step in kind
    ]
    digests = {
        decontaminate.file_name(step): decontaminate.write_index(step, folder)
        for step in steps
        if isinstance(step, Decontaminate) and step.sets
    }
    return Resources(folder, digests) if digests else Resources()
