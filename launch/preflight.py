"""Everything that can be checked before money is spent, each failure with the command to type.

Run where a launch is typed, it looks at config, plan, inputs, buckets and the way to the host; what
only the host can tell is left to the same verb there, with --on-host. No jax, and without a network
no more than three seconds.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.console import Group
from rich.table import Table
from rich.text import Text

from launch import checks
from launch import checks_inputs
from launch import checks_launch
from launch import checks_machine
from launch import checks_output
from launch import checks_plan
from launch import checks_store
from launch import checks_weights
from launch import start
from launch import target as target_lib
from launch.checks import Check
from launch.checks import Context
from launch.checks import Status
from mistral_jax.config import load

TOPICS: dict[str, tuple[Check, ...]] = {
    "plan": checks_plan.CHECKS,
    "machine": checks_machine.CHECKS,
    "inputs": checks_inputs.CHECKS,
    "model": checks_weights.CHECKS,
    "output": checks_output.CHECKS,
    "stores": checks_store.CHECKS,
    "launch": checks_launch.CHECKS,
}
EXIT_DONE, EXIT_GATE = 0, 3
ORDER: tuple[Status, ...] = ("failed", "warning", "ok", "skipped")
STYLES = {"failed": "bold red", "warning": "yellow", "ok": "green", "skipped": "dim"}
HERE, HOST = "here", "host"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check's answer, as people and machines get it.

    Attributes:
        name, topic: of the check.
        status: ok, warning, failed or skipped.
        detail: one sentence; of a skipped one, the reason.
        fix: a command to type, empty where there is nothing to do.
        where: `here`, or `host` where another machine answered.
    """

    name: str
    topic: str
    status: Status
    detail: str
    fix: str = ""
    where: str = HERE


def context_of(
    config: str | Path,
    target: str,
    overrides: Sequence[str] = (),
    *,
    on_host: bool = False,
    remote: bool = False,
) -> Context:
    """Read config and target.

    Args:
        config: a YAML file.
        target: a name, or a YAML file.
        overrides: of the run and of the target, as `launch` takes them.
        on_host: this machine is the one that trains.
        remote: hosts may be asked, too.

    Raises:
        ConfigError: one of them is wrong.
    """
    own, machine = start.split_target(overrides)
    changes, is_fresh = load.split_fresh(own)
    loaded = target_lib.load_target(target, machine)
    return Context(
        run=load.load_run(config, changes),
        target=loaded,
        config=Path(config),
        target_word=target,
        overrides=tuple(overrides),
        on_host=on_host or loaded.launcher.kind == "local",
        is_fresh=is_fresh,
        remote=remote,
    )


def check(context: Context) -> list[Finding]:
    """Return every check's answer, in the order of the topics."""
    found = [
        Finding(each.name, topic, **dataclasses.asdict(each.run(context)))
        for topic, listed in TOPICS.items()
        for each in listed
    ]
    return [*found, *_far_findings(context)] if context.remote else found


def _far_findings(context: Context) -> list[Finding]:
    """Run the same verb on the host; what it says, but for what it skips."""
    if context.on_host:
        return []
    relaunch = context.command(verb="launch")
    try:
        argv = checks_launch.remote_command(context)
        if argv is None:
            reason = f"no host of {context.target.name} can be asked now"
            return [Finding("host", "launch", "skipped", reason, where=HOST)]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=checks_launch.REMOTE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (ValueError, OSError, subprocess.TimeoutExpired) as error:
        return [Finding("host", "launch", "failed", checks.sentence(error), relaunch, HOST)]
    try:
        listed = json.loads(done.stdout[done.stdout.index("{") :])["checks"]
        return [
            Finding(**{**each, "where": HOST}) for each in listed if each["status"] != "skipped"
        ]
    except (ValueError, KeyError, TypeError):
        said = checks.last_line(done.stderr or done.stdout)
        detail = f"the host does not run the pre-flight (exit code {done.returncode}): {said}"
        return [Finding("host", "launch", "failed", detail, relaunch, HOST)]


def to_json(context: Context, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as JSON values."""
    counts = {status: sum(f.status == status for f in findings) for status in ORDER}
    return {
        "config": str(context.config),
        "target": context.target.name,
        "science_hash": context.run.science_hash(),
        "where": HOST if context.on_host else HERE,
        "ok": not counts["failed"],
        "counts": counts,
        "checks": [dataclasses.asdict(finding) for finding in findings],
    }


def to_table(context: Context, findings: Sequence[Finding]) -> Group:
    """Return the findings for a terminal: what failed first, each with what to type."""
    groups = {status: [f for f in findings if f.status == status] for status in ORDER}
    counts = ", ".join(f"{len(found)} {status}" for status, found in groups.items() if found)
    parts: list[Any] = [
        Text(f"preflight: {context.run.name} on {context.target.name}: {counts}", style="bold")
    ]
    for status in ("failed", "warning"):
        for finding in groups[status]:
            far = " (host)" if finding.where == HOST else ""
            line = Text.assemble(
                (f"{status}  ", STYLES[status]), (f"{finding.name}{far}: ", "bold"), finding.detail
            )
            parts += [line, Text(f"  fix: {finding.fix}", style="cyan")]
    parts.append(_rows(groups["ok"]))
    reasons: dict[str, list[str]] = {}
    for finding in groups["skipped"]:
        reasons.setdefault(finding.detail, []).append(finding.name)
    for reason, names in reasons.items():
        parts.append(Text(f"skipped, {reason}: {', '.join(names)}", style=STYLES["skipped"]))
    return Group(*parts)


def _rows(found: Sequence[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style=STYLES["ok"])
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        far = " (host)" if finding.where == HOST else ""
        table.add_row("ok", f"{finding.name}{far}", Text(finding.detail))
    return table


def run(context: Context, *, is_json: bool = False) -> int:
    """Check and print; return 3 where something failed, else 0."""
    findings = check(context)
    if is_json:
        print(json.dumps(to_json(context, findings), indent=2))
    else:
        Console(soft_wrap=not sys.stdout.isatty()).print(to_table(context, findings))
    return EXIT_GATE if any(finding.status == "failed" for finding in findings) else EXIT_DONE
