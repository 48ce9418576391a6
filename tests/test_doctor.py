"""doctor.py: real findings about this machine, quickly, and no secret in them."""

import io
import subprocess
import sys
import time

import pytest
from rich.console import Console

from mistral_jax import doctor


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_checks_are_many_quick_and_named_once():
    start = time.monotonic()
    findings = doctor.check(probe_devices=False)
    assert time.monotonic() - start < 3
    assert len(findings) >= 15
    assert len(by_name(findings)) == len(findings)


def test_this_environment_passes_where_the_suite_runs():
    found = by_name(doctor.check(probe_devices=False))
    for name in ("python", "system", "jax", "flax", "pydantic", "uv or pip"):
        assert found[name].ok, found[name]


def test_every_failure_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "MIN_MEMORY_GIB", 10**6)
    monkeypatch.setattr(doctor, "MIN_DISK_GIB", 10**9)
    monkeypatch.setattr(doctor, "MIN_CORES", 10**4)
    monkeypatch.setitem(doctor.CORE_PACKAGES, "numpy", (999,))
    monkeypatch.setitem(doctor.CORE_PACKAGES, "no-such-package-here", (1, 2))
    monkeypatch.setattr(doctor, "MAX_PYTHON", (3, 11))
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = doctor.check(probe_devices=False)
    wrong = {finding.name for finding in findings if not finding.ok}
    assert wrong >= {"memory", "disk", "cpu", "numpy", "no-such-package-here", "python", "git"}
    assert all(finding.fix for finding in findings if not finding.ok)
    assert by_name(findings)["no-such-package-here"].detail == "missing (needs 1.2)"


def test_missing_extra_is_optional_and_names_its_command(monkeypatch):
    monkeypatch.setitem(doctor.EXTRAS, "track", ("no-such-package-here",))
    finding = by_name(doctor.check(probe_devices=False))["extra track"]
    assert finding.ok
    assert finding.fix == "pip install -e '.[track]'"


def test_credentials_are_named_and_never_shown(tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("aws_secret_access_key = hush", encoding="utf-8")
    environment = {
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "hush-id",
        "GOOGLE_APPLICATION_CREDENTIALS": "/hush/path.json",
    }
    findings = doctor.check(probe_devices=False, environment=environment)
    found = by_name(findings)
    assert found["s3 credentials"].detail == "present: AWS_ACCESS_KEY_ID, ~/.aws/credentials"
    assert found["gs credentials"].detail == "present: GOOGLE_APPLICATION_CREDENTIALS"
    assert "hush" not in repr(findings)


def test_tpu_hint_without_libtpu_needs_the_extra():
    environment = {"TPU_ACCELERATOR_TYPE": "v5litepod-16"}
    finding = by_name(doctor.check(probe_devices=False, environment=environment))["tpu"]
    assert (finding.ok, finding.fix) == (False, "pip install -e '.[tpu]'")


def test_devices_are_asked_of_a_child_process():
    finding = doctor.check()[-1]
    assert finding.name == "jax devices"
    assert finding.ok, finding
    assert " x " in finding.detail


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("raise RuntimeError('no driver')", "RuntimeError: no driver"),
        ("import time; time.sleep(9)", "no answer"),
    ],
)
def test_broken_or_hanging_driver_is_a_finding(monkeypatch, program, error):
    monkeypatch.setattr(doctor, "PROBE", program)
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.5)
    finding = doctor.check()[-1]
    assert not finding.ok
    assert error in finding.detail
    assert finding.fix


def test_table_escapes_markup_and_counts_failures():
    findings = [doctor.Finding("a", True, "[bold]x"), doctor.Finding("b", False, "y", "do z")]
    console = Console(file=io.StringIO(), width=120)
    console.print(doctor.doctor_table(findings))
    shown = console.file.getvalue()
    assert "1 of 2 need work" in shown
    assert "[bold]x" in shown
    assert "do z" in shown


@pytest.mark.parametrize(
    ("version", "numbers"), [("0.12.0.1", (0, 12, 0, 1)), ("2.1rc1", (2, 1)), ("1.0+cpu", (1, 0))]
)
def test_versions_compare_by_their_numbers(version, numbers):
    assert doctor._numbers(version) == numbers


def test_doctor_imports_no_jax():
    code = (
        "import sys; from mistral_jax import doctor; doctor.check(probe_devices=False);"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
