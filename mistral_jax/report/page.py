"""One page from a template of this folder: all texts escaped, styles inside, written whole or not.

shell.html is the frame that every page extends; it needs `title`, `page_name`, `subtitle`, `notes`,
`tiles`, `commands`, `facts_name`, `facts`, `versions`, `config_name`, `config` and `made_from`.
"""

import functools
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

REPORT_FILE = "report.html"
_FOLDER = Path(__file__).parent


def render(template: str, path: Path, values: dict[str, Any]) -> Path:
    """Write a page and return its path; an older page stays until the new one is whole."""
    css = Markup((_FOLDER / "page.css").read_text(encoding="utf-8"))
    text = _environment().get_template(template).render(css=css, **values)
    temporary = path.with_suffix(".html.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
