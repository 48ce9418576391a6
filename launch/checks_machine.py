"""Pre-flight of the machine that trains: Python, packages against locks, driver, devices, memory.

Devices are counted by the driver's own tools and the kernel's files, so that jax is not needed.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import sys
from pathlib import Path

from launch import checks
from launch import commands
from launch import many_hosts
from launch import target as target_lib
from launch.checks import Answer
from launch.checks import Check
from launch.checks import Context

MIN_PYTHON, MAX_PYTHON = (3, 12), (3, 13)
CUDA13_DRIVER, CUDA12_DRIVER = 580, 525  # NVIDIA's own minimum for each; also in host.sh
# Not of the same version as in the lock: results or compiled programs would differ.
FAMILY = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu",
    "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt",
)  # fmt: skip
PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
MIN_CORES = 2
HOST_SPARE_BYTES = 2 << 30  # for Python, jax and the file cache's dirty pages
BUSY_MIB = 1024  # another program's GPU memory; a desktop takes less
DEVICES = Path("/dev")


def installed_sets() -> list[str]:
    """Return the sets of requirements/ that this environment was made from."""
    mark = Path(sys.prefix) / ".installed"
    try:
        lines = mark.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return list(dict.fromkeys(line.split()[0] for line in lines if line.split())) or ["core"]


def pinned(sets: list[str]) -> dict[str, str]:
    """Return the versions that these locks pin, a later lock before an earlier one."""
    found: dict[str, str] = {}
    for name in sets:
        path = commands.ROOT / "requirements" / f"{name}.lock"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            found |= {package.lower(): version for package, version in PINNED.findall(text)}
    return found


def _python(_: Context) -> Answer:
    found, wanted = sys.version_info[:2], ".".join(map(str, MIN_PYTHON))
    if MIN_PYTHON <= found <= MAX_PYTHON:
        return checks.ok(f"{platform.python_version()} at {sys.executable}")
    return checks.failed(
        f"Python {platform.python_version()}, but the locks are for 3.12 and 3.13",
        f"uv python install {wanted} && rm -rf .venv && ./run doctor",
    )


def _packages(_: Context) -> Answer:
    sets = installed_sets()
    wanted = pinned(sets)
    if not wanted:
        return checks.skipped("there are no locks beside the package (requirements/)")
    family, others = [], []
    for name, version in wanted.items():
        found = _version(name)
        if found is None and name not in FAMILY:
            continue  # a marker of the lock may leave it out here
        if found != version:
            text = f"{name} {found or 'missing'} (lock: {version})"
            (family if name in FAMILY else others).append(text)
    extra = " ".join(name for name in sets if name not in ("core", "test", "demo"))
    fix = f"rm -f {sys.prefix}/.installed && MISTRAL_JAX_LOCKS='{extra}' ./run doctor"
    if family:
        return checks.failed(f"not as {', '.join(sets)} lock them: {', '.join(family[:4])}", fix)
    if others:
        return checks.warning(f"not as the locks have them: {', '.join(others[:4])}", fix)
    shown = ", ".join(f"{n} {wanted[n]}" for n in ("jax", "jaxlib", "flax") if n in wanted)
    return checks.ok(f"{shown}; all as in {', '.join(sets)}")


def _accelerator(context: Context) -> Answer:
    platform_name = context.target.platform
    if platform_name == "cpu":
        return checks.skipped("no accelerator")
    if platform_name == "tpu":
        version = _version("libtpu")
        if version is None:
            return checks.failed("libtpu is missing", "MISTRAL_JAX_LOCKS=tpu ./run doctor")
        return checks.ok(f"libtpu {version}")
    if isinstance(context.gpus, str):
        return checks.failed(
            f"{context.gpus}, so the driver is not known",
            "sudo apt-get install -y nvidia-driver-580-server && sudo reboot",
        )
    driver = context.gpus[0].driver
    lock = lock_of_driver(driver)
    if lock is None:
        return checks.failed(
            f"NVIDIA driver {driver} is older than {CUDA12_DRIVER}, which CUDA 12 wants",
            "sudo apt-get install -y nvidia-driver-580-server && sudo reboot",
        )
    found = [n for n in ("cuda13", "cuda12") if _version(f"jax-{n}-plugin") is not None]
    fix = f"rm -rf .venv && MISTRAL_JAX_LOCKS={lock} ./run doctor"
    if not found:
        return checks.failed(f"driver {driver} takes {lock}, and no jax of CUDA is here", fix)
    if "cuda13" in found and lock == "cuda12":
        return checks.failed(
            f"driver {driver} takes {lock}: CUDA 13 wants {CUDA13_DRIVER} or newer, and "
            "jax-cuda13-plugin is here",
            fix,
        )
    if len(found) > 1:
        return checks.failed("jax of CUDA 12 and of CUDA 13 are here, and shadow each other", fix)
    return checks.ok(f"driver {driver} takes {found[0]}, which is here")


def lock_of_driver(driver: str) -> str | None:
    """Return the newest lock that a driver takes; None where it takes none.

    Raises:
        ValueError: the version is none.
    """
    major = driver.partition(".")[0]
    if not major.isdigit():
        raise ValueError(f"nvidia-smi tells no driver version: {driver[:40]!r}")
    if int(major) >= CUDA13_DRIVER:
        return "cuda13"
    return "cuda12" if int(major) >= CUDA12_DRIVER else None


def _kernels(context: Context) -> Answer:
    plan, gpus = context.plan, context.gpus if context.target.platform == "gpu" else []
    if plan is None:
        return checks.skipped("there is no plan")
    if not gpus or isinstance(gpus, str):
        return checks.ok(f"attention {plan.attention}, experts {plan.experts or 'none'}")
    capability, name = min(gpu.capability for gpu in gpus), gpus[0].name
    mosaic = context.environment.get("JAX_PALLAS_USE_MOSAIC_GPU", "0").lower()
    if mosaic in ("1", "true") and capability < 9:
        return checks.failed(
            f"JAX_PALLAS_USE_MOSAIC_GPU is set, but {name} (compute capability {capability}) has "
            "no Mosaic kernels",
            "unset JAX_PALLAS_USE_MOSAIC_GPU",
        )
    if plan.attention == "cudnn" and capability < 8:
        return checks.failed(
            f"cuDNN's attention wants compute capability 8.0, {name} has {capability}",
            f"sed 's/^name:.*/name: here\\nattention: banded/' launch/targets/"
            f"{context.target.name}.yaml >here.yaml && {context.command(target='here.yaml')}",
        )
    if plan.experts == "grouped":
        answer = _grouped(name, capability)
        if answer is not None:
            return answer
    kind = "Mosaic" if capability >= 9 else "no Mosaic"
    return checks.ok(f"attention {plan.attention}, experts {plan.experts or 'none'}; {kind}")


def _grouped(name: str, capability: float) -> Answer | None:
    """Return what stands against tokamax's kernels for experts; see nn/kernels/experts_grouped."""
    fix = f"{sys.executable} -m pip install tokamax triton jax-triton"
    if importlib.util.find_spec("tokamax") is None:
        return checks.warning("experts run as 'blocks', slow on a GPU: tokamax is missing", fix)
    missing = [each for each in ("triton", "jax_triton") if importlib.util.find_spec(each) is None]
    if missing and capability < 9:
        return checks.failed(
            f"{name} has no Mosaic kernels, and {' and '.join(missing)} for Triton's are missing",
            fix,
        )
    return None


