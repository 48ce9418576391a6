"""The tiny decoder of the tests: two layers, four heads on two, width 32."""

from typing import Any

from mistral_jax.config import model as model_config


def decoder(vocab_size: int, **changes: Any) -> model_config.DecoderConfig:
    """Return the shape with other fields where asked for."""
    fields: dict[str, Any] = {
        "num_layers": 2,
        "width": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_width": 8,
        "vocab_size": vocab_size,
        "ffn": model_config.DenseFfn(width=48),
        "rope": model_config.DefaultRope(theta=1e4),
        "max_positions": 64,
    }
    return model_config.DecoderConfig(**(fields | changes))
