"""Documents to tokens and loss masks, by the tokenizer's and the chat template's conventions.

Text: begin token (where the model has one), text, end token; every token is a target. Prompt and
completion: the same around both; only the completion and the end token are targets. Chats: what
mistral_jax.templates renders, with its mask.
"""

import hashlib
import json

import numpy as np

from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from mistral_jax import templates
from mistral_jax.tokenizers import Tokenizer

MIN_TOKENS = 2  # one input and its target


def tokenize_document(
    document: Document, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray | None] | Reject:
    """Return tokens (int64) and loss mask (uint8, None when all are targets), or why not."""
    bos = tokenizer.add_bos
    mask: np.ndarray | None = None
    match document.kind:
        case "text":
            ids = tokenizer.encode(document.text, bos=bos, eos=True)
        case "chat":
            try:
                rendered = templates.render(document.messages, tokenizer)
            except templates.TemplateError as error:
                return Reject(document.id, "bad_chat", str(error))
            ids = rendered.tokens
            mask = np.asarray(rendered.loss_mask, np.uint8)
        case _:
            prompt = tokenizer.encode(document.prompt, bos=bos)
            ids = prompt + tokenizer.encode(document.completion, eos=True)
            mask = (np.arange(len(ids)) >= len(prompt)).astype(np.uint8)
    tokens = np.asarray(ids, np.int64)
    if len(tokens) < MIN_TOKENS:
        return Reject(document.id, "too_short", f"{len(tokens)} token; at least 2 are needed")
    if mask is not None and not mask[1:].any():
        return Reject(document.id, "no_targets", "no token of it is one to learn")
    return tokens, mask


def content_digest(document: Document) -> bytes:
    """Return the sha256 of what the document says; equal ones are duplicates."""
    match document.kind:
        case "text":
            content = document.text
        case "chat":
            turns = [[each["role"], each["content"]] for each in document.messages]
            content = json.dumps(turns, ensure_ascii=False)
        case _:
            content = json.dumps([document.prompt, document.completion], ensure_ascii=False)
    return hashlib.sha256(f"{document.kind}\n{content}".encode()).digest()
