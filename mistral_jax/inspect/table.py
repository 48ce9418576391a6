"""What `inspect` says as a table of two columns, and how it spells sizes and config nodes."""

import re
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Return text with control characters spelled out: a terminal would obey them."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def two_columns(title: str, rows: dict[str, str]) -> Table:
    """Return names and values under a title."""
    table = Table(title=Text(visible(title)), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(visible(name)), Text(visible(value)))
    return table


def one_line(node: dict[str, Any]) -> str:
    """Return a config node on one line, without what is null."""
    shown = []
    for key, value in node.items():
        if isinstance(value, dict):
            shown.append(f"{key} ({one_line(value)})")
        elif value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            shown.append(f"{key} {text}")
    return ", ".join(shown)


def files_size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def format_size(size_bytes: int) -> str:
    """Return a size with a binary unit."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"
