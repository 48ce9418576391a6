"""What a row goes through between the reader and the shards: the steps of each kind of row.

A step is a node with a `kind:`; the four kinds of row have a list of steps each, with defaults
that are sound for prose, source code, mathematics and media. The limits follow Gopher
(arXiv:2112.11446, table A1), C4 (arXiv:1910.10683) and FineWeb (arXiv:2406.17557) where their
authors give one, loosened where prose that is not English web text would fail them.
"""

from typing import Annotated
from typing import Literal

from pydantic import Field

from mistral_jax.config.base import BelowOne
from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative
from mistral_jax.config.base import NonNegativeInt
from mistral_jax.config.base import Positive

PiiKind = Literal["email", "phone", "iban", "card", "ssn", "ip", "passport"]
Action = Literal["replace", "reject"]


class Clean(Node):
    """Unicode form, line ends and space made regular; boilerplate taken away.

    Attributes:
        boilerplate: drop lines of navigation, cookie notices and the like from text, and the
            running heads and feet of paged documents. Never where a row's kind is code.
    """

    kind: Literal["clean"] = "clean"
    boilerplate: bool = True


class Language(Node):
    """The language of a row as the fact `language` (ISO 639), "und" where nothing is sure.

    Attributes:
        allow: languages that stay; empty for all.
        min_confidence: below it the language is "und".
        min_letters: shorter texts are "und": the detector guesses there.
        sample_characters: how much of a text is looked at, links and code left out.
        unknown: what happens to "und" where `allow` is given.
    """

    kind: Literal["language"] = "language"
    allow: tuple[str, ...] = ()
    min_confidence: Fraction = 0.5
    min_letters: Count = 20
    sample_characters: Count = 1000
    unknown: Literal["keep", "reject"] = "keep"


class Quality(Node):
    """Rules that a text must keep; each has its own kind of reject. 0 or null switches one off.

    Words are separated by space; in scripts written without it (Chinese, Japanese, Thai, ...) a
    character counts as a word, and rules that are about space-separated words are left out.

    Attributes:
        min_words: of a text document (Gopher: 50).
        max_words: of any row.
        min_said_words: of a chat or a completion with its prompt.
        mean_word_length: lowest and highest mean of characters per word.
        max_symbol_ratio: number signs and ellipses per word.
        min_alphabetic: share of letters among the characters that are not space (bytes >= 128
            count as letters); this rule and those about lines and n-grams are for text
            documents, not for chats and completions.
        max_bullet_lines: share of lines that begin with a bullet.
        max_ellipsis_lines: share of lines that end in an ellipsis.
        max_duplicate_lines: share of characters in lines that stood before.
        max_duplicate_paragraphs: share of characters in paragraphs that stood before.
        max_top_ngram: by n, the share of words in the most frequent n-gram.
        max_duplicate_ngrams: by n, the share of n-grams that stood before.
        min_stop_words: different stop words of the row's language, where we have a list of it
            and the text has >= 50 words.
        min_terminal_lines: share of lines that end in punctuation (FineWeb: 0.12).
        refuse_phrases: texts holding one of these are left out.
        sample_bytes: n-grams are counted in this much of a text, from its beginning.
    """

    kind: Literal["quality"] = "quality"
    min_words: NonNegativeInt = 20
    max_words: Count | None = None
    min_said_words: NonNegativeInt = 3
    mean_word_length: tuple[Positive, Positive] | None = (2.5, 12.0)
    max_symbol_ratio: NonNegative | None = 0.1
    min_alphabetic: Fraction = 0.6
    max_bullet_lines: Fraction | None = 0.9
    max_ellipsis_lines: Fraction | None = 0.3
    max_duplicate_lines: Fraction | None = 0.3
    max_duplicate_paragraphs: Fraction | None = 0.3
    max_top_ngram: dict[int, Fraction] = Field(default={2: 0.2, 3: 0.18, 4: 0.16})
    max_duplicate_ngrams: dict[int, Fraction] = Field(default={5: 0.3, 10: 0.2})
    min_stop_words: NonNegativeInt = 2
    min_terminal_lines: Fraction = 0.0
    refuse_phrases: tuple[str, ...] = ("lorem ipsum",)
    sample_bytes: Count = 1 << 20


class Pii(Node):
    """Personal data: replaced by a typed placeholder, or the row is left out.

    Attributes:
        kinds: what is looked for. Cards need their Luhn digit, IBANs their remainder, addresses
            must be public ones, phones must be written as phones.
        action: `replace` writes <EMAIL>, <PHONE> and so on, and counts in the fact `pii`.
        reject_above: a row with more of them is left out whatever the action: a list of people.
    """

    kind: Literal["pii"] = "pii"
    kinds: tuple[PiiKind, ...] = ("email", "phone", "iban", "card", "ssn", "ip", "passport")
    action: Action = "replace"
    reject_above: NonNegativeInt | None = 100


class Secrets(Node):
    """Keys, tokens and passwords that open something.

    Attributes:
        action: `replace` writes <SECRET> and counts in the fact `pii`.
        min_entropy_bits: per character, of a quoted value that is assigned to a telling name.
    """

    kind: Literal["secrets"] = "secrets"
    action: Action = "replace"
    min_entropy_bits: NonNegative = 3.0


