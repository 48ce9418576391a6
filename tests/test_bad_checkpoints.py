"""`import` and `export` of broken checkpoints: exit code 2, one line that names file and tensor.

One sound folder is damaged in one way at a time. Numbers that are none are counted, not refused.
"""

import dataclasses
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mistral_jax import cli
from mistral_jax import convert
from mistral_jax import export
from mistral_jax import tokenizers
from mistral_jax.formats import gguf_config
from mistral_jax.formats import gguf_file
from mistral_jax.formats import hf_config
from mistral_jax.formats import names
from mistral_jax.formats import peft
from mistral_jax.formats import safetensors_file
from mistral_jax.formats.tensor_source import TensorSource
from tests import tiny

DECODER = tiny.decoder(384)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
Damage = Callable[[Path], None]


def sources(format: str = "hf") -> list[TensorSource]:
    numbers = np.random.default_rng(0)
    arrays = {
        entry.foreign_name: numbers.normal(size=entry.shape).astype(np.float32) * np.float32(0.1)
        for entry in names.entries(DECODER, format)
    }
    return [TensorSource(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()]


def write_folder(folder: Path) -> Path:
    """Write a sound checkpoint in two shards."""
    total = sum(source.size_bytes for source in sources())
    written = safetensors_file.write_safetensors(folder, sources(), max_shard_bytes=total * 7 // 10)
    assert [file.path.name for file in written] == list(SHARDS)
    content = hf_config.hf_config(DECODER.model_dump(), "float32")
    (folder / "config.json").write_text(json.dumps(content))
    tokenizers.load_tokenizer("bytes").save(folder)
    return folder


def change_header(path: Path, change: Callable[[dict], dict | None]) -> None:
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    text = json.dumps(change(header) or header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate_shard(folder: Path) -> None:
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-100])


def lose_shard(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()


def overlap(folder: Path) -> None:
    def change(header: dict) -> None:
        first, second, *_ = (name for name in header if name.endswith("norm.weight"))
        header[second]["data_offsets"] = header[first]["data_offsets"]

    change_header(folder / SHARDS[0], change)


def beyond_the_end(folder: Path) -> None:
    def change(header: dict) -> None:
        name = next(name for name in header if name != "__metadata__")
        begin, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [begin + 2**40, end + 2**40]

    change_header(folder / SHARDS[0], change)


def path_name(folder: Path) -> None:
    change_header(folder / SHARDS[0], lambda h: h | {"../../x": h.pop(NORM)})


def twice_in_one(folder: Path) -> None:
    path = folder / SHARDS[0]
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    entry = json.dumps(json.loads(raw[8:end])[NORM]).encode()
    text = raw[8:end].rstrip()[:-1] + b',"' + NORM.encode() + b'":' + entry + b"}"
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def twice_across(folder: Path) -> None:
    extra = next(source for source in sources() if source.name == NORM)
    held = safetensors_file.SafetensorsReader(folder / SHARDS[1])
    arrays = {name: np.array(held.tensor(name)) for name in held.names()}
    del held
    kept = [TensorSource(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()]
    safetensors_file.write_safetensors_file(folder / SHARDS[1], [*kept, extra])


def unknown_architecture(folder: Path) -> None:
    change_json(folder / "config.json", model_type="gemma7")


def lose_weights(folder: Path) -> None:
    for name in (*SHARDS, safetensors_file.INDEX_NAME):
        (folder / name).unlink()


def only_pickles(folder: Path) -> None:
    lose_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))


def original_pickle(folder: Path) -> None:
    lose_weights(folder)
    (folder / "config.json").unlink()
    (folder / "params.json").write_text("{}")
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps({"weight": 1}))


def large_tokenizer(folder: Path) -> None:
    tokenizers.load_tokenizer("mistral-common:v3").save(folder)


def too_many_layers(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=2**31)


BAD = {
    "truncated shard": (truncate_shard, rf"{SHARDS[1]}: expected \d+ bytes.*tensor '.*' is cut"),
    "missing shard": (lose_shard, rf"{SHARDS[1]}: no such file, .*index.json.* tensor 'model\."),
    "overlap": (overlap, rf"{SHARDS[0]}: tensor 'model.*norm.weight' .*overlap"),
    "out of range": (beyond_the_end, rf"{SHARDS[0]}: tensor '.*' begins at byte \d+"),
    "path": (path_name, rf"{SHARDS[0]}: tensor name '\.\./\.\./x' looks like a file path"),
    "twice in a file": (twice_in_one, rf"{SHARDS[0]}: the key '{NORM}' occurs twice"),
    "twice in shards": (twice_across, rf"{SHARDS[1]}: tensor '{NORM}' is in {SHARDS[0]} too"),
    "architecture": (unknown_architecture, r"config.json: model_type is 'gemma7'.*mistral, mixtr"),
    "pickle": (only_pickles, r"pytorch_model.bin: .* runs the code.*save_pretrained\('OUT', safe_"),
    "original pickle": (original_pickle, r"consolidated.00.pth: .*the code.*weights_only=True"),
    "tokenizer": (large_tokenizer, rf"32768 tokens, but tensor '{EMBEDDING}' only 384 rows"),
    "layers": (too_many_layers, r"tells of 2147483648 layers, but it holds only 21 tensors"),
}  # fmt: skip


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    assert cli.main(arguments) == cli.EXIT_INPUT
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("verb", ["import", "export"])
@pytest.mark.parametrize("name", BAD)
def test_broken_folders_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, verb: str
) -> None:
    damage, message = BAD[name]
    folder = write_folder(tmp_path / "in")
    damage(folder)
    out = tmp_path / "out"
    arguments = [verb, str(folder), str(out), *(["--format", "gguf"] if verb == "export" else [])]
    said = refused(arguments, capsys)
    assert str(folder) in said
    assert re.search(message, said), said
    assert not out.exists()


