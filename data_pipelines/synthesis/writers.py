"""Who writes a generator's texts: an OpenAI-compatible endpoint, or a model of ours.

A request that meets a busy or failing server, a stall or an answer that is no JSON is tried again
until its deadline; then that text comes back as a Reject, and the run goes on. Tokens and costs
are counted as the endpoint reports them. Redirects are not followed: the key is for one host.
"""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Protocol

from data_pipelines.documents import Reject
from mistral_jax import protocols
from mistral_jax.config import generators

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
READ_BYTES = 1 << 16
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 20.0


class Writer(Protocol):
    """Prompts to texts."""

    @property
    def label(self) -> str:
        """What rows say of their writer."""
        ...

    def write(self, prompts: Sequence[str], *, seed: int) -> list[str | Reject]:
        """Return one text, or why there is none, for each prompt, in order."""
        ...


class OverBudget(ValueError):
    """More was spent than the config allows."""

    exit_code = 3


@dataclass
class Usage:
    """What an endpoint was asked and what it cost."""

    requests: int = 0
    retries: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class _Busy(Exception):
    """This request may do better later."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _Refused(Exception):
    """This request will never do."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass
class EndpointTexts:
    """Texts from a chat completions endpoint.

    Attributes:
        config: its node.
        usage: what was asked so far.
    """

    config: generators.EndpointWriter
    usage: Usage = field(default_factory=Usage)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _next_start: float = field(default=0.0, repr=False)

    @property
    def label(self) -> str:
        """The model's name and temperature; never the key."""
        return f"endpoint model={self.config.model} temperature={self.config.temperature}"

    def write(self, prompts: Sequence[str], *, seed: int) -> list[str | Reject]:
        """Return one text, or why there is none, for each prompt, in order.

        Raises:
            ValueError: the key's environment variable is not set.
            OverBudget: more than max_cost was spent.
        """
        key = self._key()
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            asked = [
                pool.submit(self._text, prompt, seed + place, key)
                for place, prompt in enumerate(prompts)
            ]
            return [each.result() for each in asked]

    def _key(self) -> str | None:
        name = self.config.api_key_env
        if name is None:
            return None
        if not (key := os.environ.get(name)):
            raise ValueError(
                f"writer.api_key_env: expected the key in the environment variable {name}, which "
                "is not set; export it, or set api_key_env to null"
            )
        return key

    def _text(self, prompt: str, seed: int, key: str | None) -> str | Reject:
        deadline = time.monotonic() + self.config.deadline_s
        pause_s = FIRST_PAUSE_S
        while True:
            self._check_budget()
            self._wait_turn(deadline)
            try:
                return self._ask(prompt, seed, key, deadline)
            except _Refused as refused:
                return self._failed("writer_refused", str(refused))
            except _Busy as busy:
                wait_s = busy.pause_s if busy.pause_s is not None else pause_s
                if time.monotonic() + wait_s >= deadline:
                    return self._failed(
                        "writer_failed", f"no text within {self.config.deadline_s} s: {busy}"
                    )
            with self._lock:
                self.usage.retries += 1
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _failed(self, kind: str, reason: str) -> Reject:
        with self._lock:
            self.usage.failed += 1
        return Reject(self.config.base_url, kind, reason)

    def _check_budget(self) -> None:
        config = self.config
        if config.max_cost and self.usage.cost > config.max_cost:
            raise OverBudget(
                f"writer.max_cost: {self.usage.cost:.4f} of {config.max_cost} was spent after "
                f"{self.usage.requests} requests; raise it, or make fewer rows"
            )

    def _wait_turn(self, deadline: float) -> None:
        """Keep the requests a minute apart as configured."""
        with self._lock:
            self.usage.requests += 1
            if not self.config.requests_per_minute:
                return
            start = max(self._next_start, time.monotonic())
            self._next_start = start + 60 / self.config.requests_per_minute
        time.sleep(max(0.0, min(start, deadline) - time.monotonic()))

    def _ask(self, prompt: str, seed: int, key: str | None, deadline: float) -> str:
        config = self.config
        asked = {
            "model": config.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "seed": seed,
        }
        request = urllib.request.Request(
            config.base_url.rstrip("/") + "/chat/completions",
            data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {key}"} if key else {}),
        )
        body = self._send(request, min(deadline, time.monotonic() + config.timeout_s))
        try:
            answer = json.loads(body)
            text = answer["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise _Busy(f"the answer is not a chat completion: {error!r}") from None
        self._count(answer.get("usage"))
        if not isinstance(text, str) or not text.strip():
            raise _Busy("the answer holds no text")
        return text.encode("utf-8", "replace").decode()  # JSON may hold half of a surrogate pair

    def _send(self, request: urllib.request.Request, deadline: float) -> bytes:
        left_s = max(0.001, deadline - time.monotonic())
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=left_s) as response:
                body = bytearray()
                # read1 returns what is there, so that a slow drip meets the deadline too.
                while chunk := response.read1(READ_BYTES):
                    body += chunk
                    if len(body) > self.config.answer_bytes:
                        raise _Refused(f"the answer is longer than {self.config.answer_bytes} B")
                    if time.monotonic() > deadline:
                        raise _Busy(f"no whole answer within {self.config.timeout_s} s")
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode("utf-8", "replace")
            if error.code in RETRIED:
                raise _Busy(f"HTTP {error.code}", _retry_after(error)) from None
            raise _Refused(f"HTTP {error.code}: {said}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Busy(f"{type(error).__name__}: {error}") from None
        return bytes(body)

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        asked, written = (each if isinstance(each, int) else 0 for each in counts)
        with self._lock:
            self.usage.prompt_tokens += asked
            self.usage.completion_tokens += written
            self.usage.cost += (
                asked * self.config.price_input + written * self.config.price_output
            ) / 1e6


@dataclass
class ModelTexts:
    """Texts of a model of ours, handed in by who may load one."""

    config: generators.ModelWriter
    model: protocols.Generator

    @property
    def label(self) -> str:
        """The checkpoint's name."""
        return f"model weights={self.config.weights}"

    def write(self, prompts: Sequence[str], *, seed: int) -> list[str | Reject]:
        """Return one text, or why there is none, for each prompt, in order."""
        texts: list[str | Reject] = []
        for start in range(0, len(prompts), self.config.batch_prompts):
            made = self.model.generate(
                list(prompts[start : start + self.config.batch_prompts]),
                max_tokens=self.config.max_tokens,
                seed=(seed + start) % (1 << 32),
            )
            texts.extend(
                each.text
                if each.text.strip()
                else Reject(self.config.weights, "writer_failed", "the model wrote nothing")
                for each in made
            )
        return texts


def build(config: generators.Writer, *, model: protocols.Generator | None = None) -> Writer | None:
    """Return the writer of a config; None for templates.

    Args:
        config: the node.
        model: what `kind: model` writes with; loaded by the caller.

    Raises:
        ValueError: kind "model" without one.
    """
    match config:
        case generators.TemplateWriter():
            return None
        case generators.EndpointWriter():
            return EndpointTexts(config)
        case _:
            if model is None:
                raise ValueError(
                    f"writer: kind model needs the checkpoint {config.weights} loaded, and it is "
                    "not; run it by `mistral-jax prepare`, which loads it"
                )
            return ModelTexts(config, model)


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    said = error.headers.get("Retry-After", "")
    return float(said) if said.isascii() and said.isdigit() else None
