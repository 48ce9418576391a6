"""The run's manifest: everything that decides its numbers, written before step 0. No jax.

A curve without a manifest is lost to science. Values of secrets never enter: environment
variables are listed by the few names below, which hold flags only.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from mistral_jax import storage

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "safetensors",
    "mistral-common", "tokenizers", "array-record",
)  # fmt: skip
FLAG_NAMES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_PLATFORMS")


def environment() -> dict[str, Any]:
    """Return versions, flags and the source's revision."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    root = Path(__file__).resolve().parent.parent
    return {
        "versions": versions,
        "system": platform.platform(),
        "cpu": platform.processor() or platform.machine(),
        "flags": {name: os.environ[name] for name in FLAG_NAMES if name in os.environ},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        **_source_revision(root),
    }


def _source_revision(root: Path) -> dict[str, Any]:
    def git(*arguments: str) -> bytes | None:
        command = ["git", "-C", str(root), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if revision is None:
        return {"git_revision": None, "git_difference": None}
    difference = git("diff", "HEAD") or b""
    return {
        "git_revision": revision.decode().strip(),
        "git_difference": hashlib.sha256(difference).hexdigest() if difference else None,
    }


def weights_digest(path: Path | None) -> str | None:
    """Return name and sha256 of each weight file of a checkpoint; None for None."""
    if path is None:
        return None
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    named = [p for p in files if p.suffix in (".safetensors", ".gguf")]
    return " ".join(f"{p.name}:{storage.digest(p)}" for p in named)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a manifest atomically."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    storage.write_bytes(path, text.encode())


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return one `path: old -> new` for each leaf that differs between two JSON trees."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}" if path else str(key)
            found.extend(differences(old.get(key), new.get(key), inner))
        return found
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
