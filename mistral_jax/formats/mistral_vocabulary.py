"""Mistral's tokenizer files (SentencePiece v1-v7, tekken) as `tokenizers` objects and jinja.

For exports only: transformers and llama.cpp then read what mistral-common runs. Our own encoding
and chat rendering never take this road. Tests hold both to mistral-common's own ids.
"""

import base64
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import sentencepiece_model_pb2

from mistral_jax.formats import vocabulary
from mistral_jax.formats.fields import read_json_object

_USER_TURN = "'[INST]' + {system}message['content'] + '[/INST]'"
_LOOP = (
    "{{{{ bos_token }}}}{prologue}{{% for message in messages %}}"
    "{{% if message['role'] == 'user' %}}{{{{ {user} }}}}"
    "{{% elif message['role'] == 'assistant' %}}{{{{ {assistant} + eos_token }}}}"
    "{{% elif message['role'] == 'system' %}}{system}"
    "{{% else %}}{{{{ raise_exception('unsupported role ' + message['role']) }}}}{{% endif %}}"
    "{{% endfor %}}"
)
_COLLECT = (
    "{% set ns = namespace(system='', last=-1, seen=false) %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = ns.system + message['content'] "
    "+ '\n\n' %}{% elif message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
)


def chat_template(version: str) -> str | None:
    """Return the jinja source of a version's plain chats (no tools), None for later versions.

    v1 spells its markers as text and puts the system prompt before the first user turn; v2 and v3
    put it before the last one; v7 has markers of its own for it.
    """
    if version == "v1":
        first = "(ns.system if not ns.seen else '')"
        return _LOOP.format(
            prologue=_COLLECT,
            user=f"'[INST] ' + {first} + message['content'] + ' [/INST]'",
            assistant="' ' + message['content']",
            system="",
        ).replace(" + ' [/INST]' }}", " + ' [/INST]' }}{% set ns.seen = true %}")
    if version in ("v2", "v3"):
        last = "(ns.system if loop.index0 == ns.last else '') + "
        return _LOOP.format(
            prologue=_COLLECT,
            user=_USER_TURN.format(system=last),
            assistant="message['content'].rstrip(' ')",
            system="",
        )
    if version == "v7":
        return _LOOP.format(
            prologue="",
            user=_USER_TURN.format(system=""),
            assistant="message['content'].rstrip(' ')",
            system="{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}",
        )
    return None


def build(path: Path, *, is_tekken: bool) -> tokenizers.Tokenizer:
    """Build the `tokenizers` twin of a tokenizer file that mistral-common reads."""
    return _build_tekken(path) if is_tekken else _build_sentencepiece(path)


def _build_sentencepiece(path: Path) -> tokenizers.Tokenizer:
    raw = path.read_bytes()
    model: Any = sentencepiece_model_pb2
    proto = model.ModelProto.FromString(raw)
    if proto.trainer_spec.model_type != 2 or proto.normalizer_spec.precompiled_charsmap:
        raise ValueError(
            f"{path}: expected a SentencePiece BPE model without character rewriting, as Mistral's "
            f"are; this one cannot be exported (sentencepiece {sentencepiece.__version__})"
        )
    listed = vocabulary.Vocabulary(
        [piece.piece for piece in proto.pieces], [piece.type for piece in proto.pieces]
    )
    scores = [piece.score for piece in proto.pieces]
    prefix = bool(proto.normalizer_spec.add_dummy_prefix)
    return vocabulary.build_sentencepiece(listed, scores, add_space_prefix=prefix)


def _build_tekken(path: Path) -> tokenizers.Tokenizer:
    content = read_json_object(path)
    tekken = Tekkenizer.from_file(path)
    num_special = tekken.num_special_tokens
    special = [tekken.id_to_piece(number) for number in range(num_special)]
    ranked = sorted(content["vocab"], key=lambda item: item["rank"])
    tokens = [base64.b64decode(item["token_bytes"]) for item in ranked]
    tokens = tokens[: tekken.n_words - num_special]
    kinds = [vocabulary.CONTROL] * num_special + [vocabulary.NORMAL] * len(tokens)
    listed = vocabulary.Vocabulary(
        special + [vocabulary.byte_letters(token) for token in tokens], kinds
    )
    return vocabulary.build_byte_bpe(listed, vocabulary.merges_from_ranks(tokens), "tekken")
