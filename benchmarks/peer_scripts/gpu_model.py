"""Peer of the GPU rows dense, lora, prefill and decode: a whole Mistral in torch, hashed numbers.

transformers and PEFT where asked for and installed, else gpu_plain.py; the answer names which.
"""

import re
import time

import gpu_peer
import gpu_plain
import numpy as np
import torch
from gpu_peer import DEVICE
from gpu_peer import DTYPE
from gpu_peer import hashed
from torch.nn import functional

LAYER = re.compile(r"model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)(?:\.(lora_A|lora_B))?\.weight")
ROOMS = {"self_attn": "attention", "mlp": "mlp"}
KERNELS = {None: "kernel", "lora_A": "lora_a", "lora_B": "lora_b"}

loaded = {}


def load(prepared, model, engine, mode, is_checkpointed, cap_gib=None):
    """Build the model; full training has float32 parameters and computes under autocast."""
    loaded.clear()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    is_foreign = engine == "transformers" and gpu_peer.is_installed("transformers")
    if mode in ("lora", "qlora"):
        is_foreign = is_foreign and gpu_peer.is_installed("peft")
    if mode == "qlora" and not (is_foreign and gpu_peer.is_installed("bitsandbytes")):
        raise ImportError("QLoRA's peer is transformers with PEFT and bitsandbytes")
    torch.set_default_dtype(torch.float32 if mode == "full" else DTYPE)
    with torch.device(DEVICE):
        build = _foreign if is_foreign else _plain
        decoder, name = build(model, mode, is_checkpointed)
    _fill(decoder, model)
    if mode == "qlora":
        decoder, name = _adapted(_quantised(decoder), model, f"bitsandbytes NF4, {name}")
        _fill(decoder, model, is_adapter=True)
    torch.set_default_dtype(torch.float32)
    if DEVICE.type == "cuda":
        # From here on it is as on the small device; the whole base was there before.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        whole = torch.cuda.get_device_properties(DEVICE).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, (cap_gib or whole) / whole))
    if mode == "infer":
        decoder.eval().requires_grad_(False)
    else:
        decoder.train()
    loaded.update(model=decoder, shape=model, is_foreign=is_foreign)
    return {"name": name}


def _plain(shape, mode, is_checkpointed):
    decoder = gpu_plain.Mistral(shape, is_checkpointed=is_checkpointed)
    if mode == "lora":
        decoder.adapt()
    if mode == "full" and DEVICE.type == "cuda":
        for layer in decoder.model.layers:
            layer.compile()
        return decoder, "plain torch, torch.compile of each layer, SDPA"
    return decoder, "plain torch, SDPA"


def _foreign(shape, mode, is_checkpointed):
    import transformers

    config = transformers.MistralConfig(
        hidden_size=shape["width"],
        intermediate_size=shape["hidden"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        head_dim=shape["head_width"],
        vocab_size=shape["vocab_size"],
        rms_norm_eps=shape["norm_epsilon"],
        max_position_embeddings=shape["max_positions"],
        sliding_window=None,
        tie_word_embeddings=False,
        rope_theta=shape["theta"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["theta"]},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    decoder = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="sdpa", dtype=torch.get_default_dtype()
    )
    name = f"transformers {transformers.__version__}, SDPA"
    if is_checkpointed:
        decoder.gradient_checkpointing_enable()
        decoder.enable_input_require_grads()
        name += ", gradient checkpointing"
    return _adapted(decoder, shape, name) if mode == "lora" else (decoder, name)


def _adapted(decoder, shape, name):
    import peft

    adapter = peft.LoraConfig(
        r=shape["rank"], lora_alpha=shape["alpha"], lora_dropout=0.0,
        target_modules=list(gpu_plain.PROJECTIONS),
    )  # fmt: skip
    return peft.get_peft_model(decoder, adapter), f"PEFT {peft.__version__}, {name}"


def _quantised(decoder):
    """Put bitsandbytes' NF4 layers in the place of the projections, one after the other."""
    import bitsandbytes

    for layer in decoder.model.layers:
        for room in (layer.self_attn, layer.mlp):
            for name in [each for each in gpu_plain.PROJECTIONS if hasattr(room, each)]:
                weight = getattr(room, name).weight.data
                delattr(room, name)
                narrow = bitsandbytes.nn.Linear4bit(
                    weight.shape[1], weight.shape[0], bias=False, compute_dtype=DTYPE,
                    compress_statistics=True, quant_type="nf4", device="meta",
                )  # fmt: skip
                narrow.weight = bitsandbytes.nn.Params4bit(
                    weight.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4",
                    module=narrow,
                )  # fmt: skip
                del weight
                setattr(room, name, narrow.to(DEVICE))
    return decoder


def _fill(decoder, shape, *, is_adapter=False):
    for name, parameter in decoder.named_parameters():
        if is_adapter and "lora_" not in name:
            continue
        name = name.removeprefix("base_model.model.")
        name = name.replace(".default", "").replace(".base_layer", "")
        with torch.no_grad():
            parameter.copy_(_numbers(name, tuple(parameter.shape), parameter.dtype, shape))


def _numbers(name, size, dtype, shape):
    """Return a parameter's numbers in torch's layout; ours is [in, out]."""
    scale = shape["init_std"]
    if "norm" in name:
        return torch.ones(size, dtype=dtype, device=DEVICE)
    if name == "model.embed_tokens.weight":
        return hashed("embed/embedding", size, scale=scale, dtype=dtype)
    if name == "lm_head.weight":
        return hashed("head/kernel", size[::-1], scale=scale, dtype=dtype).t()
    matched = LAYER.fullmatch(name)
    if matched is None:
        raise ValueError(f"the parameter {name} is not known")
    layer, room, projection, adapter = matched.groups()
    if adapter:
        scale = shape["lora_b_std"] if adapter == "lora_B" else size[1] ** -0.5
    path = f"layers/{ROOMS[room]}/{projection}/{KERNELS[adapter]}:{layer}"
    return hashed(path, size[::-1], scale=scale, dtype=dtype).t()


def logits_of(tokens, *, is_last_only=False):
    """Return the model's logits."""
    model = loaded["model"]
    if loaded["is_foreign"]:
        keep = {"logits_to_keep": 1} if is_last_only else {}
        return model(input_ids=tokens, use_cache=False, **keep).logits
    return model(tokens, is_last_only=is_last_only)


def autocast():
    """Return the context in which a model with float32 parameters computes in DTYPE."""
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=torch.bfloat16 == DTYPE)


