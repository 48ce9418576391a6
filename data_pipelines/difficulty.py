"""How hard a row is to learn: a few features of it, and its rank among an expert's rows by them.

A feature is a number that grows with difficulty, or NaN where it says nothing of the row (branches
of what is not Python). Each is a proxy only; the score is the mean of a row's ranks by size,
texture, structure and a reference model's loss, so that no unit and no kind of evidence counts more
than another. Where the maker of a row knows its level, that holds.

Rarity is the tokenizer's: tokens per character. A tokenizer joins what is frequent, in any
language, so that rare words take more tokens; ids themselves are no ranks, since a SentencePiece
vocabulary lists its single characters last. Of code and maths it tells names and digits, and
nothing of how hard they are (Spearman -0.01 and -0.08 on generated rows, 2026-11). Readability is
the Automated Readability Index (Senter and Smith, 1967): characters per word and words per
sentence, no syllables.
"""

import ast
import math
import re
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from data_pipelines import levels
from data_pipelines.corpus.row import Row
from mistral_jax.protocols import Scorer
from mistral_jax.tokenizers import Tokenizer

NAMES: tuple[str, ...] = (
    "length",  # log of the characters
    "entropy",  # compressed bytes per byte, of a sample of one size
    "rarity",  # tokens per character, of a sample of prose
    "readability",  # Automated Readability Index, of a sample that is not code
    "numbers",  # digits per number, in maths
    "nesting",  # brackets in brackets, in maths and code
    "symbols",  # operators and brackets in a sample of maths or code, log
    "notions",  # different operators, variables and functions in a sample of maths
    "tree_depth",  # of Python's syntax tree
    "branches",  # decision points of Python code, log (McCabe, 1976)
    "turns",  # of a chat
    "loss",  # 1 - what the reference model's scorer says
)
# Kinds of evidence: each counts once, however many features speak for it.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("length",),
    ("entropy", "rarity", "readability", "numbers"),
    ("nesting", "symbols", "notions", "tree_depth", "branches", "turns"),
    ("loss",),
)
SAMPLE_CHARACTERS = 6_000  # of a long text, from its middle; looking at more does not change ranks
RARITY_CHARACTERS = 1_500  # tokenizing is the slowest part
CODE_CHARACTERS = 5_000  # the first statements of a long file, parsed
COMPRESSED_CHARACTERS = 1_000  # always so many: a longer text compresses better, however hard

_FUNCTIONS = (
    "abs", "arctan", "cos", "cosh", "cot", "deg", "det", "diff", "exp", "gcd", "inf", "int",
    "integral", "lcm", "lim", "limit", "ln", "log", "matrix", "max", "min", "mod", "prime", "proof",
    "prove", "root", "sin", "sinh", "sqrt", "sum", "tan", "tanh",
)  # fmt: skip
_NUMBER = re.compile(r"\d+")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]+(?:\s|$)|\n\s*\n")
_BRACKETS = re.compile(r"[()\[\]{}]")
_SYMBOL = re.compile(r"[-+*/^=<>|&%~()\[\]{}\\]|\u2211|\u222b|\u2200|\u2203|\u221a|\u2264|\u2265")
_NOTION = re.compile(r"\b[a-zA-Z]\b|\\[a-zA-Z]+|\b(?:" + "|".join(_FUNCTIONS) + r")\b|\*\*")
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_STATEMENT = re.compile(r"^(?=[^\s#)\]}])", re.MULTILINE)
_BRANCHES = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.Assert,
    ast.comprehension, ast.match_case,
)  # fmt: skip