class Toxicity(Node):
    """A weak first gate: the probability of alt-profanity-check as the fact `toxicity`.

    A long text is looked at in windows, evenly spread over it; the fact is their mean, beside
    `toxicity_max`. The limits are wide because the model takes technical words for abuse: see
    the calibration report.

    Attributes:
        max_mean: rows above it are left out.
        max_window: rows with a window above it are left out; null for none.
        window_words: words of a window.
        max_windows: windows of one text.
    """

    kind: Literal["toxicity"] = "toxicity"
    max_mean: Fraction = 0.8
    max_window: Fraction | None = None
    window_words: Count = 100
    max_windows: Count = 20


class EvaluationSet(Node):
    """Texts that a model will be tested on.

    Attributes:
        name: what rejects call it.
        path: JSONL (also .gz) or a text file, or a folder of them.
        fields: the fields of a row that hold text; empty for every text in it.
    """

    name: str
    path: str
    fields: tuple[str, ...] = ()


class Decontaminate(Node):
    """Rows that share a run of words with an evaluation set are left out.

    Attributes:
        sets: the evaluation sets; none makes this step do nothing.
        ngram_words: length of the run (GPT-3, arXiv:2005.14165, appendix C: 13). Texts of an
            evaluation set that are shorter count as a whole from `min_words` on.
        min_words: see above.
        min_hits: how many runs must be shared.
    """

    kind: Literal["decontaminate"] = "decontaminate"
    sets: tuple[EvaluationSet, ...] = ()
    ngram_words: Count = 13
    min_words: Count = 8
    min_hits: Count = 1


class StandardForm(Node):
    """One spelling for the same thing.

    Attributes:
        fences: code fences in one spelling, and closed.
        threads: a text that is questions and answers in turn becomes a chat.
        chats: turns of one speaker in a row become one, unanswered ends are cut.
    """

    kind: Literal["standard_form"] = "standard_form"
    fences: bool = True
    threads: bool = True
    chats: bool = True


class Expert(Node):
    """Whose a row is, by what is in it; without this step a row goes where its source says.

    Attributes:
        only: sources whose rows may move; empty for all.
        min_markers: marks per 1,000 words that an expert needs to claim a row from `general`.
    """

    kind: Literal["expert"] = "expert"
    only: tuple[str, ...] = ()
    min_markers: Positive = 8.0


class Code(Node):
    """Source code that someone wrote, and that parses.

    Attributes:
        parse: Python must parse; other languages must not end inside brackets, off by more than
            `max_unbalanced` of them.
        max_unbalanced: share of brackets without a partner, by their numbers.
        max_line: characters of the longest line; longer ones are minified or data.
        max_mean_line: mean characters per line.
        min_alphanumeric: share of letters and digits among the characters that are not space.
        max_literal: share of digits, or of words of over 200 characters: data, not code.
        generated: leave out files that say they are generated.
        licences: SPDX identifiers that stay where a file names one; empty for all. The name is
            kept as the fact `spdx`.
    """

    kind: Literal["code"] = "code"
    parse: bool = True
    max_unbalanced: Fraction = 0.1
    max_line: Count = 1000
    max_mean_line: Positive = 100.0
    min_alphanumeric: Fraction = 0.25
    max_literal: BelowOne = 0.4
    generated: bool = True
    licences: tuple[str, ...] = ()


class Maths(Node):
    """Mathematics whose formulas are whole.

    Attributes:
        balanced: LaTeX braces, dollars and environments must close.
        min_density: share of words that are or hold mathematics; 0 for any.
    """

    kind: Literal["maths"] = "maths"
    balanced: bool = True
    min_density: Fraction = 0.0


class Media(Node):
    """A media row has checked metadata and something to say.

    Attributes:
        min_caption_words: of the text that goes with it.
        names_as_captions: a file without a text gets the words of its name as one, and says so
            in the fact `caption_from`.
        min_side: pixels of an image's or video's shorter side.
        min_seconds: of audio and video.
    """

    kind: Literal["media"] = "media"
    min_caption_words: NonNegativeInt = 1
    names_as_captions: bool = False
    min_side: NonNegativeInt = 16
    min_seconds: NonNegative = 0.1


Step = Annotated[
    Clean
    | Language
    | Quality
    | Pii
    | Secrets
    | Toxicity
    | Decontaminate
    | StandardForm
    | Expert
    | Code
    | Maths
    | Media,
    Field(discriminator="kind"),
]
Steps = tuple[Step, ...]

# Code holds few words and many signs, formulas as well: the rules about prose are off there.
NO_PROSE = Quality(
    min_words=5,
    mean_word_length=None,
    max_symbol_ratio=None,
    min_alphabetic=0.25,
    max_bullet_lines=None,
    max_ellipsis_lines=None,
    max_duplicate_lines=0.6,
    max_duplicate_paragraphs=0.5,
    max_top_ngram={2: 0.4},
    max_duplicate_ngrams={10: 0.6},
    min_stop_words=0,
    refuse_phrases=(),
)


class Processors(Node):
    """The steps of each kind of row, in their order."""

    text: Steps = (
        Clean(), Language(), Quality(), Pii(), Secrets(), Toxicity(), StandardForm(),
    )  # fmt: skip
    code: Steps = (
        Clean(boilerplate=False), NO_PROSE, Code(), Pii(kinds=("email", "ip")), Secrets(),
    )  # fmt: skip
    math: Steps = (
        Clean(boilerplate=False), NO_PROSE, Maths(), Pii(kinds=("email",)),
    )  # fmt: skip
    media: Steps = (Media(), Clean(boilerplate=False), Language(), Pii(), Toxicity())
