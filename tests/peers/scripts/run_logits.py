"""Loads models, and adapters on them, and writes their logits.

A job lists {folder, adapter?, gguf_file?, tokens, out}; tokens and out are .npy files.
"""

import gc

import numpy as np
import peft
import torch_models


def main() -> None:
    """Write the logits of every item of the job."""
    for item in torch_models.read_job()["items"]:
        options = {"gguf_file": item["gguf_file"]} if "gguf_file" in item else {}
        model = torch_models.load(item["folder"], **options)
        if "adapter" in item:
            model = peft.PeftModel.from_pretrained(model, item["adapter"]).eval()
        np.save(item["out"], torch_models.logits(model, np.load(item["tokens"])))
        del model
        gc.collect()


main()
