"""Sizes and times as the report spells them."""

from mistral_jax.report.charts import Number


def format_bytes(size_bytes: Number) -> str:
    """Return a size with a binary unit, such as 1.9 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.2f} GiB"


def format_seconds(seconds: Number) -> str:
    """Return a time as a person would say it, such as 4 min 05 s."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
