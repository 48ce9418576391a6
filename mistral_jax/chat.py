"""A conversation in the terminal with a checkpoint or a finished run."""

import argparse

from rich.console import Console

from mistral_jax import api
from mistral_jax import templates
from mistral_jax.generate import engine
from mistral_jax.generate import sampler

LEAVE = ("/quit", "/exit")


def run(options: argparse.Namespace) -> int:
    """Read lines until Ctrl-D or /quit; /new forgets what was said."""
    console = Console()
    model = api.load(options.model)
    sampling = sampler.Sampling(options.temperature, options.top_k, options.top_p)
    generator = engine.TextGenerator(model.definition, model.params, model.tokenizer, sampling)
    console.print("Ctrl-D or /quit leaves; /new starts over.", style="dim")
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = console.input("[bold cyan]you[/bold cyan] ").strip()
        except EOFError:
            console.print()
            return 0
        if line in LEAVE:
            return 0
        if line == "/new":
            messages = []
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        tokenizer = model.tokenizer
        if options.raw:
            prompt = tokenizer.encode(line, bos=tokenizer.add_bos)
        else:
            prompt = templates.render_prompt(messages, tokenizer)
        answer = generator.complete(
            [prompt], max_tokens=options.max_tokens, seed=options.seed + len(messages)
        )[0]
        console.print(f"[bold green]model[/bold green] {answer.text}", highlight=False)
        messages.append({"role": "assistant", "content": answer.text})
