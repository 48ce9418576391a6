"""The loop with real steps, checkpoints and metrics: resume, signals, stop rule, bad numbers."""

import dataclasses
import functools
import json
import os
import signal
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import checkpoint
from mistral_jax import metrics
from mistral_jax import protocols
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.config import run as run_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.train import loop
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib

B, T, V = 4, 8, 40
TINY = model_config.DecoderConfig(
    num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, vocab_size=V,
    ffn=model_config.DenseFfn(width=16), rope=model_config.DefaultRope(theta=1e4),
    max_positions=32,
)  # fmt: skip
MESH_SIZES: dict[str, int] = {}


def make_run(**changes: object) -> run_config.RunConfig:
    fields = {
        "name": "tiny",
        "model": TINY.model_dump(),
        "adapter": {"kind": "lora", "rank": 2, "alpha": 4.0, "dropout": 0.5},
        "data": {"train": "-", "sequence_length": T, "global_batch_sequences": B},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 2, "max_steps": 6},
        "evaluate": {"every_steps": 2},
        "checkpoint": {"every_steps": 2, "keep_last": 2, "keep_best": 0},
    }
    return run_config.RunConfig.model_validate_json(json.dumps({**fields, **changes}))


RUN = make_run()


class Stream:
    """Batches as a pure function of their number; calls `on_batch(number)` before each."""

    def __init__(self, start: int, on_batch: Callable[[int], None] | None = None) -> None:
        self.next, self.on_batch = start, on_batch

    def __next__(self) -> protocols.Batch:
        if self.on_batch is not None:
            self.on_batch(self.next)
        self.next += 1
        return make_batch(self.next)

    def get_state(self) -> dict:
        return {"next": self.next}


def make_batch(number: int) -> protocols.Batch:
    generator = np.random.default_rng(number)
    tokens, targets = generator.integers(0, V, (2, B, T)).astype(np.int32)
    ones = np.ones((B, T), np.int32)
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    return protocols.Batch(tokens, targets, ones.astype(np.float32), positions, ones, 0 * ones)


@functools.cache
def built() -> tuple:
    """Return what all runs share, compiled once: definition, parameters, train and eval step."""
    mesh = sharding.make_mesh(MESH_SIZES, jax.devices()[:1])
    definition = definition_lib.define(TINY, adapter=RUN.adapter)
    params = definition_lib.initialise(definition, rng.seed_key(0), mesh)
    train_step = step_lib.make_train_step(
        definition, RUN.stage, optimizers.make_optimizer(RUN.optimizer),
        optimizers.learning_rate(RUN.optimizer),
    )  # fmt: skip
    return mesh, definition, params, train_step, step_lib.make_eval_step(definition)


def start_state() -> state_lib.TrainState:
    mesh, definition, params, *_ = built()
    trained = {path: jnp.array(params[path]) for path in definition.trainable_paths()}
    optimizer = optimizers.make_optimizer(RUN.optimizer)
    return state_lib.create(trained, optimizer, RUN.seed, mesh, definition.shardings(mesh))


def abstract(state: state_lib.TrainState) -> state_lib.TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def fit(folder: Path, **changes: object) -> loop.Outcome:
    """Run the loop in a folder: from its newest checkpoint if there is one."""
    mesh, definition, params, train_step, eval_step = built()
    run = changes.pop("run", RUN)
    on_batch = changes.pop("on_batch", None)
    checkpointer = checkpoint.Checkpointer(folder / "checkpoints", run.checkpoint)
    state = start_state()
    restored, _ = checkpointer.restore_newest(abstract(state))
    step, history = 0, ()
    if restored is not None:
        state, step, history = restored.state, restored.step, restored.record["eval_history"]
    frozen = {path: params[path] for path in set(params) - set(definition.trainable_paths())}
    try:
        with metrics.MetricsWriter(folder, total_steps=6, resume_step=step) as writer:
            parts = loop.Parts(
                run=run, mesh=mesh, train_step=train_step, eval_step=eval_step, frozen=frozen,
                stream=Stream(step, on_batch), eval_sets={"held": [make_batch(1000)]},
                accumulation=2, checkpointer=checkpointer, writer=writer, flops_per_step=None,
                peak_flops_per_s=None, take_samples=None, save_evaluation=lambda *_: None,
            )  # fmt: skip
            parts = dataclasses.replace(parts, **changes)
            return loop.fit(parts, state, start_step=step, eval_history=history)
    finally:
        checkpointer.close()


