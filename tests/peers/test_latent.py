"""Twins of DeepSeek-V3 and Mistral 4 with every switch set by hand, and msem-tiny, against torch.

The random draws meet each switch some day; these meet them every day: rows that rotate in pairs
and in halves, queries with and without a bottleneck, groups, YaRN's gain on the scores. Untouched
exports have the bytes of the files they came from.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mistral_jax import convert
from mistral_jax import export
from mistral_jax import rng
from mistral_jax import tokenizers
from mistral_jax.config import presets
from mistral_jax.formats import safetensors_file
from mistral_jax.generate import engine
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.models import weights
from tests.peers import ours
from tests.peers.conftest import ONE_STEP

TOLERANCE = 1e-4
COMMON = {
    "hidden_size": 36, "intermediate_size": 40, "moe_intermediate_size": 14,
    "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": 288, "rms_norm_eps": 1e-6, "max_position_embeddings": 128,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,  # torch gives the row of a padding token no gradient
    "kv_lora_rank": 12, "qk_nope_head_dim": 9, "qk_rope_head_dim": 8, "v_head_dim": 7,
    "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "norm_topk_prob": True,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "beta_fast": 4.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
TWINS = {
    "deepseek_v3": COMMON
    | {"q_lora_rank": 10, "rope_interleave": True, "rope_parameters": YARN,
       "routed_scaling_factor": 2.5},
    "deepseek_v3 halves": COMMON
    | {"q_lora_rank": None, "rope_interleave": False, "rope_parameters": PLAIN,
       "n_shared_experts": 0, "norm_topk_prob": False},
    "mistral4": COMMON
    | {"q_lora_rank": 10, "rope_interleave": True, "first_k_dense_replace": 0,
       "rope_parameters": YARN | {"llama_4_scaling_beta": 0.1}},
}  # fmt: skip
# Twins whose files have the layout that we write.
IN_PAIRS = ("deepseek_v3", "mistral4")


@dataclasses.dataclass(frozen=True)
class Twin:
    """A checkpoint that transformers wrote, what torch computes of it, and our reading of it."""

    folder: Path
    batch: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    definition: definition_lib.Definition
    params: definition_lib.Params
    is_interleaved: bool


PROMPT = list(range(1, 20))


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    root, generator = tmp_path_factory.mktemp("latent"), np.random.default_rng(0)
    text = generator.integers(0, COMMON["vocab_size"], (2, 33)).astype(np.int32)
    batch = {
        "tokens": text[:, :-1], "targets": text[:, 1:],
        "loss_weights": (generator.random((2, 32)) < 0.7).astype(np.float32),
    }  # fmt: skip
    np.savez(root / "batch.npz", **batch)
    jobs = [
        {
            "folder": str(root / name.replace(" ", "_")), "family": name.partition(" ")[0],
            "config": config, "seed": 3, "batch": str(root / "batch.npz"), "prompt": PROMPT,
            "num_tokens": 12, "optimizer": ours.torch_settings(ONE_STEP),
        }
        for name, config in TWINS.items()
    ]  # fmt: skip
    ours.run_peer("make_checkpoints.py", {"draws": jobs}, root)
    found = {}
    for (name, config), job in zip(TWINS.items(), jobs, strict=True):
        folder = Path(job["folder"])
        with np.load(folder / "expected.npz") as file:
            expected = dict(file)
        model = ours.load(folder)
        found[name] = Twin(folder, batch, expected, *model, config["rope_interleave"])
    return found


@pytest.mark.parametrize("name", TWINS)
def test_logits_are_those_of_transformers(name: str, twins: dict[str, Twin]) -> None:
    twin = twins[name]
    found = ours.logits(twin.definition, twin.params, twin.batch["tokens"])
    assert np.std(twin.expected["logits"]) > 0.3
    assert float(np.abs(found - twin.expected["logits"]).max()) <= TOLERANCE


@pytest.mark.parametrize("name", TWINS)
def test_every_gradient_is_that_of_torch(name: str, twins: dict[str, Twin]) -> None:
    twin = twins[name]
    _, gradients = ours.loss_gradients(
        twin.definition, twin.params, ours.batch_arrays(twin.batch)
    )  # fmt: skip
    expected = ours.from_hugging_face(
        twin.expected, "gradient/", twin.definition.config, is_interleaved=twin.is_interleaved
    )
    ours.assert_close(gradients, expected, TOLERANCE, name)


@pytest.mark.parametrize("name", TWINS)
def test_decoding_with_a_cache_is_transformers_generate(name: str, twins: dict[str, Twin]) -> None:
    twin = twins[name]
    theirs = twin.expected["greedy"].tolist()
    made = engine.generate_tokens(
        twin.definition, twin.params, [PROMPT], max_tokens=len(theirs)
    )  # fmt: skip
    assert list(made.tokens[0]) == theirs


def digests(folder: Path, pattern: str = "*.safetensors") -> dict[str, str]:
    """Return the sha256 of every tensor."""
    (path,) = folder.glob(pattern)
    file = safetensors_file.SafetensorsFile(path)
    return {n: hashlib.sha256(file.tensor(n).tobytes()).hexdigest() for n in file.names()}


def write(source: Path, destination: Path, format: str = "hf") -> Path:
    reader = weights.open_reader(source)
    export.write_model(
        reader, destination, format=format, dtype="float32", tokenizer=None, name="tiny"
    )
    return destination


@pytest.mark.parametrize("name", IN_PAIRS)
def test_an_untouched_export_has_the_bytes_that_transformers_wrote(
    name: str, twins: dict[str, Twin], tmp_path: Path
) -> None:
    out = write(twins[name].folder, tmp_path / "hf")
    assert digests(out) == digests(twins[name].folder)


def test_the_way_through_mistrals_own_layout_loses_no_bit(
    twins: dict[str, Twin], tmp_path: Path
) -> None:
    twin = twins["mistral4"]
    # params.json has this gain as apply_scale: true.
    own = write(twin.folder, tmp_path / "own", "consolidated")
    assert weights.read_config(own) == twin.definition.config
    again = write(own, tmp_path / "again")
    assert digests(again) == digests(twin.folder)


@pytest.fixture(scope="module")
def reloaded(twins: dict[str, Twin], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """Return what gives a twin's or msem-tiny's logits by transformers, after our export."""
    root = tmp_path_factory.mktemp("reloaded")
    items, tokens = [], {}
    for name, twin in twins.items():
        write(twin.folder, root / name)
        tokens[name] = twin.batch["tokens"]
    write_msem(root / "msem_tiny")
    tokens["msem_tiny"] = np.random.default_rng(1).integers(0, 4096, (2, 24)).astype(np.int32)
    for name, rows in tokens.items():
        np.save(root / f"{name}.npy", rows)
        items.append({
            "folder": str(root / name), "tokens": str(root / f"{name}.npy"),
            "out": str(root / f"{name}_logits.npy"),
        })  # fmt: skip
    ours.run_peer("run_logits.py", {"items": items}, root)
    return lambda name: (root / name, tokens[name], np.load(root / f"{name}_logits.npy"))


def write_msem(folder: Path) -> None:
    """Write msem-tiny with drawn numbers of which none is zero or one."""
    config = presets.PRESETS["msem_tiny"]
    definition = definition_lib.define(config)
    params = definition_lib.initialise(definition, rng.seed_key(0), ours.MESH())
    generator = np.random.default_rng(0)
    arrays = {}
    for path, value in params.items():
        noise = generator.normal(size=value.shape).astype(np.float32)
        wide = value.shape[-2] if value.ndim > 1 else 1
        scale = 0.1 if path.endswith(("scale", "bias")) else wide**-0.5
        arrays[path] = noise * scale + path.endswith("scale")
    reader = readers.TreeReader(arrays, config)
    export.write_model(reader, folder, format="hf", dtype="float32", tokenizer=None, name="msem")


@pytest.mark.parametrize("name", [*TWINS, "msem_tiny"])
def test_transformers_reads_our_exports(
    name: str, reloaded: Callable, twins: dict[str, Twin]
) -> None:
    folder, tokens, theirs = reloaded(name)
    if name in twins:
        assert float(np.abs(theirs - twins[name].expected["logits"]).max()) <= 1e-6
        return
    found = ours.load(folder)
    assert found[0].config == presets.PRESETS[name].model_copy(
        update={"init_std": found[0].config.init_std}
    )
    assert np.std(theirs) > 0.3
    assert float(np.abs(ours.logits(*found, tokens) - theirs).max()) <= TOLERANCE


def test_an_import_states_no_difference(twins: dict[str, Twin], tmp_path: Path) -> None:
    twin = twins["deepseek_v3 halves"]
    tokenizers.load_tokenizer("bytes").save(twin.folder)
    done = convert.import_checkpoint(str(twin.folder), str(tmp_path / "out"), dtype="checkpoint")
    assert done.largest_logit_difference == 0.0
