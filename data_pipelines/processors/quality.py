"""The rules of `quality`: what a text must be like to be worth learning.

Gopher, C4 and FineWeb give most of them; config/processors.py has the limits with their sources.
The first rule that a row breaks is the kind of its reject, and its number is in the reason.
"""

import operator
import re
from collections.abc import Callable
from collections.abc import Iterator

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors import ngrams
from data_pipelines.processors.resources import Resources
from data_pipelines.processors.stop_words import STOP_WORDS
from mistral_jax.config import processors

Broken = tuple[str, str]  # the kind of a reject, and its sentence
FIRST = operator.itemgetter(0)
BULLETS = frozenset("•‣▪●◦○■□·*-–—+>")
ELLIPSES = ("...", "…", "[…]", "[...]")
TERMINALS = tuple(".!?\"'”’»:;。！？؟।…)")
LETTERS = bytes(byte for byte in range(256) if byte >= 0x80 or chr(byte).isalpha())
SPACES = b" \t\n\r\v\f"
# Thai, Lao, Burmese, Khmer, kana, Han.
NO_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
NO_SPACES_SHARE = 0.3
SCRIPT_SAMPLE = 2000
STOP_WORD_SAMPLE = 10_000
STOP_WORDS_FROM = 50  # words; shorter texts may do without


