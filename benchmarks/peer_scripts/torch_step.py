"""Peer of lora_step.py and dense_step.py: one optimizer step of torch a line of stdin.

Arguments: mode (lora, full), model folder, adapter folder or -, batch .npz, dtype, learning rate.
Answers {"seconds", "loss"} to "step", and ends when stdin closes.
"""

import json
import sys
import time

import numpy as np
import peft
import torch
import transformers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Load, say ready, answer."""
    mode, model_folder, adapter_folder, batch_path, dtype, rate = sys.argv[1:]
    torch.manual_seed(0)
    torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=DTYPES[dtype], attn_implementation="sdpa"
    )
    if mode == "lora":
        model = peft.PeftModel.from_pretrained(model, adapter_folder, is_trainable=True)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=float(rate), betas=(0.9, 0.95), weight_decay=0.0)
    batch = np.load(batch_path)
    tokens = torch.from_numpy(batch["tokens"].astype(np.int64))
    targets = torch.from_numpy(batch["targets"].astype(np.int64))
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        if line.strip() != "step":
            continue
        started = time.monotonic()
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), targets.reshape(-1)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        print(json.dumps({"seconds": time.monotonic() - started, "loss": value}), flush=True)


if __name__ == "__main__":
    main()
