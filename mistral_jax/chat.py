"""A conversation in the terminal with a checkpoint or a finished run."""

import argparse

from rich.console import Console
from rich.text import Text

from mistral_jax import api
from mistral_jax import templates
from mistral_jax.generate import engine
from mistral_jax.generate import sampler
from mistral_jax.inspect import table

Message = dict[str, str]
LEAVE = ("/quit", "/exit")


def run(options: argparse.Namespace) -> int:
    """Read lines until Ctrl-D or /quit; /new forgets what was said."""
    console = Console()
    adapters = None if options.adapter is None else {"adapter": options.adapter}
    model = api.load(options.model, adapters=adapters)
    sampling = sampler.Sampling(options.temperature, options.top_k, options.top_p)
    generator = engine.TextGenerator(model.definition, model.params, model.tokenizer, sampling)
    console.print("Ctrl-D or /quit leaves; /new starts over.", style="dim")
    messages: list[Message] = []
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
        asked = [*messages, {"role": "user", "content": line}]
        tokenizer = model.tokenizer
        try:
            if options.raw:
                prompt = tokenizer.encode(line, bos=tokenizer.add_bos)
            else:
                prompt = templates.render_prompt(asked, tokenizer)
            answer = generator.complete(
                [prompt], max_tokens=options.max_tokens, seed=options.seed + len(asked)
            )[0]
        except ValueError as error:  # too long, or not of the format: the turn is as if not said
            console.print(f"error: {error}", style="red", markup=False)
            continue
        console.print(answer_line(answer.text), highlight=False)
        messages = after_answer(messages, line, answer.text)


def answer_line(text: str) -> Text:
    """Return an answer as it is shown: neither rich nor the terminal obeys what it says."""
    return Text.assemble(("model ", "bold green"), table.visible(text))


def after_answer(messages: list[Message], question: str, answer: str) -> list[Message]:
    """Return the chat after a turn; an empty answer, which no format can say, leaves it out."""
    if not answer.strip():
        return messages
    turn = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, *turn]
