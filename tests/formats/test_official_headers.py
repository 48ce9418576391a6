"""Our name tables against indexes of published checkpoints, and sparse files of real size.

tests/goldens/official_headers.json holds what public indexes say: the number of tensors, a digest
of their sorted names, the bytes of all of them. A sparse file has the real header and no blocks.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import arithmetic
from mistral_jax.config import presets
from mistral_jax.config.model import DecoderConfig
from mistral_jax.formats import detect
from mistral_jax.formats import hf_config
from mistral_jax.formats import names
from mistral_jax.inspect import version

GOLDEN = Path(__file__).parents[1] / "goldens" / "official_headers.json"
HEADERS = json.loads(GOLDEN.read_text(encoding="utf-8"))
BF16_BYTES = 2


def decoder_of(header: dict[str, Any]) -> DecoderConfig:
    return presets.PRESETS[header["preset"]].model_copy(update=header["changes"])


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header["checkpoint"])
def test_names_and_sizes_are_those_of_the_published_index(header: dict[str, Any]) -> None:
    decoder = decoder_of(header)
    found = sorted(entry.foreign_name for entry in names.entries(decoder, "hf"))
    assert arithmetic.parameter_count(decoder) * BF16_BYTES == header["total_size_bytes"]
    if header["num_tensors"] is not None:
        assert len(found) == header["num_tensors"]
    if header["names_sha256"] is not None:
        digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
        assert digest == header["names_sha256"]


@pytest.mark.parametrize(
    "name", ["mistral_7b_v0_3", "mixtral_8x7b", "ministral_3_8b", "mistral_small_4"]
)
def test_a_sparse_file_of_real_size_opens_and_is_recognised(name: str, tmp_path: Path) -> None:
    decoder = presets.PRESETS[name]
    header, offset = {}, 0
    for entry in names.entries(decoder, "hf"):
        if entry.foreign_name in header:  # gate and up of experts share one
            continue
        size = int(np.prod(entry.shape)) * BF16_BYTES
        header[entry.foreign_name] = {
            "dtype": "BF16", "shape": entry.shape, "data_offsets": [offset, offset + size]
        }  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        os.truncate(file.fileno(), 8 + len(text) + offset)
    config = hf_config.hf_config(decoder.model_dump(mode="json"), "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = detect.open_weights(tmp_path)
    assert {entry.foreign_name for entry in weights.entries()} == set(header)
    found = DecoderConfig.model_validate_json(json.dumps(weights.decoder_config()))
    assert found == decoder
    seen = version.identify(found, tokenizer_format=None, tokenizer_size=None)
    assert presets.RELEASES[name].title in seen.title and not seen.contradictions
    assert not np.any(weights.tensor("model.norm.weight"))
