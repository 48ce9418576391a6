"""launch/preflight.py and the checks of plan and machine: each fails for its planted fault."""

import io
import json
import re
import shlex
import socket
import subprocess
import sys
import time

import pytest
from rich.console import Console

from launch import checks
from launch import checks_machine
from launch import commands
from launch import preflight
from launch import target as target_lib
from mistral_jax import cli
from tests.launch import fake_host
from tests.launch import hostile
from tests.launch import preflights
from tests.launch.preflights import context
from tests.launch.preflights import fails
from tests.launch.preflights import look
from tests.launch.preflights import passes

SMI = """#!/bin/sh
[ ! -f {base}/broken ] || {{ echo "couldn't communicate with the NVIDIA driver" >&2; exit 9; }}
cat {base}/gpus
"""
A10G = "NVIDIA A10G, 595.42.01, 23028, 3, 8.6\n"
ON_G5 = {"target": "g5_2xlarge", "on_host": True}


@pytest.fixture
def place(tmp_path, monkeypatch):
    preflights.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gpu(place, monkeypatch):
    """Return a function that lets nvidia-smi list GPUs."""

    def write(text):
        (place / "gpus").write_text(text, encoding="utf-8")

    program = place / "bin" / "nvidia-smi"
    fake_host.FakeHost.add_program(program, SMI.format(base=place))
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    write(A10G)
    return write


def versions(monkeypatch, **found):
    real = checks_machine._version
    named = {name.replace("_", "-"): version for name, version in found.items()}
    monkeypatch.setattr(
        checks_machine, "_version", lambda name: named[name] if name in named else real(name)
    )


def test_there_are_25_checks_and_more_each_named_once():
    names = [check.name for listed in preflight.TOPICS.values() for check in listed]
    assert len(names) == len(set(names)) >= 25


def test_a_sound_run_passes_them_all_on_this_machine(place, capsys):
    findings = preflight.check(context())
    assert [f for f in findings if f.status == "failed"] == []
    assert {f.detail for f in findings if f.status == "skipped"} == {
        "no accelerator", "no samples are taken", "no bucket is named",
        "the run starts on this machine", "the config is read where it is",
    }  # fmt: skip
    assert all(f.fix for f in findings if f.status == "warning")
    assert preflight.run(context()) == 0
    assert "0 failed" not in capsys.readouterr().out


def test_the_verb_prints_json_loads_no_jax_and_answers_in_three_seconds(place):
    watch = (
        "import sys, time; from mistral_jax import cli; start = time.process_time();"
        "code = cli.main(sys.argv[1:]); spent = time.process_time() - start;"
        "assert not {'jax', 'flax', 'orbax', 'grain', 'boto3'} & set(sys.modules);"
        "assert spent < 3, spent; sys.exit(code)"
    )
    words = [sys.executable, "-c", watch, "preflight", "run.yaml", "data.train=nowhere", "--json"]
    environment = {"PYTHONPATH": str(commands.ROOT), "PATH": "/usr/bin:/bin", "HOME": str(place)}
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - began < 30  # of a busy machine; processor time is measured above
    told = json.loads(done.stdout)
    assert set(told) == {"config", "target", "science_hash", "where", "ok", "counts", "checks"}
    assert told["ok"] is False and told["where"] == "host" and len(told["science_hash"]) == 64
    assert sum(told["counts"].values()) == len(told["checks"])
    keys = {"name", "topic", "status", "detail", "fix", "where"}
    assert all(set(each) == keys for each in told["checks"])
    by_name = {each["name"]: each for each in told["checks"]}
    assert by_name["files of the config"]["status"] == "failed"
    assert by_name["files of the config"]["fix"].startswith("./run preflight run.yaml")


