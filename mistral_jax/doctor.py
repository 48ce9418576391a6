"""What this machine is and what it lacks for the work, each lack with the command that mends it.

Imports no jax: devices are asked of a child process, so that a broken driver cannot take the
doctor down. Credentials are named, never read out.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

GIB = 1 << 30
MIN_PYTHON, MAX_PYTHON = (3, 12), (3, 13)
MIN_CORES = 2
MIN_MEMORY_GIB = 4
MIN_DISK_GIB = 5
PROBE_TIMEOUT_S = 60.0
TOOL_TIMEOUT_S = 5.0
CORE_PACKAGES = {
    "jax": (0, 11, 2), "flax": (0, 12), "optax": (0, 2, 6), "orbax-checkpoint": (0, 11, 30),
    "grain": (0, 2, 15), "pydantic": (2, 10), "numpy": (2, 1), "safetensors": (0, 5),
    "tokenizers": (0, 21), "mistral-common": (1, 11), "array-record": (0, 8),
}  # fmt: skip
EXTRAS = {
    "data": ("boto3", "gcsfs", "tensorflow-datasets"),
    "serve": ("starlette", "uvicorn"),
    "eval": ("sympy",),
    "track": ("wandb",),
    "kernels": ("tokamax",),
    "test": ("pytest", "hypothesis", "ruff"),
}
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sve", "asimd")
S3_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")  # fmt: skip
GS_VARIABLES = ("GOOGLE_APPLICATION_CREDENTIALS",)
TPU_VARIABLES = ("TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES")
PROBE = (
    "import json, jax; devices = jax.devices(); print(json.dumps({'backend': jax.default_backend(),"
    " 'devices': [d.device_kind for d in devices], 'memory': [(d.memory_stats() or {})"
    ".get('bytes_limit') for d in devices][:1]}))"
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        name: what was looked at.
        ok: False where the main job would fail or be badly slow.
        detail: what was found.
        fix: what to do; empty where nothing has to be done.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


def check(
    *, probe_devices: bool = True, environment: Mapping[str, str] | None = None
) -> list[Finding]:
    """Return what was found, in the order of the table.

    Args:
        probe_devices: ask jax for its devices in a child process (seconds).
        environment: variables to look at; this process' own by default.
    """
    variables = os.environ if environment is None else environment
    findings = [
        _python(), _system(), _cpu(), _memory(), _disk(Path.cwd()), _runs_folder(Path.cwd()),
        *_packages(), *_extras(), _tool("git"), _installer(), _gpu_driver(), _tpu(variables),
        _credentials("s3", S3_VARIABLES, Path("~/.aws/credentials"), variables),
        _credentials("gs", GS_VARIABLES,
                     Path("~/.config/gcloud/application_default_credentials.json"), variables),
    ]  # fmt: skip
    return [*findings, _devices()] if probe_devices else findings


def doctor_table(findings: list[Finding]) -> Table:
    """Return the findings as a table for a terminal."""
    wrong = sum(not finding.ok for finding in findings)
    title = "everything needed is here" if not wrong else f"{wrong} of {len(findings)} need work"
    table = Table(title=f"doctor: {title}", title_justify="left")
    table.add_column("")
    table.add_column("check", style="bold", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("to do", overflow="fold")
    for finding in findings:
        sign = Text("ok", style="green") if finding.ok else Text("no", style="bold red")
        table.add_row(sign, finding.name, Text(finding.detail), Text(finding.fix))
    return table


def run(*, is_json: bool = False) -> int:
    """Print the findings; return 0 if nothing needs work, 1 otherwise."""
    findings = check()
    if is_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        Console().print(doctor_table(findings))
    return 0 if all(finding.ok for finding in findings) else 1


def _python() -> Finding:
    found = sys.version_info[:2]
    ok = MIN_PYTHON <= found <= MAX_PYTHON
    fix = "" if ok else "install Python 3.12 (pyenv install 3.12) and run ./run doctor again"
    return Finding("python", ok, f"{platform.python_version()} at {sys.executable}", fix)


def _system() -> Finding:
    ok = sys.platform == "linux"
    machine = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Finding("system", ok, machine, "" if ok else "use Linux; on Windows, WSL 2")


def _cpu() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        words = set()
    features = [name for name in CPU_FEATURES if name in words]
    ok = (cores or 1) >= MIN_CORES
    fix = "" if ok else f"training on a CPU wants {MIN_CORES} cores or more"
    return Finding("cpu", ok, f"{cores} cores; {', '.join(features) or 'features unknown'}", fix)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    ok = memory.available >= MIN_MEMORY_GIB * GIB
    detail = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f} GiB"
    fix = "" if ok else f"the demo needs {MIN_MEMORY_GIB} GiB: close programs"
    return Finding("memory", ok, detail, fix)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    ok = free >= MIN_DISK_GIB * GIB
    fix = "" if ok else f"free {MIN_DISK_GIB} GiB at {folder}, or set output= to another disk"
    return Finding("disk", ok, f"{free / GIB:.1f} GiB free at {folder}", fix)


def _runs_folder(folder: Path) -> Finding:
    runs = folder / "runs"
    place = runs if runs.exists() else folder
    ok = os.access(place, os.W_OK | os.X_OK)
    fix = "" if ok else f"make {place} writable, or set output= to another folder"
    return Finding("runs folder", ok, f"{runs} is {'writable' if ok else 'not writable'}", fix)


def _packages() -> list[Finding]:
    findings = []
    for name, minimum in CORE_PACKAGES.items():
        wanted = ".".join(map(str, minimum))
        version = _version(name)
        ok = version is not None and _numbers(version) >= minimum
        fix = "" if ok else f"pip install '{name}>={wanted}'"
        findings.append(Finding(name, ok, f"{version or 'missing'} (needs {wanted})", fix))
    return findings


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers: 0.12.0rc1 is (0, 12, 0)."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def _extras() -> list[Finding]:
    findings = []
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if _version(package) is None]
        detail = "installed" if not missing else f"optional; missing {', '.join(missing)}"
        fix = "" if not missing else f"pip install -e '.[{extra}]'"
        findings.append(Finding(f"extra {extra}", True, detail, fix))
    return findings


def _tool(name: str) -> Finding:
    path = shutil.which(name)
    fix = "" if path else f"install {name} (apt-get install {name}): manifests name the revision"
    return Finding(name, path is not None, path or "missing", fix)


def _installer() -> Finding:
    found = [name for name in ("uv", "pip", "pip3") if shutil.which(name)]
    found += ["python -m pip"] if _version("pip") else []
    detail = ", ".join(found) or "neither uv nor pip"
    return Finding("uv or pip", bool(found), detail, "" if found else "python -m ensurepip")


def _gpu_driver() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu driver", True, "no nvidia-smi: no NVIDIA GPU, or no driver")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    output, error = _run(query, TOOL_TIMEOUT_S)
    if error:
        return Finding("gpu driver", False, f"nvidia-smi failed: {error}", "reinstall the driver")
    fix = ""
    if _version("jax-cuda13-plugin") is None and _version("jax-cuda12-plugin") is None:
        fix = "pip install -e '.[cuda]' (driver 580 or newer), or '.[cuda12]'"
    return Finding("gpu driver", not fix, "; ".join(output.strip().splitlines()), fix)


def _tpu(variables: Mapping[str, str]) -> Finding:
    hints = [name for name in TPU_VARIABLES if variables.get(name)]
    hints += [str(path) for path in (Path("/dev/accel0"), Path("/dev/vfio/0")) if path.exists()]
    if not hints:
        return Finding("tpu", True, "no sign of a TPU")
    ok = _version("libtpu") is not None
    return Finding("tpu", ok, ", ".join(hints), "" if ok else "pip install -e '.[tpu]'")


def _credentials(
    scheme: str, names: tuple[str, ...], file: Path, variables: Mapping[str, str]
) -> Finding:
    """Say which credentials are present, by name only."""
    present = [name for name in names if variables.get(name)]
    home = variables.get("HOME")
    path = Path(home, *file.parts[1:]) if home else None
    if path and path.exists():
        present.append(str(file))
    detail = f"present: {', '.join(present)}" if present else f"none found; {scheme}:// may fail"
    return Finding(f"{scheme} credentials", True, detail)


def _devices() -> Finding:
    output, error = _run([sys.executable, "-c", PROBE], PROBE_TIMEOUT_S)
    lines = output.strip().splitlines()
    if error or not lines:
        fix = "run `python -c 'import jax; print(jax.devices())'` and follow its message"
        return Finding("jax devices", False, error or "no answer", fix)
    answer = json.loads(lines[-1])
    kinds = answer["devices"]
    detail = f"{len(kinds)} x {kinds[0]} ({answer['backend']})"
    if answer["memory"] and answer["memory"][0]:
        detail += f", {answer['memory'][0] / GIB:.1f} GiB each"
    return Finding("jax devices", True, detail)


def _run(command: list[str], timeout_s: float) -> tuple[str, str]:
    """Return (output, error); error is empty if the command succeeded."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {timeout_s:g} s"
    except OSError as error:
        return "", str(error)
    if done.returncode:
        tail = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return done.stdout, tail[-1]
    return done.stdout, ""
