"""Drawn conversations, what each of Mistral's formats makes of them, and tokenizer files for all.

`layout` is written from the formats' rules and uses nothing of mistral-common: it says what text a
conversation becomes, control tokens by their spelling, and which of it the assistant says.
"""

import itertools
import json
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# In the wheel of mistral-common; the format's version beside each.
SHIPPED = {
    "v1": 1, "v2": 2, "v3": 3, "v7": 7, "v7m1": 7, "tekken-240718": 3, "tekken-240911": 3,
}  # fmt: skip
# Written here: no file of these ships, so they are small ones with the same control tokens.
WRITTEN = {"tekken-v7": 7, "tekken-v11": 11, "tekken-v13": 13, "tekken-v15": 15}
CONTROL = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "[MODEL_SETTINGS]",
    "[/MODEL_SETTINGS]",
]  # fmt: skip
NUM_WORDS = 6000
SETTINGS = {
    "reasoning_effort": {
        "type": "enum", "values": ["none", "high"], "accepts_none": True, "default": "high"
    }
}  # fmt: skip


def write_tokenizers(folder: Path) -> None:
    """Write NAME.json of each of `WRITTEN`: the first words of a shipped vocabulary."""
    source = Path(str(resources.files("mistral_common") / "data" / "tekken_240718.json"))
    content = json.loads(source.read_text(encoding="utf-8"))
    special = [{"rank": i, "token_str": s, "is_control": True} for i, s in enumerate(CONTROL)]
    for name, version in WRITTEN.items():
        config = {
            **content["config"],
            "version": f"v{version}",
            "default_vocab_size": NUM_WORDS + len(special),
            "default_num_special_tokens": len(special),
        }
        made = {"config": config, "vocab": content["vocab"][:NUM_WORDS], "special_tokens": special}
        made |= {"model_settings_builder": SETTINGS} if version == 15 else {}
        (folder / f"{name}.json").write_text(json.dumps(made), encoding="utf-8")


WORDS = [
    "hello", "Paris", "42", "naïve", "日本語", "🎉", "don't", "", "two\n\nlines", "\ttab", "«q»",
    '"x"', "\\n", "{brace}", "[INST]", "</s>", "[TOOL_CALLS]", "[/THINK", "мир", "<|im_end|>", ".",
    "👩\u200d👩\u200d👧", "def", "f(x):", "return",
]  # fmt: skip


def draw(version: int, seed: int) -> Row:
    """Return one line of JSONL that the version can carry; equal seeds give equal lines."""
    return _Drawing(version, random.Random(f"{version}/{seed}")).row()


