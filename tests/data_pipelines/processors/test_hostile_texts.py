"""Texts made to be slow: no step may take time by the square of their length."""

import time

import pytest

from data_pipelines import processors
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from mistral_jax.config import processors as config

# fmt: off
UNITS = (
    " ", "a", "(", "1", "1.", "1-", "a@", "a:", "AB12", "\n", "\\", "{}", "\"'", "```\n", "Q: ",
    "0:", "token=", "\\a{", "$", "<", "\"a", "`", "http://", "\\verb|", "SSN ", "é", "水",
    "-----BEGIN ", "passport ", "eyJa.", "x" * 199 + " ", "://a:b", "do not edit ", "Neither ",
)
EVERY = (
    *config.Processors().text, *config.Processors().code, *config.Processors().math,
    config.Expert(),
    config.Quality(
        min_words=0, min_alphabetic=0.0, max_duplicate_lines=None, max_top_ngram={2: 1.0},
        mean_word_length=None, max_symbol_ratio=None, max_bullet_lines=None,
    ),
    config.Code(max_line=1 << 22, max_mean_line=1e9, min_alphanumeric=0.0, max_literal=0.99),
    config.Maths(min_density=0.01),
)
# fmt: on


def seconds(process, text):
    row = Row(Document("a.c", "text", text=text), "s", "text", "general", "CC0-1.0")
    start = time.process_time()
    process(row)
    return time.process_time() - start


def test_no_step_takes_time_by_the_square_of_a_text():
    for step in EVERY:
        process = processors.build([step])
        seconds(process, "The library is loaded before the clock is read.")
        for unit in UNITS:
            text = (unit * 12_000)[:12_000]
            # The square is 1.4e8 steps: seconds in any pattern.
            assert seconds(process, text) < 0.5, (step.kind, unit)


@pytest.mark.slow
@pytest.mark.parametrize("step", EVERY, ids=lambda step: step.kind)
def test_no_step_takes_time_by_the_square_of_a_megabyte(step):
    process = processors.build([step])
    seconds(process, "The library is loaded before the clock is read.")
    for unit in UNITS:
        assert seconds(process, (unit * (1 << 20))[: 1 << 20]) < 5, unit