def train(prepared, num_rows, length, num_steps, learning_rate):
    """Return the first row's token losses, then the losses and gradient norms of some steps."""
    model, vocab_size = loaded["model"], loaded["shape"]["vocab_size"]
    rows = np.random.default_rng(0).integers(0, vocab_size, (num_rows, length + 1), np.int32)
    rows = torch.from_numpy(rows.astype(np.int64)).to(DEVICE)
    tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=DEVICE.type == "cuda"
    )

    def step():
        with autocast():
            logits = logits_of(tokens)
        loss = functional.cross_entropy(logits.float().reshape(-1, vocab_size), targets.reshape(-1))
        del logits
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), float(norm)

    with torch.no_grad(), autocast():
        token_losses = functional.cross_entropy(
            logits_of(tokens[:1])[0].float(), targets[0], reduction="none"
        ).tolist()
    losses, norms = zip(*(step() for _ in range(num_steps)), strict=True)
    prepared["step"] = step
    step.repeats = 1
    return {
        "token_losses": token_losses,
        "losses": losses,
        "grad_norms": norms,
        "peak_gib": peak_gib(),
    }


def peak_gib():
    """Return the most device memory that torch held."""
    if DEVICE.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def prompt(batch, length):
    """Return random tokens, as the other side draws them."""
    vocab_size = loaded["shape"]["vocab_size"]
    tokens = np.random.default_rng(0).integers(0, vocab_size, (batch, length), np.int32)
    return torch.from_numpy(tokens.astype(np.int64)).to(DEVICE)


def prefill(prepared, length):
    """Return the last token's logits of a prompt."""
    tokens = prompt(1, length)

    def run():
        with torch.no_grad():
            return logits_of(tokens, is_last_only=True)

    prepared["prefill"] = run
    return {"logits": run()[0, -1].float().tolist()}


def decode(prepared, batch, prompt_length, num_new, num_rounds):
    """Return the seconds of greedy tokens after the first, round by round."""
    tokens, model = prompt(batch, prompt_length), loaded["model"]

    def run(count):
        with torch.no_grad():
            if not loaded["is_foreign"]:
                return model.generate(tokens, count)
            return model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
                min_new_tokens=count, max_new_tokens=count, pad_token_id=0,
            )  # fmt: skip

    def seconds(count):
        gpu_peer.wait()
        started = time.perf_counter()
        found = run(count)
        gpu_peer.wait()
        if found.shape[1] != prompt_length + count:
            raise RuntimeError(f"{found.shape[1] - prompt_length} new tokens, not {count}")
        return time.perf_counter() - started

    seconds(2)
    rounds = [max(seconds(1 + num_new) - seconds(1), 1e-9) for _ in range(num_rounds)]
    return {"seconds": rounds}


if __name__ == "__main__":
    gpu_peer.serve({"load": load, "train": train, "prefill": prefill, "decode": decode})
