"""Writes random checkpoints with transformers, and what torch computes from each of them."""

import pathlib

import numpy as np
import torch
import torch_models


def describe(model: torch.nn.Module, batch: dict, optimizer: dict) -> dict[str, np.ndarray]:
    """Return logits, hidden states, loss, gradients and the parameters after one step."""
    tokens = torch.from_numpy(batch["tokens"]).long()
    with torch.no_grad():
        seen = model(tokens, output_hidden_states=True)
    found = {"logits": seen.logits.numpy()}
    found |= {f"hidden/{i}": state.numpy() for i, state in enumerate(seen.hidden_states)}
    trainer = torch_models.Trainer(model, optimizer | {"max_grad_norm": float("inf")})
    loss = torch_models.loss(model, batch)
    loss.backward()
    found["loss"] = loss.detach().numpy()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    biases = {n: b for n, b in model.named_buffers() if n.endswith(torch_models.ROUTER_BIAS)}
    gradients |= {name: torch.zeros_like(bias) for name, bias in biases.items()}
    for name, gradient in torch_models.named(model, gradients).items():
        found[f"gradient/{name}"] = gradient.numpy().copy()
    trainer.max_grad_norm = optimizer["max_grad_norm"]
    found["grad_norm"] = np.float32(trainer.step(torch_models.loss(model, batch), 0))
    stepped = dict(model.named_parameters()) | biases
    for name, parameter in torch_models.named(model, stepped).items():
        found[f"stepped/{name}"] = parameter.detach().numpy().copy()
    return found


def continue_greedily(model: torch.nn.Module, prompt: list[int], num_tokens: int) -> np.ndarray:
    """Return the tokens that transformers' own generate adds, with its cache."""
    ids = torch.tensor([prompt])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return made[0, len(prompt) :].numpy()


def main() -> None:
    """Write every checkpoint of the job."""
    for draw in torch_models.read_job()["draws"]:
        folder = pathlib.Path(draw["folder"])
        model = torch_models.build(draw["family"], draw["config"], draw["seed"])
        model.save_pretrained(folder)
        with np.load(draw["batch"]) as file:
            batch = dict(file)
        found = {"greedy": continue_greedily(model, draw["prompt"], draw["num_tokens"])}
        found |= describe(model, batch, draw["optimizer"])
        np.savez(folder / "expected.npz", **found)


main()
