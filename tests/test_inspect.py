"""inspect: what it says of checkpoints, runs, prepared data and JSONL; the mask in colour."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_pipelines import prepare
from mistral_jax import export
from mistral_jax import inspect
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.formats import peft
from mistral_jax.formats.tensor_source import TensorSource
from mistral_jax.inspect import documents
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from tests import tiny

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "dense.yaml"
GREEN, DIM = "\x1b[32m", "\x1b[2m"
CHAT = {
    "messages": [
        {"role": "user", "content": "How deep is the lake?"},
        {"role": "assistant", "content": "Forty metres, and cold."},
    ]
}
BYTES = tokenizers.load_tokenizer("bytes")
DECODER = tiny.decoder(384)


def shown(path: Path | str, *, has_colour: bool = False, **options: object) -> str:
    """Return what `show` prints, on one wide screen."""
    console = Console(
        file=io.StringIO(),
        width=240,
        force_terminal=has_colour,
        color_system="standard" if has_colour else None,
    )
    inspect.show(path, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    definition = definition_lib.define(DECODER)
    drawn = definition_lib.initialise(definition, rng.seed_key(0), sharding.single_device_mesh())
    return {name: np.asarray(value) for name, value in drawn.items()}


@pytest.mark.parametrize("kind", ["hf", "consolidated", "gguf"])
def test_checkpoint_of_any_format_is_described(
    params: dict[str, np.ndarray], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("tiny.gguf" if kind == "gguf" else "tiny")
    export.write_model(
        readers.TreeReader(params, DECODER),
        path,
        format=kind,
        dtype="bfloat16",
        tokenizer=tokenizers.load_tokenizer("bytes"),
        name="tiny",
    )
    text = shown(path)
    assert f"checkpoint, {kind}" in text
    assert f"{sum(value.size for value in params.values()):,}" in text
    assert "num_layers 2, width 32, num_heads 4, num_kv_heads 2" in text
    assert "bfloat16" in text.lower() or "BF16" in text
    assert "KiB" in text
    if kind != "consolidated":  # whose tokenizer file would be SentencePiece's
        assert "384 tokens" in text or "259 tokens" in text


def test_checkpoint_of_another_architecture_is_still_shown(
    params: dict[str, np.ndarray], tmp_path: Path
) -> None:
    export.write_model(
        readers.TreeReader(params, DECODER),
        tmp_path,
        format="hf",
        dtype="float32",
        tokenizer=None,
        name="tiny",
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"], config["architectures"] = "mamba", ["MambaForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = shown(tmp_path)
    assert "our decoder does not run it" in text
    assert "tensors" in text


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Prepare one chat, one prompt with its completion, and a bad line."""
    lines = [
        json.dumps(CHAT),
        json.dumps({"prompt": "The lake is ", "completion": "deep."}),
        '{"messages": []}',
    ]
    (tmp_path / "lake.jsonl").write_text("\n".join(lines) + "\n")
    prepare.prepare(
        tmp_path / "lake.jsonl",
        tmp_path / "out",
        tokenizer=tokenizers.load_tokenizer("bytes"),
        eval_fraction=0.0,
    )
    return tmp_path / "out"


def test_prepared_data_shows_trained_tokens_green_and_others_dim(prepared: Path) -> None:
    text = shown(prepared, has_colour=True)
    assert "prepared data" in text
    assert "1 empty_chat" in text
    assert "kept out: lake.jsonl#3" in text
    trained = "".join(coloured(text, GREEN))
    others = "".join(coloured(text, DIM))
    assert "Forty metres, and cold." in trained
    assert "deep." in trained
    assert "How deep is the lake?" in others
    assert "The lake is " in others
    assert "How deep" not in trained


def coloured(text: str, colour: str) -> list[str]:
    """Return the pieces of terminal output in one colour."""
    return [piece.split("\x1b[0m")[0] for piece in text.split(colour)[1:]]


def test_number_of_documents_is_what_was_asked_for(prepared: Path) -> None:
    assert "lake.jsonl#1: " in shown(prepared, num_rows=1)
    assert "lake.jsonl#2: " not in shown(prepared, num_rows=1)
    assert "trained\n" not in shown(prepared, num_rows=0)


def test_another_tokenizer_than_the_datas_is_refused(prepared: Path) -> None:
    with pytest.raises(ValueError, match="prepared with tokenizer 'bytes'"):
        shown(prepared, tokenizer="mistral-common:v3")


