"""formats/checkpoint_files.py: which files of a listing are fetched."""

import json

import pytest

from mistral_jax.formats import checkpoint_files

INDEX = checkpoint_files.INDEX_NAME


def choose(*names, shards=("a.safetensors", "b.safetensors")):
    weight_map = {str(number): shard for number, shard in enumerate(shards)}
    raw = json.dumps({"weight_map": weight_map}).encode()
    return checkpoint_files.choose(names, lambda name: raw, "here")


def test_the_hugging_face_layout_is_preferred_when_it_is_complete():
    both = ("config.json", "params.json", "consolidated.safetensors", INDEX, "tekken.json",
            "chat_template.jinja", "README.md", "model.bin", "original/x.safetensors")  # fmt: skip
    chosen = choose(*both, "a.safetensors", "b.safetensors", "c.safetensors")
    assert chosen.weights == ("a.safetensors", "b.safetensors")
    assert chosen.headers == ("config.json", INDEX)
    assert chosen.text == ("chat_template.jinja", "tekken.json")
    chosen = choose(*both, "a.safetensors")
    assert chosen.weights == ("consolidated.safetensors",)
    assert chosen.headers == ("config.json", "params.json")


def test_single_files_adapters_and_gguf():
    single = choose("config.json", "model.safetensors", "params.json", "x.gguf")
    assert single.all == ["config.json", "model.safetensors"]
    parts = ("consolidated.00.safetensors", "consolidated.01.safetensors")
    assert choose("params.json", *parts).weights == parts
    index = "consolidated.safetensors.index.json"
    assert choose("params.json", index, *parts).headers == (index, "params.json")
    adapter = choose("adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    assert adapter.weights == ("adapter_model.safetensors",)
    assert choose("x.gguf", "config.json").all == ["x.gguf"]


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", 7, ".."])
def test_an_index_that_points_elsewhere_is_refused(shard):
    with pytest.raises(checkpoint_files.CheckpointFilesError, match="points to"):
        choose("config.json", INDEX, shards=(shard,))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((INDEX, "config.json", "a.safetensors"), "'b.safetensors', which is not there"),
        (("config.json", "pytorch_model.bin"), "only pickled weights"),
        (("consolidated.00.pth", "params.json"), "only pickled weights"),
        (("a.gguf", "b.gguf"), "name one of them: here/a.gguf"),
        (("README.md",), "no checkpoint; expected"),
        ((), "found: nothing"),
    ],
)
def test_what_is_no_checkpoint_is_told(names, message):
    with pytest.raises(checkpoint_files.CheckpointFilesError, match=message.replace(".", r"\.")):
        choose(*names)


def test_a_damaged_index_is_told():
    with pytest.raises(checkpoint_files.CheckpointFilesError, match="with a weight_map"):
        checkpoint_files.choose([INDEX], lambda name: b"[" * 100_000, "here")
