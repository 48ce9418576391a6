"""Which rows are made rather than read: generators, and who writes their texts.

A generator makes `rows` rows of its own, or, for `document_questions`, rows of every document that
was read. `levels` says how many of them are of each of the five levels. Without a model the texts
come from templates; an OpenAI-compatible endpoint or a checkpoint may write them, and what it
writes is checked against the same truth.
"""

from typing import Annotated
from typing import Literal

from pydantic import Field
from pydantic import model_validator

from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative
from mistral_jax.config.base import NonNegativeInt
from mistral_jax.config.base import Positive
from mistral_jax.config.base import Seed
from mistral_jax.config.corpus_sources import SourceName

Expert = Literal[
    "code", "math", "language", "reasoning", "multimodal", "scientific", "creative", "general"
]
LevelMix = tuple[NonNegative, NonNegative, NonNegative, NonNegative, NonNegative]
EVEN_LEVELS: LevelMix = (1.0, 1.0, 1.0, 1.0, 1.0)


class TemplateWriter(Node):
    """Templates and computed truths; no model."""

    kind: Literal["template"] = "template"


class EndpointWriter(Node):
    """Any OpenAI-compatible chat completions endpoint.

    Attributes:
        base_url: what stands before /chat/completions, such as http://127.0.0.1:8000/v1.
        api_key_env: environment variable that holds the key; null sends none.
        timeout_s: of one request, its whole answer included.
        deadline_s: of one text, retries included.
        requests_per_minute: 0 sets no limit.
        concurrency: requests at a time.
        answer_bytes: an answer that is longer is refused.
        price_input, price_output: per million tokens, in any currency; counted from the usage
            that the endpoint reports.
        max_cost: the run stops when more was spent; 0 sets no limit.
    """

    kind: Literal["endpoint"]
    base_url: str
    model: str
    api_key_env: str | None = None
    timeout_s: Positive = 120.0
    deadline_s: Positive = 600.0
    max_tokens: Count = 1024
    temperature: NonNegative = 0.7
    requests_per_minute: NonNegativeInt = 0
    concurrency: Count = 4
    answer_bytes: Count = 4 << 20
    price_input: NonNegative = 0.0
    price_output: NonNegative = 0.0
    max_cost: NonNegative = 0.0

    @model_validator(mode="after")
    def _check_url(self) -> "EndpointWriter":
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url must begin with http:// or https://, got {self.base_url!r}; "
                "an example is http://127.0.0.1:8000/v1"
            )
        return self


class ModelWriter(Node):
    """A checkpoint of ours, or any that we load.

    Attributes:
        weights: folder, file or URI, as `generate` takes it.
    """

    kind: Literal["model"]
    weights: str
    max_tokens: Count = 512
    batch_prompts: Count = 8


Writer = Annotated[TemplateWriter | EndpointWriter | ModelWriter, Field(discriminator="kind")]


class MadeRows(Node):
    """What all generators have.

    Attributes:
        name: of the source in the manifest.
        expert: whose rows they are; null takes the kind's own.
        rows: how many are made.
        seed: beside the corpus's; another one gives other rows.
        levels: weights of the levels 0 to 4.
        writer: null takes the corpus's.
    """

    name: SourceName
    expert: Expert | None = None
    rows: Count = 1000
    seed: Seed = 0
    levels: LevelMix = EVEN_LEVELS
    writer: Writer | None = None

    @model_validator(mode="after")
    def _check_levels(self) -> "MadeRows":
        if not sum(self.levels) > 0:
            raise ValueError("levels: expected a weight above 0, got none; 1 for each is even")
        return self


class DocumentQuestions(Node):
    """Question-answer pairs about each document, whose answers are spans of it.

    Attributes:
        sources: names of the sources whose documents are asked about; () takes all.
        expert: whose rows they are; null takes the document's.
        min_per_document, max_per_document: a document that cannot carry the first number gives
            what it can, and is counted.
        max_document_chars: what is read of a document.
        passage_share: share of the questions that come with the passage; the others are asked
            without it.
        languages: of documents that are asked; the templates are English.
        writer_chars: how much of a document a writer is shown.
    """

    kind: Literal["document_questions"]
    name: SourceName
    sources: tuple[str, ...] = ()
    expert: Expert | None = None
    min_per_document: Count = 15
    max_per_document: Count = 25
    max_document_chars: Count = 400_000
    passage_share: Fraction = 0.5
    languages: tuple[str, ...] = ("en",)
    writer_chars: Count = 16_000
    seed: Seed = 0
    writer: Writer | None = None

    @model_validator(mode="after")
    def _check_numbers(self) -> "DocumentQuestions":
        if self.min_per_document > self.max_per_document:
            raise ValueError(
                f"min_per_document ({self.min_per_document}) must not exceed "
                f"max_per_document ({self.max_per_document})"
            )
        return self


class CodeTasks(MadeRows):
    """Signature, implementation and tests from families of functions.

    Attributes:
        standard_library_share: share of rows from functions of Python's standard library whose
            docstrings hold examples.
        mutant_share: share of rows whose tests must also notice small changes to the code, which
            takes fifty times as long as running them; rows of one family share their code.
        min_killed: share of the changes that must be noticed there.
    """

    kind: Literal["code_tasks"]
    standard_library_share: Fraction = 0.05
    mutant_share: Fraction = 1.0
    min_killed: Fraction = 0.6


class Maths(MadeRows):
    """Problems with worked solutions whose answers sympy can check."""

    kind: Literal["maths"]


class ReasoningGym(MadeRows):
    """Tasks of reasoning-gym with its own verifiers.

    Attributes:
        datasets: its names for them; () takes the built-in choice.
    """

    kind: Literal["reasoning_gym"]
    datasets: tuple[str, ...] = ()


class PreferencePairs(MadeRows):
    """A prompt with a right answer, and a verifiably wrong one as `rejected`."""

    kind: Literal["preference_pairs"]


class Scientific(MadeRows):
    """Units, tables, figures as data, uncertainty, fits, dimensions: computed."""

    kind: Literal["scientific"]


class Creative(MadeRows):
    """Writing under constraints that can be checked."""

    kind: Literal["creative"]


class Language(MadeRows):
    """Translation, grammar and morphology from generated grammars."""

    kind: Literal["language"]


class Multimodal(MadeRows):
    """Rendered glyphs, charts and tones with known captions.

    Attributes:
        image_pixels: width of a rendered image.
        sample_rate: of tones, in Hz.
    """

    kind: Literal["multimodal"]
    image_pixels: Annotated[int, Field(ge=64, le=2048)] = 192
    sample_rate: Annotated[int, Field(ge=4000, le=48_000)] = 8000


class Instructions(MadeRows):
    """Instructions with a checkable form: JSON, lists, extraction, rewriting, word problems."""

    kind: Literal["instructions"]


Generator = Annotated[
    DocumentQuestions
    | CodeTasks
    | Maths
    | ReasoningGym
    | PreferencePairs
    | Scientific
    | Creative
    | Language
    | Multimodal
    | Instructions,
    Field(discriminator="kind"),
]
