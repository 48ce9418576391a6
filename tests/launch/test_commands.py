"""launch/commands.py: what is shown is what runs, and no hostile string reaches a shell."""

import json
import os
import shlex
import stat
import subprocess
import sys

import pytest

from launch import commands
from launch.commands import Command
from launch.commands import CommandFailed
from launch.commands import WriteFile
from tests.launch import hostile


def allowed(check, text):
    try:
        return check(text) == text
    except ValueError as error:
        assert str(error).count("\n") == 0
        return False


def test_the_list_is_long_and_would_do_harm():
    assert len(hostile.STRINGS) >= 500
    assert sum(hostile.MARKER in text for text in hostile.STRINGS) >= 300


def test_hostile_strings_would_make_the_marker_where_a_shell_took_them(tmp_path):
    done = []
    for text in hostile.STRINGS[:60]:  # the proof that the list bites, not a full run
        if "\0" in text:
            continue
        subprocess.run(["/bin/sh", "-c", f"true {text}"], cwd=tmp_path, capture_output=True)
        done.append((tmp_path / hostile.MARKER).exists())
        (tmp_path / hostile.MARKER).unlink(missing_ok=True)
    assert sum(done) > 10


@pytest.mark.parametrize("check", [commands.check_host, commands.check_name])
def test_hosts_and_names_are_letters_digits_and_little_else(check):
    passed = [text for text in hostile.STRINGS if allowed(check, text)]
    assert passed and all(shlex.quote(text) == text for text in passed)  # nothing to quote
    assert not any(text.startswith("-") or "/" in text or "@" in text for text in passed)
    assert not any(hostile.MARKER in text for text in passed)


@pytest.mark.parametrize(
    "host", ["gpu1", "gpu-1.example.com", "10.0.0.7", "2001:db8::7", "ec2_host", "h"]
)
def test_hosts_are_taken(host):
    assert commands.check_host(host) == host


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a'b", 'a"b', "", "a b", "u@h", "h:22x", "é"])
def test_a_wrong_host_is_told(host):
    with pytest.raises(ValueError, match=r"correct launcher\.host"):
        commands.check_host(host)


def test_paths_and_overrides_reach_the_far_program_as_they_are_or_are_refused(tmp_path):
    """A real shell takes the remote string; the program there gets the very words."""
    words = [text for text in hostile.STRINGS if allowed(commands.check_path, text)]
    words += [
        f"data.train={text}"
        for text in hostile.STRINGS
        if allowed(commands.check_override, f"data.train={text}")
    ]
    assert len(words) > 500
    program = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    for start in range(0, len(words), 100):
        batch = words[start : start + 100]
        line = commands.remote([*program, *batch])
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == batch
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["-x", "", "a\nb", "a\0b", "a\x1bb", "\ud800", "a" * 5000])
def test_a_path_that_no_program_should_get_is_refused(text):
    with pytest.raises(ValueError, match="rename it"):
        commands.check_path(text)


def test_show_tells_each_command_and_file_and_runs_nothing(tmp_path):
    path = tmp_path / "x.yaml"
    text = commands.show(
        [
            WriteFile(path, "a: 1\nb: 2\n", "the target"),
            WriteFile(path, "1\n2\n3\n", "the list", shown_lines=1),
            Command(("touch", str(path), "two words"), "touch it", stdin="line\n"),
        ]
    )
    assert f"# the target: file {path}\n    a: 1\n    b: 2\n" in text
    assert "    1\n    ... 2 lines more\n" in text
    assert f"# touch it\ntouch {path} 'two words'\n    line\n" in text
    assert not path.exists()


def test_execute_writes_runs_and_says(tmp_path):
    said = []
    path = tmp_path / "folder" / "key"
    commands.execute(
        [
            WriteFile(path, "secret\n", "the key", is_secret=True),
            Command(("cat", str(path)), "read it"),
            Command(("cat",), "echo", stdin="in"),
        ],
        said.append,
    )
    assert said == ["launch: read it", "secret", "launch: echo", "in"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failure_names_program_code_last_lines_and_remedy_and_ends_the_steps():
    said = []
    failing = Command(
        ("sh", "-c", "echo one; echo disk full >&2; exit 7"),
        "copy",
        fixes=(("disk full", "free it"),),
    )
    after, rescue = Command(("echo", "never"), "x"), Command(("echo", "got"), "fetch", always=True)
    with pytest.raises(CommandFailed, match="copy: sh ended with exit code 7; free it") as caught:
        commands.execute([failing, rescue, after, rescue], said.append)
    assert caught.value.exit_code == 1 and "disk full" in str(caught.value)
    assert "never" not in said and said.count("got") == 1
    with pytest.raises(CommandFailed, match="free it"):
        commands.execute([failing, after, rescue], said.append)
    assert said.count("got") == 1


def test_a_gate_on_the_host_is_a_gate_here_and_a_missing_program_is_told():
    with pytest.raises(CommandFailed) as caught:
        commands.execute([Command(("sh", "-c", "exit 3"), "check")], print)
    assert caught.value.exit_code == 3
    with pytest.raises(CommandFailed, match="no program 'no-such-thing' on PATH; install it"):
        commands.execute([Command(("no-such-thing",), "check")], print)
