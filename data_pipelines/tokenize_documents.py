"""Documents to tokens and loss masks: cleaned, then by the tokenizer's and template's conventions.

Text: begin token (where the model has one), text, end token; every token is a target. Prompt and
completion: the same around both, encoded as one text where a token ends between them; only the
completion and the end token are targets. Chats and gaps: what mistral_jax.templates renders, with
its mask.
"""

import hashlib
import json
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import numpy as np

from data_pipelines import clean
from data_pipelines import jsonl
from data_pipelines import jsonl_messages
from data_pipelines.documents import NO_ORIGIN
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from mistral_jax import templates
from mistral_jax import tokenizers

MIN_TOKENS = 2  # one input and its target


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A document as it is trained on.

    Attributes:
        tokens: int64.
        mask: 1 where the token is a target that counts (uint8); None when all are.
        digest: sha256 of what the document says; equal ones are duplicates.
        origin: sha256 of the name of the document that it was made from; NO_ORIGIN without one.
    """

    tokens: np.ndarray
    mask: np.ndarray | None
    digest: bytes
    origin: bytes = NO_ORIGIN


def tokenize_document(document: Document, tokenizer: tokenizers.Tokenizer) -> Tokenized | Reject:
    """Return a document cleaned and tokenized, or why it is of no use."""
    document = cleaned(document)
    if not _says_something(document):
        return Reject(document.id, "empty", "nothing is left when control characters are removed")
    try:
        ids, mask = _encode(document, tokenizer)
    except templates.TemplateError as error:
        kind = "bad_infill" if isinstance(document, jsonl.Infill) else "bad_chat"
        return Reject(document.id, kind, str(error))
    except tokenizers.EncodeError as error:
        return Reject(document.id, "not_tokenizable", str(error))
    tokens = np.asarray(ids, np.int64)
    if len(tokens) < MIN_TOKENS:
        return Reject(document.id, "too_short", f"{len(tokens)} token; at least 2 are needed")
    if mask is not None and not mask[1:].any():
        return Reject(document.id, "no_targets", "no token of it is one to learn")
    return Tokenized(tokens, mask, _content_digest(document), _origin_digest(document))


def cleaned(document: Document) -> Document:
    """Return a document cleaned; of calls and tools nothing is changed, they are no prose."""
    if isinstance(document, jsonl.Infill):
        texts = (document.prompt, document.completion, document.suffix)
        prompt, completion, suffix = map(clean.clean_turn, texts)
        return replace(document, prompt=prompt, completion=completion, suffix=suffix)
    if document.kind == "chat":
        return replace(document, messages=tuple(map(_clean_message, document.messages)))
    return clean.clean_document(document)


def _clean_message(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": clean.clean_turn(content)}
    parts = [{**part, part["type"]: clean.clean_turn(part[part["type"]])} for part in content]
    return {**message, "content": parts}


def _encode(
    document: Document, tokenizer: tokenizers.Tokenizer
) -> tuple[list[int], np.ndarray | None]:
    bos, eos = [tokenizer.bos_id] if tokenizer.add_bos else [], [tokenizer.eos_id]
    match document.kind:
        case "text":
            return tokenizer.encode(document.text, bos=tokenizer.add_bos, eos=True), None
        case "chat":
            tools = document.tools if isinstance(document, jsonl.ToolChat) else ()
            rendered = templates.render(document.messages, tokenizer, tools)
            return rendered.tokens, np.asarray(rendered.loss_mask, np.uint8)
        case _ if isinstance(document, jsonl.Infill):
            rendered = templates.render_infill(
                document.prompt, document.suffix, document.completion, tokenizer
            )
            return rendered.tokens, np.asarray(rendered.loss_mask, np.uint8)
        case _:
            head, tail = tokenizer.encode_parts(document.prompt, document.completion)
            ids = [*bos, *head, *tail, *eos]
            mask = np.arange(len(ids)) >= len(bos) + len(head)
            return ids, mask.astype(np.uint8)


def _says_something(document: Document) -> bool:
    match document.kind:
        case "text":
            return bool(document.text.strip())
        case "chat":
            answers = (each for each in document.messages if each["role"] == "assistant")
            return any(map(jsonl_messages.says_something, answers))
        case _:
            return bool(document.completion.strip())


def _content_digest(document: Document) -> bytes:
    match document.kind:
        case "text":
            content = document.text
        case "chat":
            content = json.dumps(_chat_content(document), ensure_ascii=False)
        case _:
            texts = [document.prompt, document.completion]
            if isinstance(document, jsonl.Infill):
                texts.append(document.suffix)
            content = json.dumps(texts, ensure_ascii=False)
    return hashlib.sha256(f"{document.kind}\n{content}".encode()).digest()


def _origin_digest(document: Document) -> bytes:
    if not document.made_from:
        return NO_ORIGIN
    return hashlib.sha256(document.made_from.encode()).digest()


def _chat_content(document: Document) -> list[Any]:
    plain = ("role", "content")
    turns, unlearnt = [], []
    for index, message in enumerate(document.messages):
        extra = {k: v for k, v in message.items() if k not in (*plain, "weight")}
        turns.append([*(message[key] for key in plain), *([extra] if extra else [])])
        if message.get("weight") == 0:
            unlearnt.append(index)
    if isinstance(document, jsonl.ToolChat):
        return [turns, unlearnt, document.tools]
    return [turns, unlearnt] if unlearnt else turns