class _Drawing:
    """Draws the parts of one conversation."""

    def __init__(self, version: int, rng: random.Random) -> None:
        self.version, self.rng = version, rng
        self.has_tools = version > 1 and self.chance(0.6)
        self.names = [f"tool_{i}-{rng.choice('abC')}" for i in range(rng.randint(1, 3))]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def text(self) -> str:
        words = self.rng.choices(WORDS, k=self.rng.randint(1, 9))
        text = " ".join(words).strip() or "word"
        return f"{text}{' ' * self.rng.choice([0, 0, 0, 2])}"

    def row(self) -> Row:
        messages = self.system()
        num_turns = self.rng.randint(1, 4)
        for turn in range(num_turns):
            messages += self.turn(is_last=turn == num_turns - 1)
        row: Row = {"messages": messages}
        if self.has_tools:
            row["tools"] = [self.tool(name) for name in self.names]
        return row

    def system(self) -> list[Row]:
        if self.chance(0.4):
            return []
        texts = [
            "" if self.chance(0.25) else self.text() for _ in range(self.rng.choice([1, 1, 2]))
        ]
        return [{"role": "system", "content": self.parts(text)} for text in texts]

    def parts(self, text: str) -> Any:
        """Return a text as itself or in parts; formats join these with two line ends."""
        if self.chance(0.8):
            return text
        texts = [text, self.text()] if self.chance(0.5) else [text]
        return [{"type": "text", "text": each} for each in texts]

    def tool(self, name: str) -> Row:
        kinds = {"city": {"type": "string", "description": self.text()}, "n": {"type": "integer"}}
        parameters = {"type": "object", "properties": kinds, "required": ["city"]}
        function = {"name": name, "description": self.text(), "parameters": parameters}
        return {"type": "function", "function": function}

    def turn(self, *, is_last: bool) -> list[Row]:
        messages = [
            {"role": "user", "content": self.parts(self.text())}
            for _ in range(self.rng.choice([1, 1, 1, 2]))
        ]
        while self.has_tools and self.chance(0.5):
            messages += self.called(is_last=False)
        if is_last and self.has_tools and self.chance(0.3):
            return messages + self.called(is_last=True)
        return messages + [self.answer() for _ in range(self.rng.choice([1, 1, 1, 1, 2]))]

    def answer(self) -> Row:
        message: Row = {"role": "assistant", "content": self.parts(self.text())}
        if self.version < 13 or self.chance(0.5):
            return message
        thinking = self.text()
        if isinstance(message["content"], str) and self.chance(0.5):
            return message | {self.rng.choice(["reasoning", "reasoning_content"]): thinking}
        inner = message["content"]
        inner = [{"type": "text", "text": inner}] if isinstance(inner, str) else inner
        return message | {"content": [{"type": "thinking", "thinking": thinking}, *inner]}

    def called(self, *, is_last: bool) -> list[Row]:
        """Return an assistant's calls and, unless the chat ends with them, their results."""
        calls = [self.call() for _ in range(1 if self.version == 2 else self.rng.randint(1, 3))]
        if is_last and self.version < 13 and self.chance(0.3):
            calls = [{"function": call["function"]} for call in calls]
            # The format's checks read the ids of calls, where there are several, as different.
            calls = calls[:1]
        message: Row = {"role": "assistant", "tool_calls": calls}
        if self.version >= 7 and self.chance(0.4):
            message["content"] = self.text()
        elif self.chance(0.5):
            message["content"] = None
        if is_last:
            return [message]
        results = [
            {"role": "tool", "content": self.result(), "tool_call_id": call["id"]}
            | ({"name": call["function"]["name"]} if self.version == 2 else {})
            for call in calls
        ]
        if self.version >= 11:
            self.rng.shuffle(results)
        return [message, *results]

    def call(self) -> Row:
        letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
        number = "".join(self.rng.choices(letters, k=9))
        arguments: Any = {"city": self.text(), "n": self.rng.choice([1, 2.5, None, [], "日"])}
        kind = self.rng.random()
        if kind < 0.4:
            arguments = json.dumps(arguments, ensure_ascii=kind < 0.2)
        elif kind < 0.5:
            arguments = self.rng.choice(["no json", "{}", ""])
        return {
            "id": f"call_{number}" if self.version >= 13 else number,
            "type": "function",
            "function": {"name": self.rng.choice(self.names), "arguments": arguments},
        }

    def result(self) -> str:
        made = json.dumps({"b": self.text(), "a": [1, 2]}, ensure_ascii=self.chance(0.5))
        return self.rng.choice([made, self.text(), "", "17", '"quoted"'])


Piece = tuple[bool, str]


def layout(version: int, row: Row) -> list[Piece]:
    """Return the conversation as (is learnt, text), neighbours of one kind joined."""
    pieces = _Layout(version, row).pieces()
    kinds = itertools.groupby(pieces, key=lambda piece: piece[0])
    return [(learnt, "".join(text for _, text in run)) for learnt, run in kinds]


