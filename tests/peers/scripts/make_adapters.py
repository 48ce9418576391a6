"""Writes random LoRA adapters with PEFT, and the logits of the models that carry them."""

import pathlib

import numpy as np
import peft
import torch
import torch_models


def main() -> None:
    """Write every adapter of the job."""
    for item in torch_models.read_job()["items"]:
        torch.manual_seed(item["seed"])
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=item["rank"],
            lora_alpha=item["alpha"],
            lora_dropout=item["dropout"],
            target_modules=item["target_modules"],
            target_parameters=item["target_parameters"] or None,
            use_rslora=item["use_rslora"],
            use_dora=item["use_dora"],
            init_lora_weights=False,  # B is drawn too, so that the adapter changes the logits
        )
        model = peft.get_peft_model(torch_models.load(item["folder"]), config).eval()
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:  # as if it had been trained
                parameter.data *= 0.7 + 0.7 * torch.rand_like(parameter)
        folder = pathlib.Path(item["adapter"])
        model.save_pretrained(folder)
        np.save(folder / "logits.npy", torch_models.logits(model, np.load(item["tokens"])))


main()
