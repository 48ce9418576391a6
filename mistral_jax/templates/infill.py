"""Text with a gap: the model reads what stands before and behind it, and learns what is between.

The layout is Mistral's (Codestral): begin token, [SUFFIX], the text behind the gap, [PREFIX], the
text before it; then comes the answer. Other models' fill-in-the-middle layouts are refused.
"""

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.fim.request import FIMRequest

from mistral_jax.templates.base import Rendered
from mistral_jax.templates.base import TemplateError
from mistral_jax.tokenizers import MistralCommonTokenizer
from mistral_jax.tokenizers import Tokenizer

SUFFIX, PREFIX = "[SUFFIX]", "[PREFIX]"
SMILE = "☺"  # mistral-common encodes a suffix behind it, so its tokens are those after a symbol


def render_infill(prefix: str, suffix: str, middle: str, tokenizer: Tokenizer) -> Rendered:
    """Return a text with its gap as tokens; the mask covers the middle and the end token.

    Raises:
        TemplateError: a tokenizer without the tokens for it.
        tokenizers.EncodeError: a text that the tokenizer gives up on.
    """
    prompt = infill_prompt(prefix, suffix, tokenizer)
    _, learnt = tokenizer.encode_parts(prefix, middle, is_start=False)
    learnt = [*learnt, tokenizer.eos_id]
    return Rendered(prompt + learnt, [False] * len(prompt) + [True] * len(learnt))


def infill_prompt(prefix: str, suffix: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens after which the model writes what stands between the two texts.

    Raises:
        TemplateError: a tokenizer without the tokens for it.
        tokenizers.EncodeError: a text that the tokenizer gives up on.
    """
    special = tokenizer.special_tokens
    if SUFFIX not in special or PREFIX not in special:
        raise TemplateError(
            f"tokenizer {tokenizer.name} has no {SUFFIX} and {PREFIX} tokens, so it cannot fill "
            f"in the middle; Mistral's tokenizers from v3 on have them"
        )
    if isinstance(tokenizer, MistralCommonTokenizer):
        tokenizer.encode(prefix + suffix)  # what it gives up on is said before
        try:
            return tokenizer.mistral.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens
        except MistralCommonException as error:
            raise TemplateError(f"tokenizer {tokenizer.name}: {error}") from error
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    behind = _encode_suffix(suffix, tokenizer) if suffix else []
    before = tokenizer.encode_after_control(prefix) if prefix else []
    return [*bos, special[SUFFIX], *behind, special[PREFIX], *before]


def _encode_suffix(suffix: str, tokenizer: Tokenizer) -> list[int]:
    mark, whole = tokenizer.encode(SMILE), tokenizer.encode(SMILE + suffix)
    is_whole = whole[: len(mark)] == mark
    return whole[len(mark) :] if is_whole else tokenizer.encode_continuation(suffix)