class _Layout:
    """Writes a conversation down as its format has it."""

    def __init__(self, version: int, row: Row) -> None:
        self.version, self.tools = version, row.get("tools", [])
        runs = itertools.groupby(row["messages"], key=lambda message: message["role"])
        self.turns = [(role, list(run)) for role, run in runs]
        users = [i for i, (role, _) in enumerate(self.turns) if role == "user"]
        self.first_user, self.last_user = users[0], users[-1]

    def pieces(self) -> Iterator[Piece]:
        yield False, "<s>"
        called: list[Row] = []
        for index, (role, run) in enumerate(self.turns):
            if role == "system" and self.version >= 7:
                for message in run:
                    yield False, f"[SYSTEM_PROMPT]{self.said([message])}[/SYSTEM_PROMPT]"
            elif role == "user":
                yield False, self.user(index, self.said(run))
            elif role == "assistant":
                called = [call for message in run for call in message.get("tool_calls", [])]
                if self.version > 2 or not called or index > self.last_user:
                    yield True, self.assistant(run, called)
            elif role == "tool" and (self.version > 2 or index > self.last_user):
                order = [call["id"] for call in called]
                if self.version >= 11:
                    run = sorted(run, key=lambda result: order.index(result["tool_call_id"]))
                for message in run:
                    yield False, f"[TOOL_RESULTS]{self.result(message)}[/TOOL_RESULTS]"

    def said(self, run: list[Row]) -> str:
        """Return the content of neighbours, thinking in its marks."""
        inside = "" if self.version == 15 else "\n\n"
        parts: list[tuple[str, str]] = []
        for message in run:
            between = "\n\n"
            for kind, text in _parts(message):
                if kind == "thinking":
                    parts.append((kind, f"[THINK]{text}[/THINK]"))
                elif text and parts and parts[-1][0] == "text":
                    parts[-1] = ("text", f"{parts[-1][1]}{between}{text}")
                    between = inside
                elif text:
                    parts.append((kind, text))
                    between = inside
                if kind == "thinking":
                    between = inside
        return "".join(text for _, text in parts)

    def user(self, index: int, content: str) -> str:
        systems = [m for role, run in self.turns if role == "system" for m in run]
        prompt = "\n\n".join(self.said([message]) for message in systems if message["content"])
        prompt = f"{prompt}\n\n" if prompt else ""
        if self.version == 1:
            return f"[INST] {prompt if index == self.first_user else ''}{content} [/INST]"
        if self.version < 7 and index == self.last_user:
            content = prompt + content
        before = ""
        if index == (self.first_user if self.version >= 13 else self.last_user):
            if self.tools:
                listed = json.dumps(self.tools, ensure_ascii=False)
                before = f"[AVAILABLE_TOOLS]{listed}[/AVAILABLE_TOOLS]"
            if self.version == 15:
                before += '[MODEL_SETTINGS]{"reasoning_effort": "high"}[/MODEL_SETTINGS]'
        return f"{before}[INST]{content}[/INST]"

    def assistant(self, run: list[Row], calls: list[Row]) -> str:
        content = self.said(run)
        if self.version > 1 and "[/THINK]" not in content:
            content = content.rstrip(" ")
        if not calls:
            return f"{content}</s>"
        if self.version >= 11:
            for call in calls:
                number = f"[CALL_ID]{call['id']}" if self.version == 11 and "id" in call else ""
                arguments = json.dumps(_arguments(call), ensure_ascii=False)
                content += f"[TOOL_CALLS]{call['function']['name']}{number}[ARGS]{arguments}"
            return f"{content}</s>"
        listed = [
            {"name": call["function"]["name"], "arguments": _arguments(call)}
            | ({"id": call["id"]} if self.version > 2 and "id" in call else {})
            for call in calls
        ]
        return f"{content}[TOOL_CALLS]{json.dumps(listed, ensure_ascii=False)}</s>"

    def result(self, message: Row) -> str:
        text, number = message["content"], message["tool_call_id"]
        if self.version >= 13:
            return text
        if self.version >= 7:
            return f"{number}[TOOL_CONTENT]{text}"
        value = _json_or_text(text or "{}")
        if self.version == 2:
            listed = [{"name": message["name"], "content": value}]
            return json.dumps(listed, ensure_ascii=False)
        return json.dumps({"content": value, "call_id": number}, ensure_ascii=False)


def _parts(message: Row) -> list[tuple[str, str]]:
    content = message.get("content") or ""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    thinking = message.get("reasoning") or message.get("reasoning_content")
    parts = [(part["type"], part[part["type"]]) for part in content]
    return [*([("thinking", thinking)] if thinking else []), *parts]


def _arguments(call: Row) -> Any:
    arguments = call["function"]["arguments"]
    return _json_or_text(arguments or "{}") if isinstance(arguments, str) else arguments


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