def test_jsonl_is_shown_as_it_would_be_trained(prepared: Path) -> None:
    text = shown(prepared.parent / "lake.jsonl", has_colour=True)
    assert "Forty metres, and cold." in "".join(coloured(text, GREEN))
    assert "kept out: lake.jsonl#3" in text
    assert '"messages" is empty' in text


def test_jsonl_tokens_are_those_that_prepare_makes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "a   \r\nb\u200b   "}) + "\n" + json.dumps({"text": "c"}))
    made = prepare.prepare(path, tmp_path / "out", tokenizer=tokenizers.load_tokenizer("bytes"))
    tokens = sum(split["tokens"] for split in made.manifest["splits"].values())
    assert re.search(rf"\btokens\W+{tokens}\b", shown(path))


def test_a_terminal_gets_none_of_the_datas_commands(tmp_path: Path) -> None:
    command = "\x1b]0;owned\x07\x1b[2J"
    path = tmp_path / f"{command}.jsonl"
    lines = [{"text": f"a{command}"}, {f"k{command}": 1}]
    path.write_text("\n".join(map(json.dumps, lines)))
    text = shown(path, has_colour=True)
    assert "k\\x1b]0;owned" in text
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    spelled = documents.mask_text(
        np.array(list(command.encode())), np.ones(len(command), np.int8), BYTES
    )
    assert spelled.plain == "\\x1b]0;owned\\x07\\x1b[2J"


def test_a_peft_adapter_is_described(tmp_path: Path) -> None:
    settings = peft.AdapterSettings(4, 8.0, 0.0, ("q_proj",), "a/base", base_digest="ab12")
    zeros = TensorSource("a.lora_A", (4, 2), np.dtype("f4"), lambda: np.zeros((4, 2), np.float32))
    peft.write_adapter(tmp_path, settings, [zeros])
    text = shown(tmp_path)
    for said in ("adapter, peft", "a/base", "4, 8", "q_proj", "ab12"):
        assert said in text
    peft.write_adapter(tmp_path, settings, [zeros], not_for_peft="PEFT has no names for it")
    assert "PEFT has no names for it" in shown(tmp_path)


def test_a_manifest_that_lacks_its_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 1, "splits": {}}')
    with pytest.raises(ValueError, match="the data manifest lacks counts"):
        shown(tmp_path)


def test_mask_text_keeps_a_letter_of_several_bytes_whole() -> None:
    tokenizer = tokenizers.load_tokenizer("bytes")
    ids = tokenizer.encode("é[b]", bos=True)
    text = documents.mask_text(np.array(ids), np.minimum(np.arange(len(ids)), 1), tokenizer)
    assert text.plain == "<bos>é[b]"
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 5, documents.OTHER_STYLE),
        (5, 9, documents.TRAINED_STYLE),
    ]
    assert documents.mask_text(np.array([5, 6]), np.array([0, 1]), None).plain == "5 6 "


def test_run_directory_is_summed_up(tmp_path: Path, prepared: Path) -> None:
    run = load.load_run(CONFIG, ["optimizer.max_steps=4", "data.train=lakes"])
    folder = tmp_path / "run"
    (folder / "checkpoints" / "2").mkdir(parents=True)
    (folder / "checkpoints-damaged" / "4").mkdir(parents=True)
    (folder / "data" / "train").mkdir(parents=True)
    prepared.rename(folder / "data" / "train" / "lakes")
    (folder / "config.yaml").write_text(load.dump_yaml(run))
    lines = [{"step": step, "loss": 6.0 - step} for step in (1, 2, 3)]
    lines += [{"step": 0, "eval": "lakes", "loss": 6.5}, {"step": 2, "eval": "lakes", "loss": 4.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = shown(folder)
    assert "run, not finished" in text
    assert "3 of 4" in text
    assert "6.5000 at step 0, 4.5000 at step 2; best 4.5000 at step 2" in text
    assert "step 2 (0 bytes); damaged, set aside: 4" in text
    assert "5.0000" in text
    assert "Forty metres" in text
    (folder / "measured.json").write_text("{}")
    assert "run, finished" in shown(folder)


def test_what_is_nothing_that_we_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is there"):
        shown(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("notes")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="not something that inspect knows"):
            shown(path)


def test_inspect_starts_no_backend() -> None:
    code = "import sys, mistral_jax.inspect; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