def losses(folder: Path) -> dict[int, str]:
    log = metrics.read_metrics(folder / metrics.METRICS_FILE)
    return {line["step"]: line["loss_hex"] for line in log.steps}


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, loop.Outcome]:
    """Return one run from 0 to 6 without a break."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)


def test_a_run_logs_every_step_evaluates_and_keeps_the_newest_checkpoints(whole) -> None:
    folder, outcome = whole
    assert (outcome.reason, outcome.step, int(outcome.state.step)) == ("done", 6, 6)
    assert sorted(losses(folder)) == [1, 2, 3, 4, 5, 6]
    log = metrics.read_metrics(folder / metrics.METRICS_FILE)
    assert [line["step"] for line in log.evals] == [0, 2, 4, 6]
    assert saved_steps(folder) == [4, 6]
    assert outcome.seconds_per_step is not None and outcome.seconds_per_step > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_equals_the_whole_one_bit_for_bit(
    whole, tmp_path: Path, number: signal.Signals
) -> None:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

    def interrupt(batch: int) -> None:
        if batch == 2:
            os.kill(os.getpid(), number)

    first = fit(tmp_path, on_batch=interrupt)
    assert (first.reason, first.step) == (number.name, 3)
    assert saved_steps(tmp_path) == [2, 3]
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    second = fit(tmp_path)
    assert (second.reason, second.step) == ("done", 6)
    folder, outcome = whole
    assert losses(tmp_path) == losses(folder)
    for path, value in outcome.state.params.items():
        np.testing.assert_array_equal(second.state.params[path], value)


@pytest.fixture
def restored_interrupt() -> Iterator[None]:
    """Let Ctrl-C act as at a terminal: a shell's background jobs are started ignoring it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def test_a_second_signal_acts_as_usual(tmp_path: Path, restored_interrupt: None) -> None:
    def interrupt(batch: int) -> None:
        if batch == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, on_batch=interrupt)


def spoiled(name: str, at: int) -> Callable:
    """Return the real step, whose metric `name` is NaN at one step."""
    train_step = built()[3]

    def step(state, frozen, batch):
        state, values = train_step(state, frozen, batch)
        is_bad = int(state.step) == at
        return state, values | ({name: jnp.float32(np.nan)} if is_bad else {})

    return step


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_numbers_that_are_not_finite_stop_the_run_before_they_are_saved(
    tmp_path: Path, name: str
) -> None:
    message = r"step 4: .*nan.*the last checkpoint is step 2; lower optimizer.learning_rate"
    with pytest.raises(loop.LossNotFinite, match=message):
        fit(tmp_path, train_step=spoiled(name, 4))
    assert saved_steps(tmp_path) == [2]
    assert sorted(losses(tmp_path)) == [1, 2, 3]


def test_a_token_outside_the_vocabulary_is_found_by_its_loss(tmp_path: Path) -> None:
    class BadStream(Stream):
        def __next__(self) -> protocols.Batch:
            batch = super().__next__()
            return dataclasses.replace(batch, tokens=batch.tokens + V)

    with pytest.raises(loop.LossNotFinite, match=r"step 1: .*the last checkpoint is none yet"):
        fit(tmp_path, stream=BadStream(0))


def scripted(values: list[float]) -> Callable:
    """Return an eval step that gives these losses in turn."""
    left = iter(values)

    def eval_step(params, batch):
        weights = np.ones(B)
        return weights * next(left), weights

    return eval_step


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "stops_at"),
    [
        ([3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2], 1, 0.0, None),
        ([3.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0], 1, 0.0, 2),
        ([3.0, 2.0, 2.5, 1.0, 1.2, 1.1, 0.9], 2, 0.0, 5),
        ([3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0], 2, 0.0, 2),
        ([3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4], 2, 0.5, 2),
        ([3.0, 2.0, 1.0, 0.95, 0.9, 0.1, 0.0], 2, 0.5, 4),
    ],
)
def test_the_stop_rule_counts_evaluations_without_enough_gain(
    tmp_path: Path, values: list[float], patience: int, min_delta: float, stops_at: int | None
) -> None:
    run = make_run(
        evaluate={"every_steps": 1, "stop": {"patience": patience, "min_delta": min_delta}},
        checkpoint={"every_steps": 100, "keep_best": 0},
    )
    outcome = fit(tmp_path, run=run, eval_step=scripted(values))
    assert outcome.step == (stops_at or 6)
    assert outcome.reason == ("stop_rule" if stops_at else "done")
    assert saved_steps(tmp_path) == [outcome.step]


