"""Runs in the peers' environment: transformers models, their logits, losses and AdamW.

Shared by the scripts beside it; each of those takes one argument, a JSON file that says what to
do, and leaves its numbers in .npz files.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

FAMILIES = {
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "ministral": (transformers.MinistralConfig, transformers.MinistralForCausalLM),
    "ministral3": (transformers.Ministral3Config, transformers.Ministral3ForCausalLM),
    "mistral3": (transformers.Mistral3Config, transformers.Mistral3ForConditionalGeneration),
    "mistral3_mistral4": (
        transformers.Mistral3Config, transformers.Mistral3ForConditionalGeneration,
    ),
    "mistral4": (transformers.Mistral4Config, transformers.Mistral4ForCausalLM),
    "deepseek_v3": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
}  # fmt: skip
# The text model inside a multimodal one.
TEXTS = {"mistral3": "ministral3", "mistral3_mistral4": "mistral4"}
ROUTER_BIAS = ".e_score_correction_bias"
DECAYED = (
    "_proj.weight", "lm_head.weight", "lora_A.default.weight", "lora_B.default.weight",
    "experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight", "kv_a_proj_with_mqa.weight",
)  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "head_dim": 8, "patch_size": 4, "image_size": 16,
}  # fmt: skip


def read_job() -> dict:
    """Return the job that the command line names."""
    torch.manual_seed(0)
    return json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))


def build(family: str, config: dict, seed: int) -> torch.nn.Module:
    """Return a float32 model with every parameter drawn, norms and biases included."""
    config_class, model_class = FAMILIES[family]
    if family in TEXTS:
        # The text model's config inside, as the published ones have it, beside a tiny tower.
        config = {"text_config": {"model_type": TEXTS[family], **config}, "vision_config": VISION,
                  "tie_word_embeddings": config["tie_word_embeddings"]}  # fmt: skip
    model = (
        model_class(
            config_class(**config, attn_implementation="eager", experts_implementation="eager")
        )
        .float()
        .eval()
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * noise)
            else:
                # Each projection keeps the size of its input, so that logits are of order one.
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith(ROUTER_BIAS):  # as large as scores are apart, so that it decides
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
    return model


def named(model: torch.nn.Module, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return values by parameter name under the names of a text model's file on disk."""
    kind = model.config.get_text_config().model_type
    if kind == "mistral4":  # its file has the names of its parameters
        return {
            name.replace("model.language_model.", "model."): value
            for name, value in values.items()
            if ".vision_tower." not in name and ".multi_modal_projector." not in name
        }
    is_mixtral = kind == "mixtral"
    room = "block_sparse_moe" if is_mixtral else "mlp"
    gate, up, down = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    found = {}
    for name, value in values.items():
        own = name.replace("model.language_model.", "model.")
        if ".vision_tower." in name or ".multi_modal_projector." in name:
            continue
        if own.endswith("mlp.experts.gate_up_proj"):
            for expert, both in enumerate(value):
                stem = own.replace("mlp.experts.gate_up_proj", f"{room}.experts.{expert}")
                found[f"{stem}.{gate}.weight"], found[f"{stem}.{up}.weight"] = both.chunk(2)
        elif own.endswith("mlp.experts.down_proj"):
            for expert, one in enumerate(value):
                stem = own.replace("mlp.experts.down_proj", f"{room}.experts.{expert}")
                found[f"{stem}.{down}.weight"] = one
        else:
            found[own.replace("mlp.gate.weight", f"{room}.gate.weight")] = value
    return found


def load(folder: str, **options: object) -> torch.nn.Module:
    """Return a saved model in float32 with plain attention."""
    config = transformers.AutoConfig.from_pretrained(folder) if "gguf_file" not in options else None
    # AutoModelForCausalLM does not know the class of mistral4.
    is_small4 = config is not None and config.model_type == "mistral4"
    model_class = (
        transformers.Mistral4ForCausalLM if is_small4 else transformers.AutoModelForCausalLM
    )
    return model_class.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        **options,
    ).eval()


def logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Return logits [B, T, V]."""
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def loss(model: torch.nn.Module, batch: dict[str, np.ndarray]) -> torch.Tensor:
    """Return the mean loss of a batch's weighted targets, in nats."""
    found = model(torch.from_numpy(batch["tokens"]).long(), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        found.flatten(0, 1),
        torch.from_numpy(batch["targets"]).long().flatten(),
        reduction="none",
    )
    weights = torch.from_numpy(batch["loss_weights"]).float().flatten()
    return (losses * weights).sum() / weights.sum()


class Trainer:
    """torch's AdamW with clipping; the rates of all steps are given."""

    def __init__(self, model: torch.nn.Module, settings: dict) -> None:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        is_decayed = {name: name.endswith(DECAYED) for name in trained}
        groups = [
            {"params": [p for n, p in trained.items() if is_decayed[n]],
             "weight_decay": settings["weight_decay"]},
            {"params": [p for n, p in trained.items() if not is_decayed[n]], "weight_decay": 0.0},
        ]  # fmt: skip
        self.parameters = list(trained.values())
        self.rates = settings["rates"]
        self.max_grad_norm = settings["max_grad_norm"]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=tuple(settings["betas"]), eps=settings["epsilon"]
        )

    def step(self, loss_value: torch.Tensor, index: int) -> float:
        """Do one step and return the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        loss_value.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[index]
        self.optimizer.step()
        return float(norm)
