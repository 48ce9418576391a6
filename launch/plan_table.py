"""A plan as a table for a terminal; rich only, so that `plan` answers at once."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from launch.plan import Plan

TIME_PARTS = (
    ("dense matmuls", "matmul"),
    ("experts", "experts"),
    ("attention", "attention"),
    ("norms, activations (HBM)", "pointwise"),
    ("rows to experts (HBM)", "row_moves"),
    ("update (HBM)", "optimizer"),
    ("wires, not hidden", "exposed"),
)
MEMORY_PARTS = (
    ("frozen parameters", "frozen_parameters"),
    ("trained parameters", "trained_parameters"),
    ("optimizer state", "optimizer_state"),
    ("batch", "batch"),
    ("gradients", "gradients"),
    ("activations", "activations"),
    ("layer work", "layer_work"),
    ("experts' rows", "dispatch"),
    ("gathered weights", "gathered_weights"),
    ("loss chunk", "loss_chunk"),
    ("runtime", "runtime"),
)


def format_bytes(size_bytes: float) -> str:
    """Return a size with a binary unit, such as 13.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} GiB"


def format_duration(seconds: float) -> str:
    """Return a time as a person would say it, such as 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days:,} days {hours} h"


def plan_table(plan: Plan) -> Group:
    """Return the plan as a renderable: what runs where, bytes per device, time and cost."""
    shape = Table(title=f"{plan.run} on {plan.target}", title_justify="left", show_header=False)
    shape.add_column(style="bold")
    shape.add_column()
    share = plan.trainable_parameters / plan.parameters
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    for name, value in (
        ("devices", f"{plan.num_devices:,} x {plan.accelerator_type}, hosts: {plan.num_hosts:,}"),
        ("mesh", mesh or "one device"),
        ("parameters", f"{plan.parameters:,}"),
        *_active(plan),
        ("trainable", f"{plan.trainable_parameters:,} ({share:.2%})"),
        (
            "batch",
            f"{plan.global_batch_sequences:,} rows of {plan.sequence_length:,} = "
            f"{plan.micro_batch_sequences} x {plan.accumulation} passes x "
            f"{plan.data_parallel} devices",
        ),
        ("attention, remat", f"{plan.attention}, {plan.remat}"),
        *_levers(plan),
        *_longest(plan),
        *_experts(plan),
        ("optimizer", f"{plan.optimizer}, {plan.optimizer_bytes_per_parameter:.2f} bytes of state "
                      "a parameter"),
        ("time per step", f"{format_duration(plan.seconds_per_step)}, {plan.calibration}"),
        ("tokens/s", f"{plan.tokens_per_s:,.0f}, {plan.mfu:.1%} of the peak (MFU), "
                     f"{plan.calibration}"),
        ("10^12 tokens", f"{plan.days_per_trillion_tokens:,.1f} days, {plan.calibration}"),
        ("whole run", _whole_run(plan)),
        ("cost", _cost(plan)),
    ):  # fmt: skip
        shape.add_row(name, value)
    return Group(shape, _memory_table(plan), *_time_table(plan), _notes(plan))


def _whole_run(plan: Plan) -> str:
    if plan.max_steps is None or plan.tokens is None or plan.train_hours is None:
        return "steps and hours depend on the data (data.epochs)"
    duration = format_duration(plan.train_hours * 3600)
    return f"{plan.max_steps:,} steps, {plan.tokens:,} tokens, {duration}"


def _cost(plan: Plan) -> str:
    if plan.cost_usd is not None:
        return f"{plan.cost_usd:,.2f} USD at list price, {plan.calibration}"
    if plan.price_usd_per_hour is None:
        return "-"
    return f"depends on the data; {plan.price_usd_per_hour:,.2f} USD an hour at list price"


def _active(plan: Plan) -> list[tuple[str, str]]:
    if plan.active_parameters == plan.parameters:
        return []
    share = plan.active_parameters / plan.parameters
    return [("active", f"{plan.active_parameters:,} ({share:.1%})")]


def _levers(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    if plan.mlp_chunk_tokens is not None:
        rows.append(("feed-forward", f"{plan.mlp_chunk_tokens:,} tokens of a row at a time"))
    if plan.memory.on_host:
        what = [
            *(["layers' inputs"] if plan.remat == "offload" else []),
            *(["optimizer state"] if plan.offload == "optimizer" else []),
        ]
        size = format_bytes(plan.memory.on_host)
        rows.append(("on the host", f"{' and '.join(what)}, {size} for each device"))
    return rows


def _longest(plan: Plan) -> list[tuple[str, str]]:
    if plan.longest_sequence is None or plan.longest_in_memory is None:
        return []
    shown = f"{plan.longest_sequence:,} tokens, one row a pass"
    if plan.longest_in_memory > plan.longest_sequence:
        shown += f" (the model's positions; there is room for {plan.longest_in_memory:,})"
    return [("longest row", shown)]


def _experts(plan: Plan) -> list[tuple[str, str]]:
    if plan.experts is None:
        return []
    way = f", rows travel {plan.experts_transport}" if plan.experts_transport else ""
    return [("experts", plan.experts + way)]


def _time_table(plan: Plan) -> list[Table]:
    if plan.time is None:
        return []
    table = Table(
        title=f"time per step, predicted ({plan.calibration})",
        title_justify="left",
        show_footer=True,
    )
    table.add_column("part", footer="step")
    table.add_column("time", justify="right", footer=format_duration(plan.seconds_per_step))
    for label, field in TIME_PARTS:
        seconds = getattr(plan.time, field)
        if seconds:
            table.add_row(label, format_duration(seconds))
    return [table]


def _memory_table(plan: Plan) -> Table:
    memory = plan.memory
    table = Table(title="memory per device, predicted", title_justify="left", show_footer=True)
    table.add_column("part", footer="total")
    table.add_column(
        "bytes",
        justify="right",
        footer=f"{format_bytes(memory.total)} of {format_bytes(memory.available)}",
    )
    for label, field in MEMORY_PARTS:
        size = getattr(memory, field)
        if size:
            table.add_row(label, format_bytes(size))
    return table


def _notes(plan: Plan) -> Text:
    peak = f"{plan.peak_flops_per_s / 1e12:,.1f} TFLOP/s"
    if plan.time is None:
        said = [
            f"Times assume {plan.assumed_utilization:.0%} of the peak ({peak}); not measured on "
            "this target yet."
        ]
        said += [] if plan.num_devices == 1 else ["Communication between devices is not counted."]
    else:
        said = [
            f"Times are launch/predict.py's, fitted to published runs; they mean "
            f"{plan.assumed_utilization:.0%} of the peak ({peak}), recomputation included."
        ]
        said += _roofline(plan)
    return Text("\n".join([*plan.notes, *said]), style="dim")


def _roofline(plan: Plan) -> list[str]:
    if plan.roofline is None:
        return []
    parts = ", ".join(
        f"{name} {format_duration(seconds)}" for name, seconds in plan.roofline.items()
    )
    return [f"At the specified peaks, nothing hidden: {parts}."]