def _devices(context: Context) -> Answer:
    target = context.target
    if target.platform == "cpu":
        return checks.ok("this machine's CPU")
    if target.platform == "tpu":
        found = len([*DEVICES.glob("accel[0-9]*")] or [*DEVICES.glob("vfio/[0-9]*")])
        fix = "ls /dev/accel* /dev/vfio && sudo lsof -w /dev/accel* /dev/vfio/*"
        what = "TPU chips"
    elif isinstance(context.gpus, str):
        return checks.failed(context.gpus, "nvidia-smi")
    else:
        visible = context.environment.get("CUDA_VISIBLE_DEVICES")
        found, what, fix = len(context.gpus), context.gpus[0].name, "nvidia-smi -L"
        if visible is not None:
            named = [each for each in visible.split(",") if each.strip()]
            found, fix = min(found, len(named)), "unset CUDA_VISIBLE_DEVICES"
    if found < target.chips_per_host:
        return checks.failed(
            f"{found} x {what}, but {target.name} has {target.chips_per_host} on each host", fix
        )
    return checks.ok(f"{found} x {what}")


def _device_memory(context: Context) -> Answer:
    target, plan = context.target, context.plan
    if target.platform != "gpu":
        return checks.skipped(
            "jax alone tells a TPU's" if target.platform == "tpu" else "no accelerator"
        )
    if isinstance(context.gpus, str):
        return checks.failed(context.gpus, "nvidia-smi")
    gpus = context.gpus[: target.chips_per_host]
    least = min(gpus, key=lambda gpu: gpu.memory_mib)
    need_mib = 0.0 if plan is None else plan.memory.total / (1 << 20)
    shown = f"{least.memory_mib / 1024:.1f} GiB each, {need_mib / 1024:.1f} GiB planned"
    if least.memory_mib < need_mib:
        return checks.failed(f"{least.name}: {shown}", context.command(verb="plan"))
    busy = [gpu for gpu in gpus if gpu.used_mib > BUSY_MIB]
    if busy and context.is_under_way:
        return checks.ok(checks.UNDER_WAY)
    if busy:
        worst = max(gpu.used_mib for gpu in busy)
        text = f"other programs hold {worst / 1024:.1f} GiB of a GPU; {shown}"
        fix = "nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv"
        fits = all(gpu.memory_mib - gpu.used_mib >= need_mib for gpu in gpus)
        return checks.warning(text, fix) if fits else checks.failed(text, fix)
    if target.hbm_gib is not None and least.memory_mib < 0.97 * target.hbm_gib * 1024:
        return checks.warning(
            f"{shown}, but {target.name} counts on {target.hbm_gib:g} GiB; the plan fits still",
            context.command(verb="plan"),
        )
    return checks.ok(shown)


