"""Golden plans: what a config resolved to on its usual target, committed, so that drift is seen.

One file for a run's name and a target. It holds what decides memory and speed, not the predicted
times. A target that asks this machine for its memory and cores is checked with those written down.
"""

import json
from pathlib import Path
from typing import Any

from launch import plan as plan_lib
from launch import target as target_lib
from mistral_jax.config import load
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.run import RunConfig

GOLDENS = Path(__file__).parent / "goldens"
FIELDS = (
    "parameters", "active_parameters", "trainable_parameters", "global_batch_sequences",
    "sequence_length", "tokens_per_step", "mesh", "data_parallel", "micro_batch_sequences",
    "accumulation", "attention", "experts", "experts_transport", "remat", "mlp_chunk_tokens",
    "offload", "optimizer", "optimizer_bytes_per_parameter", "memory", "longest_sequence",
    "longest_in_memory",
)  # fmt: skip
# What the machine has, not what the run needs.
MACHINE_MEMORY = ("available", "host_available")
# For a target that leaves them open.
MACHINE = {"host_memory_gib": 16, "host_cores": 2}


class NoGolden(ValueError):
    """There is no golden plan of this run on this target."""


def path_of(run: RunConfig, target_name: str) -> Path:
    """Return where the golden plan of a run on a target is."""
    return GOLDENS / f"{run.name}@{Path(target_name).stem}.json"


def names() -> list[tuple[str, str]]:
    """Return the runs and targets that have a golden plan."""
    pairs = (path.stem.partition("@") for path in sorted(GOLDENS.glob("*@*.json")))
    return [(run, target) for run, _, target in pairs]


def check(run: RunConfig, target_name: str, *, decoder: DecoderConfig | None = None) -> list[str]:
    """Return what is not as in the golden plan, as `field: old -> new`; nothing where all is.

    Raises:
        NoGolden: there is none; the message names the run's others.
        launch.plan.PlanError: the run does not fit the target any more.
    """
    path = path_of(run, target_name)
    if not path.is_file():
        elsewhere = [target for name, target in names() if name == run.name]
        hint = f"; there is one on {', '.join(elsewhere)}" if elsewhere else ""
        raise NoGolden(
            f"no golden plan of {run.name} on {target_name}{hint}; write it with "
            "plan CONFIG --target TARGET --update"
        )
    golden = json.loads(path.read_text(encoding="utf-8"))
    found = resolved(run, target_name, golden["machine"], decoder=decoder)
    return list(_differences("", golden["plan"], found))


def update(run: RunConfig, target_name: str, *, decoder: DecoderConfig | None = None) -> Path:
    """Write the golden plan of a run on a target, and return its path."""
    machine = _machine(target_name)
    golden = {"machine": machine, "plan": resolved(run, target_name, machine, decoder=decoder)}
    path = path_of(run, target_name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    return path


def _machine(target_name: str) -> dict[str, Any]:
    """Return what a target's file leaves open, settled: the plan is then the same everywhere."""
    target_lib.load_target(target_name)  # refuses unknown names
    is_path = target_name.endswith(".yaml")
    path = Path(target_name) if is_path else target_lib.TARGETS / f"{target_name}.yaml"
    given = load.read_tree(path)
    return {name: value for name, value in MACHINE.items() if given.get(name) is None}


def resolved(
    run: RunConfig,
    target_name: str,
    machine: dict[str, Any],
    *,
    decoder: DecoderConfig | None = None,
) -> dict[str, Any]:
    """Return the fields of the plan that a golden one holds."""
    overrides = [f"{name}={value}" for name, value in machine.items()]
    target = target_lib.load_target(target_name, overrides)
    plan = plan_lib.resolve(run, target, decoder=decoder).model_dump(mode="json")
    plan["tokens_per_step"] = plan["global_batch_sequences"] * plan["sequence_length"]
    for name in MACHINE_MEMORY:
        del plan["memory"][name]
    return {name: plan[name] for name in FIELDS}


def _differences(prefix: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in _differences(f"{prefix}.{key}".lstrip("."), old.get(key), new.get(key))
        ]
    return [] if old == new else [f"{prefix}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_number else str(value)
