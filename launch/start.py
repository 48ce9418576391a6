"""Launch a run: plan it, check it here, and take the steps of its target's launcher."""

import sys
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import yaml

from launch import commands
from launch import ec2
from launch import gpu_host
from launch import jobset
from launch import local
from launch import plan as plan_lib
from launch import skypilot
from launch import slurm
from launch import tpu_pod
from launch.commands import Command
from launch.commands import Request
from launch.commands import Step
from launch.commands import WriteFile
from launch.plan import Plan
from launch.target import Target
from mistral_jax.config.run import RunConfig

LAUNCHERS: dict[str, ModuleType] = {
    "local": local,
    "ssh": gpu_host,
    "ec2": ec2,
    "tpu_queued": tpu_pod,
    "slurm": slurm,
    "jobset": jobset,
    "skypilot": skypilot,
}
TARGET_KEYS = ("launcher.", "price_usd_per_hour=")


def split_target(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of the run, and those of the target: `launcher.host=...`."""
    mine = [text for text in overrides if text.startswith(TARGET_KEYS)]
    return [text for text in overrides if text not in mine], mine


def launch(
    run: RunConfig,
    config: Path,
    overrides: Sequence[str],
    target: Target,
    *,
    is_dry_run: bool = False,
    create: bool = False,
    stop: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Start a run on its target, attach to it where it runs already, or stop it.

    Args:
        run: the config with its overrides.
        config: the file that it came from.
        overrides: those of the run, as given.
        target: the machine, the target's own overrides in it.
        is_dry_run: show every command and file; run and write nothing.
        create: start a machine where the launcher can.
        stop: end the run, and the machine where the launcher made it.
        say: takes each line for the user.

    Raises:
        ValueError: bad input, or commands.CommandFailed.
    """
    target = ec2.without_ec2(target)
    plan = plan_lib.resolve(run, target)
    request = Request(
        run, config, tuple(overrides), target, plan, folder=commands.launch_folder(run)
    )
    launcher = LAUNCHERS[target.launcher.kind]
    if create and launcher is not ec2:
        raise ValueError(
            f"target {target.name}: --create starts EC2 instances, and its launcher is "
            f"{target.launcher.kind}; launch without --create, or without launcher.host"
        )
    if stop:
        return _stop(request, is_dry_run, say)
    # Made once before any program runs: hostile values are refused here.
    launcher.steps(request if launcher is not ec2 else ec2.with_host(request))
    say(_summary(plan))
    try:
        if target.launcher.kind != "local":
            _take(check_steps(request), is_dry_run, say)
        if launcher is ec2:
            request = ec2.locate(request, create=create, is_dry_run=is_dry_run, say=say)
        _take(launcher.steps(request), is_dry_run, say)
    except KeyboardInterrupt:
        say("launch: interrupted here; a run that has started goes on: launch again to attach")
        raise
    finally:
        say(f"launch: {launcher.stop_hint(request)}")
    return 0


def check_steps(request: Request) -> list[Step]:
    """Return the pre-flight of this machine: all that can be checked before money is spent."""
    path = request.folder / "target.here.yaml"
    content = yaml.safe_dump(request.target.model_dump(mode="json"), sort_keys=False)
    config = str(request.config.expanduser().absolute())
    argv = (sys.executable, "-m", "mistral_jax.cli", "preflight", config, "--target", str(path))
    overrides = [commands.check_override(text) for text in request.overrides]
    return [
        WriteFile(path, content, "the target with its overrides", shown_lines=0),
        Command((*argv, *overrides), "check here what can be checked before money is spent"),
    ]


def _stop(request: Request, is_dry_run: bool, say: Callable[[str], None]) -> int:
    """End the run; on EC2 the instance with it, whose supervisor ends the run first."""
    launcher = LAUNCHERS[request.target.launcher.kind]
    if launcher is not ec2:
        _take(launcher.stop_steps(request), is_dry_run, say)
    elif is_dry_run:
        say("# find the EC2 instance by its tag and stop it (spot: terminate it)\n")
    else:
        ec2.stop(request, say)
    return 0


def _take(steps: Sequence[Step], is_dry_run: bool, say: Callable[[str], None]) -> None:
    if is_dry_run:
        say(commands.show(steps))
    else:
        commands.execute(steps, say)


def _summary(plan: Plan) -> str:
    if plan.train_hours is None:
        return (
            f"launch: {plan.run} on {plan.target}: {plan.seconds_per_step:.3g} s a step predicted; "
            "hours and cost depend on the data (memory predicted, not measured)"
        )
    price = "no price known" if plan.cost_usd is None else f"{plan.cost_usd:,.2f} USD"
    return (
        f"launch: {plan.run} on {plan.target}: {plan.train_hours:.1f} h and {price} predicted for "
        f"{plan.max_steps:,} steps (memory predicted, not measured)"
    )
