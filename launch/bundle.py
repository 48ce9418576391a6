"""Packs the project as git sees it into one archive: `python -m launch.bundle OUT [FILE ...]`.

Tracked files and new ones that git does not ignore, as they are in the working tree, and the
files named beside them. Run from the project's root. No link is followed, none goes in that
leads out.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

EXIT_FAILED, EXIT_INPUT = 1, 2
MAX_FILE_BYTES = 64 << 20  # data of this size goes to hosts through a bucket


def project_files(root: Path) -> list[Path]:
    """Return the project's files relative to its root, sorted.

    Raises:
        ValueError: it is no git checkout, or holds a new file that is no source.
    """
    argv = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if listed.returncode:
        said = listed.stderr.decode(errors="replace").strip()
        raise ValueError(f"{root}: git does not list its files ({said}); launch from a git clone")
    names = {os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}
    paths = [Path(name) for name in sorted(names)]
    found = [path for path in paths if (root / path).is_file() or (root / path).is_symlink()]
    for path in found:
        size = (root / path).lstat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(
                f"{path}: {size >> 20} MiB is too much for a project's file; put it into a bucket, "
                "or name it in .gitignore"
            )
    return found


def pack(archive: Path, root: Path, extra: Sequence[Path] = ()) -> int:
    """Write the archive, whole or not at all; return how many files are in it.

    Raises:
        ValueError: a link leads out of the project.
    """
    paths = [*project_files(root), *extra]
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(archive.name + ".partial")
    with (
        partial.open("wb") as file,
        tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar,
    ):
        for path in dict.fromkeys(paths):
            _check_inside(path, root)
            tar.add(root / path, arcname=str(path), recursive=False, filter=_plain)
    partial.replace(archive)
    return len(set(paths))


def _check_inside(path: Path, root: Path) -> None:
    whole = (root / path).resolve()
    if not whole.is_relative_to(root.resolve()):
        raise ValueError(f"{path}: leads out of the project to {whole}; replace it by a file")


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack the current folder's project."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        print("expected: python -m launch.bundle OUT [FILE ...]", file=sys.stderr)
        return EXIT_INPUT
    archive = Path(words[0])
    try:
        count = pack(archive, Path.cwd(), [Path(word) for word in words[1:]])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    size = archive.stat().st_size / (1 << 20)
    print(f"{archive}: {count} files, {size:.1f} MiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
