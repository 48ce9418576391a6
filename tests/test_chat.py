"""The conversation: answers shown as they are, and turns that fail leave the chat as it was."""

import argparse
import io
from pathlib import Path

import numpy as np
import pytest

from mistral_jax import chat
from mistral_jax import export
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax import templates
from mistral_jax import tokenizers
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from tests import tiny


@pytest.mark.parametrize("answer", ["for i: x[i] = a[b]", "close it with [/INST] now", "[red]x"])
def test_answers_are_not_read_as_markup(answer: str) -> None:
    assert chat.answer_line(answer).plain == f"model {answer}"
    assert chat.answer_line("a\x1b[2J").plain == "model a\\x1b[2J"


def test_an_empty_answer_leaves_a_chat_that_the_format_can_say() -> None:
    tokenizer = tokenizers.load_tokenizer("mistral-common:v3")
    said = chat.after_answer([], "first", "yes")
    messages = chat.after_answer(said, "second", " ")
    assert messages == said
    assert templates.render_prompt([*messages, {"role": "user", "content": "b"}], tokenizer)


def test_a_turn_that_is_too_long_does_not_end_the_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = tiny.decoder(384)
    definition = definition_lib.define(decoder)
    drawn = definition_lib.initialise(definition, rng.seed_key(0), sharding.single_device_mesh())
    params = {name: np.asarray(value) for name, value in drawn.items()}
    export.write_model(
        readers.TreeReader(params, decoder),
        tmp_path,
        format="hf",
        dtype="float32",
        tokenizer=tokenizers.load_tokenizer("bytes"),
        name="tiny",
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'long ' * 99}\nhi\n"))
    options = argparse.Namespace(
        model=str(tmp_path), adapter=None, temperature=0.0, top_k=None, top_p=1.0, max_tokens=2,
        seed=0, raw=False,
    )  # fmt: skip
    assert chat.run(options) == 0
    out = capsys.readouterr().out
    assert out.index("error: ") < out.index("model ")