def test_a_config_or_target_with_a_mistake_is_bad_input(place, capsys):
    assert cli.main(["preflight", "run.yaml", "optimizer.max_stepps=3"]) == 2
    assert cli.main(["preflight", "run.yaml", "--target", "g5_2xlrge"]) == 2
    assert cli.main(["preflight", "no.yaml"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_the_table_begins_with_what_failed_and_its_fix(place):
    seen = context("data.train=nowhere", "data.eval_fraction=0.0")
    out = io.StringIO()
    findings = [
        preflight.Finding(each.name, "x", **vars(each.run(seen)))
        for each in preflight.TOPICS["inputs"]
    ]
    Console(file=out, width=400).print(preflight.to_table(seen, findings))
    lines = out.getvalue().splitlines()
    assert lines[1].startswith("failed  files of the config: not here: data.train 'nowhere'")
    assert lines[2].strip().startswith("fix: ./run preflight run.yaml --target local_cpu")
    assert next(line for line in lines if "warning" in line[:8]).startswith("warning  held-out")


def test_what_only_the_host_can_tell_is_left_to_it_and_the_other_way_round(place):
    findings = {f.name: f for f in preflight.check(context(target="g5_2xlarge", on_host=True))}
    there = [f.name for f in findings.values() if f.detail == "on the machine that launches"]
    assert {"programs", "ssh", "ssh key", "launch values", "source"} <= set(there)
    here = context(target="g5_2xlarge")
    skipped = [
        each.name for each in preflight.TOPICS["machine"] if each.run(here).status == "skipped"
    ]
    assert len(skipped) == len(preflight.TOPICS["machine"]) - 1
    assert look("devices", here).detail == "on the host"


def test_batch_lengths_and_mesh_that_do_not_divide_are_mended_by_their_fix(place):
    cut = context("data.global_batch_sequences=10", target="v5e_16")
    answer = fails("batch, lengths, mesh", cut)
    assert "splits the batch over 16 devices" in answer.detail
    assert "data.global_batch_sequences=16" in answer.fix
    passes("batch, lengths, mesh", context("data.global_batch_sequences=16", target="v5e_16"))
    long = fails("batch, lengths, mesh", context("data.sequence_length=65"))
    assert long.fix.endswith("data.sequence_length=64")
    passes("batch, lengths, mesh", context())


def test_nf4_on_inputs_that_are_no_multiple_of_a_block_names_the_layer(place):
    answer = fails("batch, lengths, mesh", context("precision.frozen=nf4"))
    assert "q_proj" in answer.detail and "64" in answer.detail
    assert answer.fix.endswith("precision.frozen=int8")


SEVEN_B = (str(commands.ROOT / "configs" / "mistral_7b" / "lora_r64.yaml"), "g5_2xlarge")


NF4 = "precision.frozen=nf4"


def seven_b(*overrides):
    return preflight.context_of(*SEVEN_B, ("model.weights=base", *overrides))


def test_a_base_model_that_does_not_fit_comes_with_the_arithmetic_and_the_remedy(place):
    full = seven_b("adapter.kind=none")
    answer = fails("base model fits", full)
    assert "7,248,023,552 parameters x 4 bytes" in answer.detail and "has 22.4 GiB" in answer.detail
    assert "adapter.kind=lora" in answer.fix
    assert "adapter.kind=lora" in fails("memory of a step", full).fix
    wide = seven_b("precision.frozen=checkpoint", "precision.compute=float32")
    assert (
        "7,248,023,552 parameters x 4 bytes over 1 device(s)"
        in fails("base model fits", wide).detail
    )
    quantised = seven_b(NF4)
    assert (
        "parameters x nf4 over 1 device(s) are 4.4 GiB"
        in passes("base model fits", quantised).detail
    )
    assert "predicted, not measured" in passes("memory of a step", quantised).detail


def test_an_a10g_gets_its_own_kernels_and_no_mosaic(place, gpu, monkeypatch):
    here = preflight.context_of(*SEVEN_B, ("model.weights=base", NF4), on_host=True)
    assert "Mosaic kernels left out" in passes("kernel set", here).detail
    assert passes("kernels", here).detail == "attention cudnn, experts none; no Mosaic"
    monkeypatch.setenv("JAX_PALLAS_USE_MOSAIC_GPU", "1")
    assert fails("kernels", here).fix == "unset JAX_PALLAS_USE_MOSAIC_GPU"
    monkeypatch.delenv("JAX_PALLAS_USE_MOSAIC_GPU")
    gpu("Tesla T4, 595.42.01, 15360, 3, 7.5\n")
    old = preflight.context_of(*SEVEN_B, ("model.weights=base", NF4), on_host=True)
    assert "wants compute capability 8.0" in fails("kernels", old).detail


def test_the_price_is_held_against_the_ceiling_spot_or_on_demand(place):
    assert "1.212 USD an hour on demand" in passes("price", context(target="g5_2xlarge")).detail
    dear = context("launcher.max_usd_per_hour=1", target="g5_2xlarge")
    assert fails("price", dear).fix.endswith("launcher.max_usd_per_hour=1.212")
    spot = context("launcher.market=spot", target="g5_2xlarge")
    assert "take the instance and its disk away" in fails("price", spot).detail
    kept = context("launcher.market=spot", "output=s3://bucket/x", target="g5_2xlarge")
    assert passes("price", kept).detail.startswith("spot, at most 1.5 USD")


def test_a_run_longer_than_its_machine_lives_is_refused(place):
    short = context("launcher.max_hours=0.000000000001", target="g5_2xlarge")
    assert fails("time", short).fix.endswith("launcher.max_hours=1")
    passes("time", context(target="g5_2xlarge"))
    slurm = context(
        "launcher.time_limit=00:00:00", "data.global_batch_sequences=16", target="slurm_h100"
    )
    assert "launcher.time_limit" in fails("time", slurm, status="warning").detail


def test_several_hosts_want_a_launcher_of_several(place):
    batch = "data.global_batch_sequences=16"
    path = place / "many.yaml"
    content = (target_lib.TARGETS / "slurm_h100.yaml").read_text()
    path.write_text(content.replace("launcher: {kind: slurm}", "launcher: {kind: ssh}"))
    fails("hosts", context(batch, target="many.yaml"))
    passes("hosts", context(batch, target="slurm_h100"))


def test_python_outside_the_locks_versions_fails(place, monkeypatch):
    passes("python", context())
    monkeypatch.setattr(checks_machine, "MAX_PYTHON", (3, 11))
    fails("python", context())


def test_packages_are_held_against_the_locks_in_use(place, monkeypatch):
    assert "all as in" in passes("packages", context()).detail
    versions(monkeypatch, jaxlib="0.10.0")
    assert "jaxlib 0.10.0 (lock: " in fails("packages", context()).detail
    versions(monkeypatch, jaxlib=checks_machine.pinned(["core"])["jaxlib"], pyyaml="1.0")
    assert "pyyaml 1.0" in fails("packages", context(), status="warning").detail


@pytest.mark.parametrize(
    ("driver", "lock"),
    [("580.65", "cuda13"), ("595.1", "cuda13"), ("579.9", "cuda12"), ("525.6", "cuda12"),
     ("470.1", None)],
)  # fmt: skip
def test_the_driver_decides_the_lock(driver, lock):
    assert checks_machine.lock_of_driver(driver) == lock


def test_cuda_13_on_an_older_driver_fails_with_the_other_lock(place, gpu, monkeypatch):
    versions(monkeypatch, jax_cuda13_plugin="0.12", jax_cuda12_plugin=None)
    assert "takes cuda13" in passes("accelerator lock", context(**ON_G5)).detail
    gpu(A10G.replace("595.42.01", "570.86.15"))
    answer = fails("accelerator lock", context(**ON_G5))
    assert "wants 580" in answer.detail and "MISTRAL_JAX_LOCKS=cuda12 ./run" in answer.fix
    versions(monkeypatch, jax_cuda13_plugin=None, jax_cuda12_plugin="0.12")
    passes("accelerator lock", context(**ON_G5))
    gpu(A10G.replace("595.42.01", "470.1"))
    assert "older than 525" in fails("accelerator lock", context(**ON_G5)).detail
    (place / "broken").touch()
    assert "couldn't communicate" in fails("accelerator lock", context(**ON_G5)).detail


def test_a_tpu_wants_its_lock_and_its_chips(place, monkeypatch):
    on_tpu = {"target": "v5p_8", "on_host": True}
    wanted = context("data.global_batch_sequences=16", **on_tpu)
    versions(monkeypatch, libtpu=None)
    assert "MISTRAL_JAX_LOCKS=tpu" in fails("accelerator lock", wanted).fix
    versions(monkeypatch, libtpu="0.0.50")
    passes("accelerator lock", wanted)
    monkeypatch.setattr(checks_machine, "DEVICES", place / "dev")
    assert "0 x TPU chips" in fails("devices", wanted).detail
    for number in range(8):
        (place / "dev").mkdir(exist_ok=True)
        (place / "dev" / f"accel{number}").touch()
    passes("devices", wanted)


def test_too_few_hidden_too_small_and_busy_gpus_fail(place, gpu, monkeypatch):
    four = {"target": "g5_12xlarge", "on_host": True}
    batch = "data.global_batch_sequences=4"
    assert (
        "1 x NVIDIA A10G, but g5_12xlarge has 4" in fails("devices", context(batch, **four)).detail
    )
    gpu(A10G * 4)
    passes("devices", context(batch, **four))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert fails("devices", context(batch, **four)).fix == "unset CUDA_VISIBLE_DEVICES"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    planned = ("model.weights=base", "precision.frozen=nf4", "data.global_batch_sequences=4")

    def memory():
        return preflight.context_of(*SEVEN_B, planned, on_host=True)

    gpu(A10G)
    passes("device memory", memory())
    gpu(A10G.replace("23028, 3", "23028, 2000"))
    fails("device memory", memory(), status="warning")
    gpu(A10G.replace("23028, 3", "23028, 20000"))
    assert "other programs hold 19.5 GiB" in fails("device memory", memory()).detail
    gpu(A10G.replace("23028", "8192"))
    fails("device memory", memory())
    gpu("[Not Supported]\n")
    assert "answered" in fails("device memory", memory()).detail


def test_too_little_host_memory_and_too_few_cores_fail(place, monkeypatch):
    passes("host memory", context())
    passes("cores", context())
    seen = context()
    monkeypatch.setattr(target_lib, "memory_limit_bytes", lambda: 1 << 20)
    monkeypatch.setattr(target_lib, "usable_cores", lambda: 1)
    fails("host memory", seen)
    fails("cores", seen)


def test_an_environment_that_hides_the_devices_fails(place, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert fails("environment", context(**ON_G5)).fix == "unset JAX_PLATFORMS"
    passes("environment", context())
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    fails("environment", context(), status="warning")


def test_a_port_that_is_taken_fails_where_hosts_meet(place, monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        monkeypatch.setattr("launch.many_hosts.COORDINATOR_PORT", other.getsockname()[1])
        seen = context("data.global_batch_sequences=16", target="slurm_h100", on_host=True)
        assert "is taken here" in fails("coordinator port", seen).detail
        passes("coordinator port", context())
    passes("coordinator port", seen)


def test_a_cache_of_programs_that_cannot_be_written_is_told(place, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(place / "cache"))
    passes("compiled programs", context())
    (place / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(place / "file" / "cache"))
    fails("compiled programs", context(), status="warning")


def test_a_model_without_a_readable_shape_fails_and_the_rest_goes_on(place):
    (place / "base" / "config.json").write_text("{}")
    seen = context()
    assert fails("model shape", seen).fix.endswith("model.weights=FOLDER_OR_URI")
    assert look("memory of a step", seen).status == "skipped"
    assert len(preflight.check(seen)) >= 25


def test_the_page_lists_every_check_with_its_place_and_its_commands_parse():
    page = (commands.ROOT / "docs" / "preflight.md").read_text("utf-8")
    rows = re.findall(r"^\| (.+?) \| (any|host|launcher) \| .+ \|$", page, re.MULTILINE)
    listed = [each for topic in preflight.TOPICS.values() for each in topic]
    assert rows == [(each.name, each.place) for each in listed]
    lines = re.findall(r"^\./run (preflight .*)$", page, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        options = cli._parse(line.split())
        config = commands.ROOT / options.config
        preflight.context_of(config, options.target, options.overrides)


def test_a_fix_quotes_what_the_config_names():
    for text in hostile.STRINGS:
        if "\x00" not in text and not text.startswith("~/"):
            assert shlex.split(checks.word(text)) == [text]
    assert checks.word("~/a b") == "~/'a b'"