def test_the_stop_rule_remembers_over_a_restart(tmp_path: Path) -> None:
    run = make_run(
        evaluate={"every_steps": 1, "stop": {"patience": 2}},
        checkpoint={"every_steps": 100, "keep_best": 0},
    )

    def interrupt(batch: int) -> None:
        if batch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    first = fit(tmp_path, run=run, eval_step=scripted([3.0, 1.0, 2.0]), on_batch=interrupt)
    assert (first.reason, first.step) == ("SIGTERM", 2)
    second = fit(tmp_path, run=run, eval_step=scripted([1.5, 1.0]))
    assert (second.reason, second.step) == ("stop_rule", 3)


def test_a_run_that_the_rule_stopped_stays_stopped(tmp_path: Path) -> None:
    """As after a kill between the last save and the end of the process."""
    run = make_run(evaluate={"every_steps": 1, "stop": {"patience": 1}})
    first = fit(tmp_path, run=run, eval_step=scripted([3.0, 2.0, 2.5]))
    second = fit(tmp_path, run=run, eval_step=scripted([]))
    assert (first.reason, first.step) == (second.reason, second.step) == ("stop_rule", 2)


def test_a_signal_in_the_last_step_lets_the_run_be_done(tmp_path: Path) -> None:
    def interrupt(batch: int) -> None:
        if batch == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = fit(tmp_path, on_batch=interrupt)
    assert (outcome.reason, outcome.step) == ("done", 6)


@pytest.mark.parametrize(("keep_best", "saved"), [(1, [2, 6]), (0, [6])])
def test_the_best_evaluation_is_kept_though_no_save_was_due(
    tmp_path: Path, keep_best: int, saved: list[int]
) -> None:
    run = make_run(checkpoint={"every_steps": 3, "keep_last": 1, "keep_best": keep_best})
    fit(tmp_path, run=run, eval_step=scripted([1.0, 2.0, 2.5, 2.6]))
    assert saved_steps(tmp_path) == saved


def test_a_curriculum_hears_every_evaluation_and_its_level_stands_with_the_step(
    tmp_path: Path,
) -> None:
    class Guide:
        heard: list[dict[str, float]]

        def __init__(self) -> None:
            self.heard = []

        def observe(self, losses: dict[str, float]) -> None:
            self.heard.append(losses)

        def levels(self) -> dict[str, int]:
            return {"code": len(self.heard)}

    guide = Guide()
    fit(tmp_path, curriculum=guide)
    log = metrics.read_metrics(tmp_path / metrics.METRICS_FILE)
    assert [line["level/code"] for line in log.steps] == [1, 1, 2, 2, 3, 3]  # at 0, 2, 4
    assert [losses["held"] for losses in guide.heard] == [line["loss"] for line in log.evals]


def test_memory_is_logged_under_the_name_that_the_panel_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 3 << 30})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])  # a CPU tells nothing
    screen = metrics.Screen(6, 0)
    screen.update(1, loop.device_memory())
    assert "device 3.0 GiB" in screen.line()


def test_micro_batches_take_every_nth_row(tmp_path: Path) -> None:
    seen = []

    def train_step(state, frozen, batch):
        seen.append(batch)
        return built()[3](state, frozen, batch)

    fit(tmp_path, train_step=train_step)
    expected = make_batch(1)
    assert set(seen[0]) == {"tokens", "targets", "loss_weights", "positions", "segment_ids"}
    for name, array in seen[0].items():
        assert array.shape == (2, B // 2, T)
        for micro in range(2):
            np.testing.assert_array_equal(array[micro], getattr(expected, name)[micro::2])
