"""write_report: a run directory's JSON files in, one report.html out.

Each section stands only where its file does. All texts are escaped by the template; pictures come
from pictures.py, all other sections from sections.py.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from mistral_jax.report import files as run_files
from mistral_jax.report import page
from mistral_jax.report import sections

REPORT_FILE = page.REPORT_FILE


def write_report(
    run_directory: str | os.PathLike,
    *,
    notes: Sequence[str] = (),
    next_commands: Sequence[tuple[str, str]] | None = None,
) -> Path:
    """Write report.html from what the run directory holds, and return its path.

    Args:
        run_directory: the run; any of its files may be missing.
        notes: sentences for the top of the page.
        next_commands: (what it does, command); by default some that fit any run.

    Raises:
        ValueError: the folder is missing, or a file in it is damaged; the message names the file.
    """
    folder = Path(run_directory)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such run directory; give the folder that train printed")
    found = run_files.read_files(folder)
    values = {
        "page_name": "run report",
        "facts_name": "Run",
        "config_name": "config.yaml, as the run resolved it",
        "notes": list(notes),
        "commands": sections.commands(folder) if next_commands is None else list(next_commands),
        **sections.build(found),
    }
    return page.render("page.html", folder / REPORT_FILE, values)