def _host_memory(context: Context) -> Answer:
    plan, total = context.plan, target_lib.memory_limit_bytes()
    if plan is None:
        return checks.skipped("there is no plan")
    is_cpu = context.target.platform == "cpu"
    waits = plan.memory.total if is_cpu else plan.memory.on_host * context.target.chips_per_host
    need = waits + HOST_SPARE_BYTES * (not is_cpu)
    shown = f"{checks.gib(total)}, {checks.gib(need)} needed"
    if total < need:
        return checks.failed(shown, context.command(verb="plan"))
    planned = context.target.host_memory_gib or 0
    if total < 0.9 * planned * checks.GIB:
        return checks.warning(
            f"{shown}; {context.target.name} counts on {planned:g} GiB", "cat /proc/meminfo"
        )
    return checks.ok(shown)


def _cores(context: Context) -> Answer:
    found, planned = target_lib.usable_cores(), context.target.host_cores or MIN_CORES
    if found < MIN_CORES:
        return checks.failed(
            f"{found} core, and reading data beside training wants {MIN_CORES}", "nproc"
        )
    if found < planned // 2:
        return checks.warning(f"{found} cores, {context.target.name} counts on {planned}", "nproc")
    return checks.ok(f"{found} cores")


def _environment(context: Context) -> Answer:
    wanted = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}[context.target.platform]
    given = context.environment.get("JAX_PLATFORMS", "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    allowed = (wanted, "gpu") if wanted == "cuda" else (wanted,)
    if names and not any(name in allowed for name in names):
        return checks.failed(
            f"JAX_PLATFORMS={given} keeps jax from {context.target.name}'s {wanted}",
            "unset JAX_PLATFORMS",
        )
    flags = context.environment.get("XLA_FLAGS", "")
    if "host_platform_device_count" in flags and context.target.num_chips == 1:
        return checks.warning(
            f"XLA_FLAGS splits the CPU into several devices: {flags}", "unset XLA_FLAGS"
        )
    return checks.ok("nothing in the environment stands against the target")


def _port(context: Context) -> Answer:
    launcher = context.target.launcher
    processes = launcher.processes if launcher.kind == "local" else 1
    if context.target.num_hosts == 1:
        detail = "one process" if processes == 1 else "processes of one host take a free port"
        return checks.ok(f"{detail}; no port to reserve")
    port = many_hosts.COORDINATOR_PORT
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            reason = error.strerror or str(error)
            return checks.failed(
                f"port {port}, where the run's hosts meet, is taken here ({reason})",
                f"sudo ss -ltnp sport = :{port}",
            )
    return checks.ok(f"port {port} is free")


def _compiled(context: Context) -> Answer:
    given = context.environment.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(given or "~/.cache/mistral_jax/compiled").expanduser()  # as job.py has it
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return checks.ok(f"{folder} is writable")
    return checks.warning(
        f"{there} is not writable: every restart compiles anew",
        "export JAX_COMPILATION_CACHE_DIR=/tmp/jax_cache",
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


CHECKS = (
    Check("python", _python),
    Check("packages", _packages, "host"),
    Check("accelerator lock", _accelerator, "host"),
    Check("kernels", _kernels, "host"),
    Check("devices", _devices, "host"),
    Check("device memory", _device_memory, "host"),
    Check("host memory", _host_memory, "host"),
    Check("cores", _cores, "host"),
    Check("environment", _environment, "host"),
    Check("coordinator port", _port, "host"),
    Check("compiled programs", _compiled, "host"),
)
