"""Text with a gap: mistral-common's tokens, an answer that continues the prefix, clear refusals."""

import functools
import random
from typing import Any

import pytest
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mistral_jax import templates
from mistral_jax import tokenizers

WITH_GAPS = ["v3", "v7", "tekken-240911"]
PIECES = ["def f", "(x)", ":\n", "    return", " ", "日本", "🎉", "\n\n", "_", "1", "[SUFFIX]", "☺"]
NUM_DRAWS = 40


@functools.cache
def load(name: str) -> Any:
    return tokenizers.load_tokenizer(f"mistral-common:{name}")


def draw(seed: int) -> tuple[str, str, str]:
    rng = random.Random(seed)
    prefix, suffix, middle = ("".join(rng.choices(PIECES, k=rng.randint(0, 5))) for _ in range(3))
    return prefix, suffix, middle or "m"


@pytest.mark.parametrize("name", WITH_GAPS)
def test_gaps_are_those_of_mistral_common_and_the_middle_is_learnt(name: str) -> None:
    tokenizer = load(name)
    theirs = MistralTokenizer.from_file(tokenizer.path)
    begin, prefix_mark = tokenizer.bos_id, tokenizer.special_tokens["[PREFIX]"]
    for seed in range(NUM_DRAWS):
        prefix, suffix, middle = draw(seed)
        rendered = templates.render_infill(prefix, suffix, middle, tokenizer)
        expected = theirs.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens
        assert rendered.tokens[: len(expected)] == expected
        assert templates.infill_prompt(prefix, suffix, tokenizer) == expected
        size = len(rendered.tokens)
        assert rendered.loss_mask == [False] * len(expected) + [True] * (size - len(expected))
        assert rendered.tokens[-1] == tokenizer.eos_id
        before, after = rendered.tokens[1:-1], rendered.tokens[-1:]
        at = before.index(prefix_mark)
        assert tokenizer.decode(before[at + 1 :]) == prefix + middle
        special = set(tokenizer.special_tokens.values())
        found = [token for token in rendered.tokens if token in special]
        assert found == [begin, tokenizer.special_tokens["[SUFFIX]"], prefix_mark, *after]


@pytest.mark.parametrize("name", ["v3", "tekken-240911"])
def test_the_hugging_face_twin_fills_in_alike(name: str) -> None:
    source = load(name)
    twin = tokenizers.HfTokenizer(
        source.backend(), name=name, bos_id=source.bos_id, eos_id=source.eos_id, add_bos=True
    )
    for seed in range(NUM_DRAWS):
        assert templates.render_infill(*draw(seed), twin) == templates.render_infill(
            *draw(seed), source
        )


@pytest.mark.parametrize("name", ["v1", "v2", "bytes"])
def test_tokenizers_without_the_tokens_are_refused(name: str) -> None:
    tokenizer = tokenizers.load_tokenizer(name) if name == "bytes" else load(name)
    with pytest.raises(templates.TemplateError, match=r"no \[SUFFIX\] and \[PREFIX\] tokens"):
        templates.render_infill("a", "b", "c", tokenizer)
