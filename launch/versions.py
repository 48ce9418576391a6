"""Prints in one line what has to be the same on every host: `python -m launch.versions ARCHIVE`.

ARCHIVE, below the home, is the one that brought the project. Standard library only.
"""

import importlib.metadata
import platform
import sys
import zlib
from pathlib import Path

PREFIX = "versions: "
NAMES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")


def line(archive: Path) -> str:
    """Return the versions of Python and of the packages, and a checksum of the archive."""
    installed = importlib.metadata.distributions()
    found = {each.metadata["Name"].lower(): each.version for each in installed}
    packages = [f"{name} {found[name]}" for name in NAMES if name in found]
    project = f"project {zlib.crc32(archive.read_bytes()):08x}"
    return PREFIX + ", ".join([f"python {platform.python_version()}", *packages, project])


if __name__ == "__main__":
    print(line(Path.home() / sys.argv[1]))
