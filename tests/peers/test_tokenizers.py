"""Tokenizers that we save are read by transformers, with the same ids and the same chats."""

import json
from pathlib import Path

import pytest

from mistral_jax import templates
from mistral_jax import tokenizers
from tests.peers import ours

NAMES = (
    "bytes", "smollm2", "mistral-common:v1", "mistral-common:v3", "mistral-common:v7",
    "mistral-common:tekken-240718", "mistral-common:tekken-240911",
)  # fmt: skip
TEXTS = (
    "The capital of France is Paris.",
    "  two spaces,\ttab\nand a new line\n\n  def f(x):\n\treturn x * 1234 # ok\r\n",
    "naïve Æsop 日本語 🎉👩‍👩‍👧 don't I'LL  ... !!!  \u00a0x\u200b",
    "a",
)
CHAT = (
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
)


@pytest.fixture(scope="module")
def loaded(smollm2_file: Path) -> dict[str, tokenizers.Tokenizer]:
    uris = {name: str(smollm2_file) if name == "smollm2" else name for name in NAMES}
    return {name: tokenizers.load_tokenizer(uri) for name, uri in uris.items()}


@pytest.fixture(scope="module")
def answers(
    loaded: dict[str, tokenizers.Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict]:
    root = tmp_path_factory.mktemp("tokenizers")
    folders = []
    for number, tokenizer in enumerate(loaded.values()):
        tokenizer.save(root / str(number))
        folders.append(str(root / str(number)))
    out = root / "answers.json"
    job = {"folders": folders, "texts": TEXTS, "chat": CHAT, "out": str(out)}
    ours.run_peer("tokenize_texts.py", job, root)
    return dict(zip(loaded, json.loads(out.read_text(encoding="utf-8")), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_transformers_gives_the_same_ids(
    name: str, loaded: dict[str, tokenizers.Tokenizer], answers: dict[str, dict]
) -> None:
    tokenizer = loaded[name]
    expected = [tokenizer.encode(text, bos=tokenizer.add_bos) for text in TEXTS]
    assert answers[name]["ids"] == expected, answers[name]["class"]


@pytest.mark.parametrize("name", NAMES)
def test_transformers_renders_the_same_prompt(
    name: str, loaded: dict[str, tokenizers.Tokenizer], answers: dict[str, dict]
) -> None:
    expected = templates.render_prompt(list(CHAT), loaded[name])
    assert answers[name]["chat"] == expected, answers[name]["class"]
