"""The bytes of one prepared document, as a shard holds them.

A record is an 8-byte header (version, bytes per token, length of the id, number of tokens; little
endian), then the tokens, then one byte per token of loss mask if the record has one, then the id.
Without a mask every token is a target. Tokens come first so that a batch can be cut out of records
without parsing them.
"""

import struct

import numpy as np

from mistral_jax.protocols import Example

FORMAT_VERSION = 1
HEADER = struct.Struct("<BBHI")
HEADER_BYTES = HEADER.size
MASK_FLAG = 0x80
TOKEN_DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


class RecordError(ValueError):
    """A record that this version cannot read, or that is damaged."""


def token_bytes_for(vocab_size: int) -> int:
    """Return the bytes that one token of this vocabulary takes: 2 up to 65,536 entries, else 4."""
    return 2 if vocab_size <= 1 << 16 else 4


def encode_record(
    tokens: np.ndarray, loss_mask: np.ndarray | None, document: str, *, token_bytes: int
) -> bytes:
    """Return the record of one document.

    Args:
        tokens: token ids, length >= 1.
        loss_mask: 1 where the token is a target that counts; None when all are.
        document: the id; at most 65,535 bytes of UTF-8, longer ones keep their end.
        token_bytes: 2 or 4.

    Raises:
        ValueError: a token does not fit `token_bytes`.
    """
    dtype = TOKEN_DTYPES[token_bytes]
    tokens = np.asarray(tokens)
    if tokens.size and (tokens.min() < 0 or tokens.max() > np.iinfo(dtype).max):
        raise ValueError(
            f"{document}: token ids must be 0..{np.iinfo(dtype).max}, got "
            f"{tokens.min()}..{tokens.max()}; the tokenizer's vocab_size is smaller than its ids"
        )
    name = document.encode()[-0xFFFF:]
    all_targets = loss_mask is None or bool(np.all(loss_mask))
    flag = 0 if all_targets else MASK_FLAG
    parts = [HEADER.pack(FORMAT_VERSION, token_bytes | flag, len(name), len(tokens))]
    parts.append(tokens.astype(dtype).tobytes())
    if loss_mask is not None and not all_targets:
        parts.append(np.asarray(loss_mask, dtype=np.uint8).tobytes())
    parts.append(name)
    return b"".join(parts)


def decode_record(record: bytes) -> Example:
    """Return the document that a record holds.

    Raises:
        RecordError: the record is of another version, or its length is wrong.
    """
    if len(record) < HEADER_BYTES:
        raise RecordError(f"expected a record of >= {HEADER_BYTES} bytes, got {len(record)}")
    version, width_and_flag, name_bytes, num_tokens = HEADER.unpack_from(record)
    width = width_and_flag & ~MASK_FLAG
    if version != FORMAT_VERSION or width not in TOKEN_DTYPES:
        raise RecordError(
            f"expected a record of version {FORMAT_VERSION}, got version {version}, "
            f"{width} bytes per token; prepare the data again"
        )
    has_mask = bool(width_and_flag & MASK_FLAG)
    mask_start = HEADER_BYTES + num_tokens * width
    name_start = mask_start + (num_tokens if has_mask else 0)
    if len(record) != name_start + name_bytes:
        raise RecordError(f"expected {name_start + name_bytes} bytes, got {len(record)}: damaged")
    tokens = np.frombuffer(record, TOKEN_DTYPES[width], num_tokens, HEADER_BYTES)
    if has_mask:
        mask = np.frombuffer(record, np.int8, num_tokens, mask_start).copy()
    else:
        mask = np.ones(num_tokens, np.int8)
    document = record[name_start:].decode("utf-8", "replace")
    return Example(tokens=tokens.astype(np.int32), loss_mask=mask, document=document)


def num_tokens(record: bytes) -> int:
    """Return how many tokens the record's header says it has; -1 without a whole header."""
    return HEADER.unpack_from(record)[3] if len(record) >= HEADER_BYTES else -1


def record_has_mask(record: bytes) -> bool:
    """Return whether the record carries a loss mask; without one every token counts."""
    return bool(record[1] & MASK_FLAG)


def mask_offset(record: bytes) -> int:
    """Return where the loss mask begins in a record that has one."""
    _, width_and_flag, _, num_tokens = HEADER.unpack_from(record)
    return HEADER_BYTES + num_tokens * (width_and_flag & ~MASK_FLAG)
