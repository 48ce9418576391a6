"""launch/bundle.py: what git sees goes in, as it is; nothing that leads out."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from launch import bundle


def test_the_archive_holds_what_git_sees_and_nothing_that_leads_out(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    git = ["git", "-C", str(root)]
    for words in (["init", "-q"], ["config", "user.email", "a@b"], ["config", "user.name", "n"]):
        subprocess.run([*git, *words], check=True)
    (root / ".gitignore").write_text("runs/\n")
    (root / "new file.py").write_text("new\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "runs").mkdir()
    (root / "runs" / "config.yaml").write_text("x: 1\n")
    (root / "runs" / "heavy").write_text("x")
    archive = tmp_path / "out" / "project.tar.gz"
    assert bundle.pack(archive, root, [Path("runs/config.yaml")]) == 4
    with tarfile.open(archive) as tar:
        modes = {member.name: member.mode for member in tar}
    assert modes == {
        ".gitignore": 0o644, "new file.py": 0o644, "run": 0o755, "runs/config.yaml": 0o644,
    }  # fmt: skip
    (root / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="link: leads out of the project"):
        bundle.pack(archive, root)
    with pytest.raises(ValueError, match="launch from a git clone"):
        bundle.pack(archive, tmp_path)


def test_the_command_says_what_it_packed_or_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert bundle.main([]) == 2
    assert bundle.main(["x.tar.gz"]) == 1
    assert "launch from a git clone" in capsys.readouterr().err
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / "a").write_text("a")
    assert bundle.main(["x.tar.gz"]) == 0
    assert "x.tar.gz: 1 files" in capsys.readouterr().out
    (tmp_path / "big").touch()
    with (tmp_path / "big").open("wb") as file:
        file.truncate(bundle.MAX_FILE_BYTES + 1)
    assert bundle.main(["x.tar.gz"]) == 1
    assert "put it into a bucket" in capsys.readouterr().err
