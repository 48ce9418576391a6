"""Trains with torch's AdamW from given weights on given batches, and writes every loss.

A job gives folder (and gguf_file, adapter), batches (.npz of [steps, B, T] arrays), optimizer
and out.
"""

import numpy as np
import peft
import torch_models


def main() -> None:
    """Train as the job says."""
    job = torch_models.read_job()
    options = {"gguf_file": job["gguf_file"]} if "gguf_file" in job else {}
    model = torch_models.load(job["folder"], **options)
    if "adapter" in job:
        model = peft.PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
    with np.load(job["batches"]) as file:
        batches = dict(file)
    trainer = torch_models.Trainer(model.train(), job["optimizer"])
    losses = []
    for index in range(len(batches["tokens"])):
        batch = {name: array[index] for name, array in batches.items()}
        loss = torch_models.loss(model, batch)
        trainer.step(loss, index)
        losses.append(float(loss.detach()))
    np.save(job["out"], np.array(losses))


main()