def write_gguf(path: Path, **metadata: object) -> Path:
    base = gguf_config.gguf_metadata(DECODER.model_dump(), name="x", file_type="F32")
    base |= tokenizers.load_tokenizer("bytes").gguf_metadata()
    gguf_file.write_gguf(path, base | metadata, [(source, "F32") for source in sources("gguf")])
    return path


def set_type(path: Path, tensor: str, number: int) -> None:
    raw = bytearray(path.read_bytes())
    place = raw.index(tensor.encode()) + len(tensor)
    num_axes = int.from_bytes(raw[place : place + 4], "little")
    place += 4 + 8 * num_axes
    raw[place : place + 4] = number.to_bytes(4, "little")
    path.write_bytes(raw)


def test_a_gguf_of_another_architecture_or_quantisation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = str(tmp_path / "out")
    other = write_gguf(tmp_path / "a.gguf", **{"general.architecture": "gemma7"})
    said = refused(["import", str(other), out], capsys)
    assert f"{other}: general.architecture is 'gemma7'; supported: llama, mistral3, qwen2" in said
    path = write_gguf(tmp_path / "b.gguf")
    set_type(path, "output_norm.weight", 23)
    said = refused(["import", str(path), out], capsys)
    assert f"{path}: tensor 'output_norm.weight' has type IQ4_XS; supported: F32, F16" in said
    path = write_gguf(tmp_path / "c.gguf")
    path.write_bytes(path.read_bytes().replace(b"output_norm.weight", b"../output_norm.wei"))
    assert "'../output_norm.wei' looks like a file path" in refused(
        ["import", str(path), out], capsys
    )


def test_a_pickled_file_and_adapter_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(pickle.dumps(1))
    said = refused(["import", str(file), str(tmp_path / "out")], capsys)
    assert f"{file}: the weights are a pickle" in said
    assert f"'{tmp_path}/model.safetensors'" in said
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / peft.CONFIG_NAME).write_text(json.dumps(settings))
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(1))
    with pytest.raises(ValueError, match=r"adapter_model.bin: the weights are a pickle"):
        peft.AdapterFile(tmp_path)


def test_pickles_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    (folder / "training_args.bin").write_bytes(pickle.dumps(1))
    convert.import_checkpoint(str(folder), str(tmp_path / "out"), dtype="checkpoint")
    assert not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_weights_that_are_no_numbers_are_counted_and_kept(tmp_path: Path, format: str) -> None:
    def load(source: TensorSource) -> np.ndarray:
        array = source.load()
        if source.name == NORM:
            array[0], array[3] = np.nan, -np.inf
        return array

    bad = [dataclasses.replace(s, load=lambda s=s: load(s)) for s in sources()]
    folder = write_folder(tmp_path / "in")
    lose_weights(folder)
    safetensors_file.write_safetensors(folder, bad)
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match=r"out.*: 2 weights are NaN .* 1 tensors.*") as caught:
        if format == "hf":
            done = convert.import_checkpoint(str(folder), str(out), dtype="float32")
        else:
            done = convert.export_model(str(folder), str(out), format="gguf", dtype="bfloat16")
    assert len(caught) == 1
    assert done.num_nonfinite == 2
    assert ("output_norm.weight" if format == "gguf" else NORM) in str(caught[0].message)
    if format == "hf":
        assert done.largest_logit_difference == 0.0
        written = safetensors_file.SafetensorsReader(out).tensor(NORM)
        original = safetensors_file.SafetensorsReader(folder).tensor(NORM)
        assert written.tobytes() == original.tobytes()
    export.write_parity(tmp_path, [done])


def test_sound_weights_count_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    done = convert.import_checkpoint(str(folder), str(tmp_path / "out"), dtype="checkpoint")
    assert done.num_nonfinite == 0


def test_the_damaged_folder_was_sound(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    shutil.copytree(folder, tmp_path / "copy")
    assert cli.main(["import", str(tmp_path / "copy"), str(tmp_path / "out")]) == cli.EXIT_DONE
