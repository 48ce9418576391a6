"""Pre-flight of the plan: does the run divide, fit, end in time, and cost what it may?"""

import math
import re

from launch import arithmetic
from launch import checks
from launch import launcher as launchers
from launch import memory as memory_lib
from launch import plan as plan_lib
from launch import shapes
from launch import stored
from launch.checks import Answer
from launch.checks import Check
from launch.checks import Context

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ONE_HOST = ("local", "ssh", "ec2", "skypilot")


def _shape(context: Context) -> Answer:
    decoder = context.decoder
    if decoder is None:
        error = checks.sentence(context.decoder_error or ValueError("unknown"))
        return checks.failed(error, context.command("model.weights=FOLDER_OR_URI"))
    count = arithmetic.parameter_count(decoder)
    return checks.ok(f"{count:,} parameters, {decoder.num_layers} layers of {decoder.width}")


def _divides(context: Context) -> Answer:
    if context.plan is None:
        if context.plan_error is None or context.is_too_large or context.decoder is None:
            return checks.skipped("there is no plan")
        error = checks.sentence(context.plan_error)
        return checks.failed(error, context.command(*_divisible(context, error), verb="plan"))
    plan = context.plan
    return checks.ok(
        f"{plan.global_batch_sequences} rows of {plan.sequence_length}: "
        f"{plan.micro_batch_sequences} a pass x {plan.accumulation} on "
        f"{plan.data_parallel} device(s)"
    )


def _divisible(context: Context, error: str) -> list[str]:
    """Return overrides that mend what a plan's error tells of, where that is one number."""
    if found := re.search(r"global_batch_sequences is (\d+).* a multiple of (\d+)", error):
        batch, step = int(found[1]), int(found[2])
        return [f"data.global_batch_sequences={-(-batch // step) * step}"]
    if found := re.search(r"sequence_length is \d+, but the model has (\d+)", error):
        return [f"data.sequence_length={found[1]}"]
    if "precision.frozen nf4" in error:
        return ["precision.frozen=int8"]
    return []


def _fits(context: Context) -> Answer:
    plan = context.plan
    if plan is None:
        if not context.is_too_large:
            return checks.skipped("there is no plan")
        error = checks.sentence(context.plan_error or ValueError())
        return checks.failed(error, context.command(*_leaner(context), verb="plan"))
    measured = "" if plan.platform == "cpu" else " (predicted, not measured)"
    return checks.ok(
        f"{checks.gib(plan.memory.total)} of {checks.gib(plan.memory.available)} on each device"
        f"{measured}, remat {plan.remat}"
    )


def _leaner(context: Context) -> list[str]:
    """Return the next leaner way to train the same model."""
    run = context.run
    if run.adapter.kind == "none":
        return ["adapter.kind=lora", "adapter.rank=16", "adapter.alpha=32"]
    if not run.precision.is_quantised:
        return ["precision.frozen=nf4"]
    return [f"data.sequence_length={max(128, run.data.sequence_length // 2)}"]


def _base_fits(context: Context) -> Answer:
    """Compare the bytes of the model alone with a device, whatever else a step needs."""
    run, decoder, target = context.run, context.decoder, context.target
    if decoder is None:
        return checks.skipped("the model's shape is not known")
    if context.plan is not None:
        mesh, room = context.plan.mesh, context.plan.memory.available
    else:
        mesh = plan_lib.choose_mesh(run, target, decoder)
        room = target.chip_memory_bytes
    count, frozen = arithmetic.parameter_count(decoder), run.precision.frozen
    if run.adapter.kind == "none":
        state = memory_lib.optimizer_bytes(decoder, run.adapter, run.optimizer, mesh)
        trained = memory_lib.trained_tensors(decoder, run.adapter)
        held = 8 * sum(tensor.local_size(mesh) for tensor in trained) + state
        each = f"4 bytes, 4 of gradients, {checks.gib(state)} of optimizer state"
    else:
        size = _bytes_each(context)
        held = stored.device_bytes(decoder, mesh, frozen, size)
        each = frozen if run.precision.is_quantised else f"{size} bytes"
    split = 1
    for axis in ("fsdp", "tensor", "expert", "context"):
        split *= mesh[axis]
    shown = (
        f"{count:,} parameters x {each} over {split} device(s) are {checks.gib(held)} on each, "
        f"which has {checks.gib(room)}"
    )
    if held > room:
        return checks.failed(shown, context.command(*_leaner(context), verb="plan"))
    return checks.ok(shown)


def _bytes_each(context: Context) -> int:
    """Return the bytes of one frozen number that is not quantised."""
    frozen, weights = context.run.precision.frozen, context.run.model.weights
    if frozen in BYTES:
        return BYTES[frozen]
    try:
        opened = shapes.open_headers(weights or "")
        largest = max(opened.names(), key=lambda name: math.prod(opened.shape(name)))
        return BYTES.get(opened.dtype_name(largest), 2)
    except (ValueError, OSError):
        return 2  # what checkpoints have, where these cannot be read


