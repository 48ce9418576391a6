"""Writes transformers' rotary frequencies and gains for a list of options, and query scaling."""

import numpy as np
import torch
import torch_models
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.ministral3 import modeling_ministral3


def main() -> None:
    """Write one .npz for the job."""
    job = torch_models.read_job()
    found = {}
    for index, item in enumerate(job["items"]):
        config = transformers.Ministral3Config(
            hidden_size=64, num_attention_heads=2, head_dim=item["head_dim"],
            max_position_embeddings=item["max_positions"], rope_parameters=item["parameters"],
        )  # fmt: skip
        kind = item["parameters"]["rope_type"]
        embedding = modeling_ministral3.Ministral3RotaryEmbedding
        make = ROPE_INIT_FUNCTIONS.get(kind, embedding.compute_default_rope_parameters)
        frequencies, gain = make(config)
        found[f"frequencies{index}"], found[f"gain{index}"] = frequencies.numpy(), np.float64(gain)
    positions = torch.tensor([job["positions"]])
    scale = modeling_ministral3.get_llama_4_attn_scale(positions, job["beta"], job["period"])
    np.savez(job["out"], scale=scale.numpy().reshape(-1), **found)


main()
