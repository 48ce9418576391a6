"""Rotary frequencies, gains and query scaling against transformers, over drawn options."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mistral_jax.config import model as model_config
from mistral_jax.formats import hf_config
from mistral_jax.formats.fields import Fields
from mistral_jax.nn import rope
from tests.peers import ours

NUM_DRAWS = 40
POSITIONS = [0, 1, 5, 15999, 16000, 31999, 32000, 262143, 1048575]


def draw(generator: np.random.Generator) -> dict:
    """Return the options of one rotary embedding as config.json has them."""
    parameters = {
        "rope_type": "default",
        "rope_theta": float(generator.choice([1e4, 5e5, 1e6, 1e8, 1e9])),
    }
    if generator.random() < 0.8:
        parameters |= {
            "rope_type": "yarn",
            "factor": float(generator.choice([2.0, 4.0, 16.0, 40.0, 128.0])),
            "original_max_position_embeddings": int(generator.choice([4096, 8192, 16384])),
            "beta_fast": float(generator.choice([16.0, 32.0])),
            "beta_slow": float(generator.choice([1.0, 2.0])),
            "truncate": bool(generator.integers(2)),
        }
        parameters |= [
            {},
            {"mscale": 1.0, "mscale_all_dim": 1.0},
            {"mscale": 0.7, "mscale_all_dim": 1.3},
            {"attention_factor": 1.1},
        ][int(generator.integers(4))]
    return {
        "head_dim": int(generator.choice([64, 96, 128])),
        "max_positions": 262144,
        "parameters": parameters,
    }


def test_frequencies_gains_and_query_scaling_are_those_of_transformers(
    seed: int, tmp_path: Path
) -> None:
    generator = np.random.default_rng(seed)
    items = [draw(generator) for _ in range(NUM_DRAWS)]
    job = {"items": items, "positions": POSITIONS, "beta": 0.1, "period": 16000,
           "out": str(tmp_path / "tables.npz")}  # fmt: skip
    ours.run_peer("rope_tables.py", job, tmp_path)
    expected = np.load(tmp_path / "tables.npz")
    kinds = set()
    for index, item in enumerate(items):
        fields = Fields({"rope_parameters": item["parameters"]}, "drawn")
        defaults = hf_config.MODEL_TYPES["ministral3"]
        read, _ = hf_config._rope(fields, defaults, item["max_positions"])
        kinds.add(read["kind"])
        kind = {"yarn": model_config.YarnRope, "default": model_config.DefaultRope}[read["kind"]]
        frequencies, gain = rope.rotary_frequencies(kind.model_validate(read), item["head_dim"])
        theirs = expected[f"frequencies{index}"]
        assert np.abs(frequencies - theirs).max() <= 1e-6, item
        # transformers forms the ramp in float32, which costs it up to 2e-6 of slow frequencies.
        assert np.abs(frequencies / theirs - 1).max() <= 5e-6, item
        assert abs(gain - float(expected[f"gain{index}"])) <= 1e-6, item
    assert kinds == {"yarn", "default"}
    scaling = model_config.LogQueryScaling(beta=0.1, period=16000)
    tables = rope.rotary(jnp.asarray([POSITIONS]), model_config.DefaultRope(theta=1e6), scaling, 8)
    assert tables.query_scale is not None
    np.testing.assert_allclose(tables.query_scale[0], expected["scale"], rtol=1e-6)