def _a10g(context: Context) -> Answer:
    """Check that the plan asks an A10G for no kernel that it lacks."""
    plan, target = context.plan, context.target
    if plan is None:
        return checks.skipped("there is no plan")
    if plan.platform != "gpu":
        return checks.ok(f"a {plan.platform}'s: {plan.attention}, {plan.experts or 'no experts'}")
    if plan.attention == "splash" or plan.experts in ("ragged",):
        return checks.failed(
            f"{plan.attention} attention and {plan.experts} experts are a TPU's kernels",
            f"sed -i 's/^attention:.*/attention: auto/' launch/targets/{target.name}.yaml",
        )
    is_a10g = re.match(r"(g5\.|.*a10g)", target.accelerator_type.lower()) is not None
    if is_a10g and plan.experts == "grouped":
        return checks.warning(
            "an A10G (compute capability 8.6) has no Mosaic kernels: experts run by tokamax's "
            "Triton kernels, not yet run on a GPU here",
            "./run plan configs/mistral_7b/lora_r64.yaml --target g5_2xlarge",
        )
    forced = "; Mosaic kernels left out" if is_a10g else ""
    return checks.ok(f"attention {plan.attention}, experts {plan.experts or 'none'}{forced}")


def _hosts(context: Context) -> Answer:
    target = context.target
    if target.num_hosts > 1 and target.launcher.kind in ONE_HOST:
        return checks.failed(
            f"{target.name} has {target.num_hosts} hosts, and its launcher "
            f"{target.launcher.kind} starts one",
            context.command("launcher.kind=slurm"),
        )
    return checks.ok(f"{target.num_hosts} host(s) of {target.chips_per_host}, all started")


def _time(context: Context) -> Answer:
    plan = context.plan
    if plan is None:
        return checks.skipped("there is no plan")
    limit = _limit_hours(context)
    if plan.train_hours is None:
        shown = f"{plan.seconds_per_step:.3g} s a step predicted; hours depend on the data"
        if limit is None:
            return checks.ok(shown)
        known = context.command("data.epochs=null", "optimizer.max_steps=NUMBER")
        return checks.warning(f"{shown}, and {limit[0]} ends the run after {limit[1]:g} h", known)
    shown = f"{plan.train_hours:.1f} h predicted for {plan.max_steps:,} steps"
    if limit is None:
        return checks.ok(shown)
    key, hours = limit
    if plan.train_hours > hours:
        longer = -(-plan.train_hours * 1.25 // 1)
        value = f"{longer:.0f}:00:00" if key.endswith("time_limit") else f"{longer:.0f}"
        answer = checks.warning if context.target.launcher.kind == "slurm" else checks.failed
        return answer(f"{shown}, and {key} ends it after {hours:g} h",
                      context.command(f"{key}={value}"))  # fmt: skip
    return checks.ok(f"{shown}, within {key} {hours:g} h")


def _limit_hours(context: Context) -> tuple[str, float] | None:
    launcher = context.target.launcher
    if isinstance(launcher, launchers.Ec2):
        return "launcher.max_hours", launcher.max_hours
    if isinstance(launcher, launchers.Slurm):
        days, _, clock = launcher.time_limit.rpartition("-")
        parts = clock.split(":")
        if len(parts) != 3 or not all(part.isdigit() for part in (*parts, days or "0")):
            raise ValueError(f"launcher.time_limit {launcher.time_limit!r}: expected HH:MM:SS")
        hours, minutes, seconds = map(int, parts)
        return "launcher.time_limit", int(days or 0) * 24 + hours + minutes / 60 + seconds / 3600
    return None


def _price(context: Context) -> Answer:
    launcher, plan = context.target.launcher, context.plan
    price = context.target.price_usd_per_hour
    cost = "" if plan is None or plan.cost_usd is None else f", {plan.cost_usd:,.2f} USD in all"
    if not isinstance(launcher, launchers.Ec2):
        spot = getattr(launcher, "spot", None)
        market = {None: "", True: "spot, ", False: "on demand, "}[spot]
        told = "no price known" if price is None else f"{price:,.2f} USD an hour at list price"
        if spot and not context.has_bucket_output:
            return checks.warning(
                f"{market}{told}{cost}; what it saved goes with a machine that is taken away",
                context.command(f"output=s3://BUCKET/models/{context.run.name}"),
            )
        return checks.ok(f"{market}{told}{cost}")
    ceiling = launcher.max_usd_per_hour
    if price is None:
        return checks.failed("the price is not known", context.command("price_usd_per_hour=1.212"))
    shown = f"{price:.3f} USD an hour on demand{cost}, ceiling {ceiling:g}"
    if launcher.market == "spot":
        if not context.has_bucket_output:
            return checks.failed(
                f"spot: EC2 may take the instance and its disk away, and output is on it; {shown}",
                context.command(f"output=s3://BUCKET/models/{context.run.name}"),
            )
        return checks.ok(f"spot, at most {ceiling:g} USD an hour; {shown}")
    if price > ceiling:
        raised = f"launcher.max_usd_per_hour={price:g}"
        return checks.failed(f"above the ceiling: {shown}", context.command(raised))
    return checks.ok(shown)


CHECKS = (
    Check("model shape", _shape),
    Check("batch, lengths, mesh", _divides),
    Check("memory of a step", _fits),
    Check("base model fits", _base_fits),
    Check("kernel set", _a10g),
    Check("hosts", _hosts),
    Check("time", _time),
    Check("price", _price),
)