def build(config: processors.Quality, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources

    def judge(row: Row) -> Row | Reject:
        broken = first_broken(row, config)
        return row if broken is None else Reject(row.id, *broken)

    return judge


def first_broken(row: Row, config: processors.Quality) -> Broken | None:
    """Return the first rule that a row breaks, None if it keeps all."""
    is_document = row.document.kind == "text"
    language = row.facts.get("language") or row.document.facts.get("language")
    text = row.text
    seen = text[: config.sample_bytes]
    has_spaces = not _is_without_spaces(seen)
    words = seen.split()
    if has_spaces:
        count = len(words) if len(seen) == len(text) else _count_words(text)
    else:
        count = sum(map(len, words))
    needed = config.min_words if is_document else config.min_said_words
    if count < needed:
        return "too_few_words", f"{count} words; at least {needed} are asked for"
    if config.max_words and count > config.max_words:
        return "too_many_words", f"{count} words; at most {config.max_words} are wanted"
    # The rules below are about running text: a row with nothing to count keeps them all.
    if not words:
        return None
    for rule in _rules(seen, words, config, language, is_document, has_spaces):
        if rule is not None:
            return rule
    return None


def _rules(
    text: str,
    words: list[str],
    config: processors.Quality,
    language: str | None,
    is_document: bool,
    has_spaces: bool,
) -> Iterator[Broken | None]:
    yield _phrases(text, config)
    if has_spaces and is_document:
        yield _words(text, words, config, language)
    if is_document:
        yield _alphabetic(text, config)
        yield _lines(text, config)
        yield _paragraphs(text, config)
        yield _ngrams(text, config)


def _is_without_spaces(text: str) -> bool:
    if text.isascii():
        return False
    sample = text[:SCRIPT_SAMPLE]
    return len(NO_SPACES.findall(sample)) > NO_SPACES_SHARE * len(sample)


def _count_words(text: str) -> int:
    step = ngrams.PIECE_BYTES
    return sum(len(text[start : start + step].split()) for start in range(0, len(text), step))


def _phrases(text: str, config: processors.Quality) -> Broken | None:
    if not config.refuse_phrases:
        return None
    lowered = text.lower()
    for phrase in config.refuse_phrases:
        if phrase in lowered:
            return "refused_phrase", f"holds the phrase {phrase!r}"
    return None


def _words(
    text: str, words: list[str], config: processors.Quality, language: str | None
) -> Broken | None:
    count = len(words)
    if config.mean_word_length is not None:
        low, high = config.mean_word_length
        mean = sum(map(len, words)) / count
        if not low <= mean <= high:
            return "word_length", f"{mean:.1f} characters a word; {low:g} to {high:g} are usual"
    if config.max_symbol_ratio is not None:
        ratio = (text.count("#") + text.count("...") + text.count("…")) / count
        if ratio > config.max_symbol_ratio:
            return "symbols", f"{ratio:.2f} signs a word; at most {config.max_symbol_ratio:g}"
    known = STOP_WORDS.get(language or "")
    if known and config.min_stop_words and count >= STOP_WORDS_FROM:
        found = len(known.intersection(text[:STOP_WORD_SAMPLE].lower().split()))
        if found < config.min_stop_words:
            return (
                "stop_words",
                f"{found} of the commonest words of {language!r}; a running text has at least "
                f"{config.min_stop_words}",
            )
    return None


def _alphabetic(text: str, config: processors.Quality) -> Broken | None:
    if not config.min_alphabetic:
        return None
    signs = text.encode("utf-8", "surrogatepass").translate(None, SPACES)
    share = 1 - len(signs.translate(None, LETTERS)) / len(signs)
    if share >= config.min_alphabetic:
        return None
    return "few_letters", f"{share:.0%} letters; at least {config.min_alphabetic:.0%}"


def _lines(text: str, config: processors.Quality) -> Broken | None:
    lines = [line for each in text.split("\n") if (line := each.strip())]
    count = len(lines)
    if config.max_duplicate_lines is not None:
        share = _repeated_share(lines)
        if share > config.max_duplicate_lines:
            return "duplicate_lines", f"{share:.0%} of the text stands in lines that came before"
    if config.max_bullet_lines is not None and count > 1:
        share = sum(map(BULLETS.__contains__, map(FIRST, lines))) / count
        if share > config.max_bullet_lines:
            return "bullets", f"{share:.0%} of the lines begin with a bullet"
    if config.max_ellipsis_lines is not None and ("..." in text or "…" in text):
        share = sum([line.endswith(ELLIPSES) for line in lines]) / count
        if share > config.max_ellipsis_lines:
            return "ellipses", f"{share:.0%} of the lines end in an ellipsis"
    if config.min_terminal_lines:
        share = sum([line.endswith(TERMINALS) for line in lines]) / count
        if share < config.min_terminal_lines:
            return "line_ends", f"{share:.0%} of the lines end in punctuation"
    return None


def _paragraphs(text: str, config: processors.Quality) -> Broken | None:
    if config.max_duplicate_paragraphs is None:
        return None
    share = _repeated_share([each for each in text.split("\n\n") if each and not each.isspace()])
    if share > config.max_duplicate_paragraphs:
        return "duplicate_paragraphs", f"{share:.0%} of the text is paragraphs that came before"
    return None


def _repeated_share(pieces: list[str]) -> float:
    different = set(pieces)
    if len(different) == len(pieces):
        return 0.0
    return 1 - sum(map(len, different)) / sum(map(len, pieces))


def _ngrams(text: str, config: processors.Quality) -> Broken | None:
    if not config.max_top_ngram and not config.max_duplicate_ngrams:
        return None
    words = ngrams.word_hashes(ngrams.normalised(text))
    if len(words) < 2:
        return None
    # A run comes no more often than a shorter one inside it: what those counted spares most texts
    # the longer runs. The same holds for the runs that stood before.
    highest = len(words)
    for length, limit in sorted(config.max_top_ngram.items()):
        if highest * length > limit * len(words):
            highest, _ = ngrams.repeats(ngrams.run_hashes(words, length))
        share = highest * length / len(words)
        if highest > 1 and share > limit:
            return f"top_{length}gram", f"one run of {length} words makes up {share:.0%} of it"
    before = len(words)
    for length, limit in sorted(config.max_duplicate_ngrams.items()):
        count = max(1, len(words) - length + 1)
        if before > limit * count:
            before = ngrams.repeats(ngrams.run_hashes(words, length))[1]
        if before > limit * count:
            told = f"{before / count:.0%} of its runs of {length} words came before"
            return f"duplicate_{length}grams", told
    return None