def features(
    row: Row, *, tokenizer: Tokenizer | None = None, score: float | None = None
) -> Float[np.ndarray, " f"]:
    """Return a row's features, float32, in the order of NAMES.

    Args:
        row: whose text is looked at; long texts by samples, so that the cost does not grow.
        tokenizer: for the rarity of prose; without one it is NaN.
        score: what a reference model says of the text, 0 (cannot tell it) to 1 (knows it).
    """
    text = row.text
    middle = max(0, (len(text) - SAMPLE_CHARACTERS) // 2)
    sample = text[middle : middle + SAMPLE_CHARACTERS]
    found = dict.fromkeys(NAMES, math.nan)
    found["length"] = math.log1p(len(text))
    if len(sample) >= COMPRESSED_CHARACTERS:
        middle = (len(sample) - COMPRESSED_CHARACTERS) // 2
        raw = sample[middle : middle + COMPRESSED_CHARACTERS].encode("utf-8", "replace")
        found["entropy"] = len(zlib.compress(raw, 1)) / len(raw)
    is_prose = row.kind not in ("code", "math")
    if tokenizer is not None and is_prose and sample.strip():
        piece = sample[:RARITY_CHARACTERS]
        found["rarity"] = len(tokenizer.encode(piece)) / len(piece)
    if row.kind != "code":
        found["readability"] = _readability(sample)
    if not is_prose:
        symbols = _SYMBOL.findall(sample)
        found["nesting"] = _nesting(sample)
        found["symbols"] = math.log1p(len(symbols))
    if row.kind == "math":
        numbers = _NUMBER.findall(sample)
        found["numbers"] = sum(map(len, numbers)) / len(numbers) if numbers else math.nan
        found["notions"] = len({*symbols, *_NOTION.findall(sample)})
    if row.kind == "code":
        found["tree_depth"], found["branches"] = _syntax(_code_in(row))
    if row.document.kind == "chat":
        found["turns"] = len(row.document.messages)
    if score is not None:
        found["loss"] = 1.0 - score
    return np.array([found[name] for name in NAMES], np.float32)


def table_of(
    rows: Sequence[Row], *, tokenizer: Tokenizer | None = None, scorer: Scorer | None = None
) -> Float[np.ndarray, "n f"]:
    """Return the features of several rows; the scorer is asked once, for all texts."""
    scores: list[float | None] = [None] * len(rows)
    if scorer is not None and rows:
        scores = [score.value for score in scorer.score([row.text for row in rows])]
    found = [features(row, tokenizer=tokenizer, score=each) for row, each in zip(rows, scores)]
    return np.stack(found) if found else np.zeros((0, len(NAMES)), np.float32)


def known_level(row: Row) -> int | None:
    """Return the level that the row's maker knows: facts["level"], or by facts["difficulty"].

    Raises:
        ValueError: it is not a level, or not a difficulty.
    """
    level, difficulty = row.facts.get("level"), row.facts.get("difficulty")
    top = levels.NUM_LEVELS - 1
    if level is not None:
        if type(level) is not int or not 0 <= level <= top:
            raise ValueError(f"{row.id}: expected a level from 0 to {top}, got {level!r}")
        return level
    if difficulty is None:
        return None
    if not isinstance(difficulty, int | float) or not 0 <= difficulty <= 1:
        raise ValueError(f"{row.id}: expected a difficulty from 0 to 1, got {difficulty!r}")
    return min(int(difficulty * levels.NUM_LEVELS), top)


def scores(table: Float[np.ndarray, "n f"]) -> Float[np.ndarray, " n"]:
    """Return the difficulty of each row among these, all of one expert, 0 to 1.

    The mean over GROUPS of the mean of the row's ranks, both over what says something of it. Equal
    values have equal ranks, so that the order of the rows does not matter. A feature that is the
    same everywhere says nothing. A row without any is in the middle.
    """
    columns = dict(zip(NAMES, np.asarray(table, np.float32).T, strict=True))
    ranks = [_mean([_ranks(columns[name]) for name in group]) for group in GROUPS]
    return np.nan_to_num(_mean(ranks), nan=0.5)


def _ranks(column: np.ndarray) -> np.ndarray:
    """Return the ranks of the numbers in a column, NaN for the others; of equal ones, only NaN."""
    found = np.full(len(column), np.nan)
    is_told = ~np.isnan(column)
    told = column[is_told]
    if len(told) and told.min() < told.max():
        found[is_told] = middle_ranks(told)
    return found


def _mean(parts: list[np.ndarray]) -> np.ndarray:
    """Return the mean of the parts that are numbers, NaN where none is."""
    total, count = np.zeros(len(parts[0])), np.zeros(len(parts[0]))
    for part in parts:
        total += np.nan_to_num(part, nan=0.0)
        count += ~np.isnan(part)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def middle_ranks(values: np.ndarray) -> Float[np.ndarray, " n"]:
    """Return the rank of each value in 0 to 1; equal values share the middle of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts
    return ((before + counts / 2) / len(values))[which]


def levels_of(
    difficulty: Float[np.ndarray, " n"], known: Sequence[int | None] | np.ndarray | None = None
) -> np.ndarray:
    """Return each row's level, uint8: the known one, else its fifth of an expert's rows.

    Args:
        difficulty: the scores of the expert's rows; equal scores have one level.
        known: levels that makers know; None, or a negative number in an array, for the others.
    """
    fifth = np.minimum(middle_ranks(difficulty) * levels.NUM_LEVELS, levels.NUM_LEVELS - 1)
    found = fifth.astype(np.uint8)
    if known is None:
        return found
    given = np.array([-1 if each is None else each for each in known], np.int64)
    return np.where(given >= 0, given, found).astype(np.uint8)


def order_of(
    level: np.ndarray, difficulty: Float[np.ndarray, " n"], digests: Sequence[bytes]
) -> np.ndarray:
    """Return the rows' order in a shard: by level, then score, then the content's digest."""
    ids = np.array(digests, dtype=np.bytes_)
    return np.lexsort((ids, difficulty, level))


def _readability(sample: str) -> float:
    words = sample.split()
    if not words:
        return math.nan
    sentences = max(1, len(_SENTENCE_END.findall(sample)))
    letters = sum(map(len, words))
    return 4.71 * letters / len(words) + 0.5 * len(words) / sentences - 21.43


def _nesting(sample: str) -> float:
    depth = deepest = 0
    for bracket in _BRACKETS.findall(sample):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return float(deepest)


def _code_in(row: Row) -> str:
    """Return the code of a row: what stands in fences, or else the answer, or the whole text."""
    document = row.document
    text = document.completion if document.kind == "prompt_completion" else row.text
    fenced = _FENCED.findall(text[:SAMPLE_CHARACTERS])
    return "\n".join(fenced) if fenced else text


def _syntax(text: str) -> tuple[float, float]:
    """Return depth and decision points of Python code; NaN for anything else."""
    code = text
    if len(text) > CODE_CHARACTERS:
        starts = [match.start() for match in _STATEMENT.finditer(text, 0, CODE_CHARACTERS)]
        code = text[: starts[-1]] if len(starts) > 1 else text[:CODE_CHARACTERS]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return math.nan, math.nan
    if not tree.body:
        return math.nan, math.nan
    deepest, branches = 0, 0
    stack: list[tuple[ast.AST, int]] = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        deepest = max(deepest, depth)
        branches += isinstance(node, _BRANCHES)
        if isinstance(node, ast.BoolOp):
            branches += len(node.values) - 1
        stack.extend((child, depth + 1) for child in ast.iter_child_nodes(node))
    return float(deepest), math.log1p(branches)
