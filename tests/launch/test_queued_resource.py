"""launch/queued_resource.py beside a launch: hosts that differ, gcloud that does not answer.

The states of a slice are tested with the launch that asks for them, in test_tpu_pod.py.
"""

import sys
from pathlib import Path

from launch import queued_resource
from launch import versions


def test_hosts_that_disagree_are_told_apart(capsys):
    one = "versions: python 3.12.1, jax 0.12.0, project 00000001"
    two = one.replace("jax 0.12.0", "jax 0.11.2")
    show = [sys.executable, "-c", "import sys; print(*sys.argv[1:], sep='\\n')", "noise"]
    assert queued_resource.main(["agree", "--hosts", "2", "--", *show, one, one]) == 0
    assert queued_resource.main(["agree", "--hosts", "2", "--", *show, one, two]) == 1
    assert "jax 0.12.0" in (said := capsys.readouterr().err) and "jax 0.11.2" in said
    assert queued_resource.main(["agree", "--hosts", "3", "--", *show, one, one]) == 1
    assert "an answer of 3 hosts, got 2" in capsys.readouterr().err


def test_the_line_of_a_host_names_what_has_to_be_equal(tmp_path: Path):
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(b"one")
    line = versions.line(archive)
    assert line.startswith(versions.PREFIX) and "jax 0." in line and "orbax-checkpoint" in line
    archive.write_bytes(b"two")
    assert versions.line(archive) != line


def test_a_wait_outlasts_a_gcloud_that_fails_for_a_while(tmp_path: Path, capsys, monkeypatch):
    """A slice that comes while nobody waits is paid, and nothing runs on it."""
    code = """
import pathlib, sys
told = pathlib.Path(sys.argv[-1])
count = len(told.read_text()) if told.exists() else 0
told.write_text("x" * (count + 1))
if count in (1, 2):
    sys.exit("ERROR: (gcloud) There was a problem refreshing your current auth tokens")
print('{"state": {"state": "%s"}}' % ("ACTIVE" if count > 2 else "ACCEPTED"))
"""
    argv = [sys.executable, "-c", code, "x", "x", "slice", str(tmp_path / "told")]
    assert queued_resource.main(["wait", "--poll-s", "0", "--", *argv]) == 0
    said = capsys.readouterr()
    assert said.out.count("asking again") == 2 and "auth tokens" in said.err
    (tmp_path / "told").unlink()
    monkeypatch.setattr(queued_resource, "PATIENCE_S", -1.0)
    assert queued_resource.main(["wait", "--poll-s", "0", "--", *argv]) == 1


def test_answers_that_cannot_be_used_are_told(capsys):
    def run(code):
        argv = [sys.executable, "-c", code, "x", "x", "slice"]
        return queued_resource.main(["wait", "--poll-s", "0", "--", *argv])

    assert run("print('{}')") == 1
    assert "without a state" in capsys.readouterr().err
    assert run("raise SystemExit('NOT_FOUND: x')") == 1
    assert "gcloud does not know it (any more)" in capsys.readouterr().err
    assert run("raise SystemExit('who are you')") == 1
    assert "who are you" in capsys.readouterr().err
    assert queued_resource.main(["wait", "--", "no-such-gcloud"]) == 1
    assert "no program 'no-such-gcloud' on PATH" in capsys.readouterr().err
