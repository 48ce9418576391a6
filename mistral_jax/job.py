"""One run from its config: plan, data, model, state, loop, report.

Its directory holds everything (run_directory.py). The same config finds it again and goes on; a
changed one is refused with the difference named; `fresh` starts beside it.
"""

import contextlib
import dataclasses
import functools
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from launch import plan as plan_lib
from launch import target as target_lib
from mistral_jax import artifact
from mistral_jax import checkpoint
from mistral_jax import datasets
from mistral_jax import distributed
from mistral_jax import manifest
from mistral_jax import metrics
from mistral_jax import precision
from mistral_jax import remote_run
from mistral_jax import rng
from mistral_jax import run_checks
from mistral_jax import run_directory
from mistral_jax import sharding
from mistral_jax import storage
from mistral_jax import tokenizers
from mistral_jax.config import expert_shards
from mistral_jax.config import model as model_config
from mistral_jax.config import run as run_config
from mistral_jax.formats import locate
from mistral_jax.generate import engine
from mistral_jax.models import adapter_start
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import weights
from mistral_jax.nn import attention
from mistral_jax.nn import expert_parallel
from mistral_jax.nn import experts
from mistral_jax.report import write as report
from mistral_jax.train import loop
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib

COMPILATION_CACHE = "~/.cache/mistral_jax/compiled"


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        directory: the run directory.
        reason: done, stop_rule, a signal's name, or finished_before.
        step: steps done.
        report: report.html, or None when the run was interrupted.
    """

    directory: Path
    reason: str
    step: int
    report: Path | None


def train(
    run: run_config.RunConfig,
    *,
    target: str = "local_cpu",
    fresh: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train as configured, or go on, or tell that it is done.

    Where the environment says so (distributed.py), this is one of several processes of the run;
    each makes the same call, and only the first one writes and says anything.

    Raises:
        distributed.PeerLost: another process of the run is gone.
        run_directory.ResumeRefused: the directory holds another experiment.
        run_directory.InUse: another process trains there now.
        ValueError: bad input; see the message.
    """
    with distributed.group():
        speaks = say if distributed.is_main() else lambda _: None
        if not storage.is_remote(run.run_directory()):
            return _train(run, target, is_fresh=fresh, say=speaks)
        there = functools.partial(_train, target=target, is_fresh=fresh, say=speaks)
        return remote_run.train(run, fresh=fresh, say=speaks, train_here=there)


def _train(
    run: run_config.RunConfig,
    target: str,
    *,
    is_fresh: bool,
    say: Callable[[str], None],
    folder: Path | None = None,
) -> Result:
    """Train in a local folder: `folder`, or the run's own."""
    started = time.monotonic()
    decoder, plan, tokenizer = distributed.everywhere(lambda: _checked(run, target))
    directory = folder or Path(
        distributed.on_main(lambda: str(run_directory.choose(run, fresh=is_fresh)))
    )
    again = "the same command"
    if is_fresh:
        run = run if folder else run.model_copy(update={"output": str(directory)})
        again += f" with output={run.output} in place of fresh=true"
    distributed.everywhere(lambda: run_directory.refuse_other_experiment(directory, run))
    finished_steps = distributed.on_main(lambda: run_directory.finished_steps(directory))
    if finished_steps is not None:
        report_file = _on_main_path(lambda: _finished_report(directory))
        return Result(directory, "finished_before", finished_steps, report_file)
    _use_compilation_cache()
    with run_directory.claimed_by_one(directory, datasets.data_folder(directory)):
        job = _Job(run, plan, decoder, tokenizer, directory, say)
        # Closed whatever happens: the step that a message names must be on disk.
        with contextlib.closing(job.checkpointer):
            outcome = job.run()
        if outcome.reason.startswith("SIG"):
            say(f"{outcome.reason}: saved at step {outcome.step}; run {again} to go on")
            return Result(directory, outcome.reason, outcome.step, None)
        wall_s = time.monotonic() - started
        report_file = _on_main_path(lambda: _conclude(directory, outcome, wall_s))
        return Result(directory, outcome.reason, outcome.step, report_file)


def _checked(
    run: run_config.RunConfig, target: str
) -> tuple[model_config.DecoderConfig, plan_lib.Plan, tokenizers.Tokenizer]:
    """Return what a run is made of, or refuse it before anything is written."""
    machine = target_lib.load_target(target)
    run_checks.check_processes(machine)
    run_checks.check_platform(machine)
    decoder = artifact.resolve_decoder(run.model)
    plan = plan_lib.resolve(run, machine, decoder=decoder)
    tokenizer = artifact.find_tokenizer(run)
    run_checks.check_tokenizer(tokenizer, decoder)
    run_checks.check_samples(run, tokenizer, decoder)
    return decoder, plan, tokenizer


class _Job:
    """One run's parts, built in order."""

    def __init__(
        self,
        run: run_config.RunConfig,
        plan: plan_lib.Plan,
        decoder: model_config.DecoderConfig,
        tokenizer: tokenizers.Tokenizer,
        directory: Path,
        say: Callable[[str], None],
    ) -> None:
        self.run_config, self.plan, self.tokenizer = run, plan, tokenizer
        self.asked_config = run  # as the user has it; run_config gets its steps from the data
        self.directory, self.say = directory, say
        devices = jax.devices()[: plan.num_devices]
        self.mesh = sharding.make_mesh(plan.mesh, devices)
        runtime = runtime_of(run, plan)
        self.definition, self.eval_definition, self.prompt_definition = (
            definition_lib.define(
                decoder, adapter=run.adapter, runtime=each, frozen=run.precision.frozen
            )
            for each in (
                runtime, artifact.without_overflow(runtime), artifact.for_prompts(runtime)
            )
        )  # fmt: skip
        if decoder.ffn.kind == "moe":
            say(f"experts run by {runtime.experts.implementation}")
        self.weights_path = None
        if run.model.weights is not None:
            self.weights_path = distributed.everywhere(self._checked_weights)
        self.optimizer = self._make_optimizer()
        self.abstract = artifact.abstract_state(self.definition, run, self.mesh)
        if plan.offload == "optimizer":
            self.abstract = state_lib.on_host(self.abstract)
        self.state_shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        checkpoints = directory / artifact.CHECKPOINTS
        distributed.on_main(
            lambda: checkpoint.check_disk(checkpoints, self.abstract, run.checkpoint)
        )
        self.data = datasets.open_sources(
            run,
            tokenizer,
            datasets.data_folder(directory),
            is_begun=run_directory.has_checkpoint(directory),
            say=say,
        )
        self.checkpointer = checkpoint.Checkpointer(checkpoints, run.checkpoint)

    def _make_optimizer(self) -> optax.GradientTransformation:
        made = optimizers.make_optimizer(self.run_config.optimizer)
        return optimizers.with_state_on_host(made) if self.plan.offload == "optimizer" else made

    def _checked_weights(self) -> Path:
        path = locate.local_path(self.run_config.model.weights)  # pyright: ignore[reportArgumentType]
        weights.check(self.definition, path)
        return path

    def run(self) -> loop.Outcome:
        """Restore or begin, then train to the end or to a signal."""
        restored, complaints = self.checkpointer.restore_newest(self.abstract)
        for complaint in complaints:
            self.say(f"set aside a damaged checkpoint: {complaint}")
        saved_data = None if restored is None else restored.record["data"]
        stream = distributed.everywhere(
            lambda: datasets.train_stream(
                self.run_config, self.data, state=saved_data, mesh=self.mesh
            )
        )
        distributed.everywhere(lambda: self._settle_length(stream))
        weights_digest = manifest.weights_digest(self.weights_path)
        run_checks.check_same_weights(weights_digest)
        if restored is None:
            distributed.on_main(lambda: self._write_before_step_0(weights_digest))
        else:
            distributed.on_main(lambda: self._check_resume(restored.step, weights_digest))
        self.frozen, _ = artifact.load_frozen(self.definition, self.run_config, self.mesh)
        state = self._start_state() if restored is None else restored.state
        start_step = 0 if restored is None else restored.step
        with self._writer(start_step) as writer:
            return loop.fit(
                self._parts(stream, writer),
                state,
                start_step=start_step,
                eval_history=() if restored is None else restored.record["eval_history"],
            )

    def _settle_length(self, stream: Any) -> None:
        """Turn epochs into steps, which the schedule, the plan and the manifest need."""
        epochs = self.run_config.data.epochs
        if epochs is None:
            return
        num_steps = stream.num_steps(epochs)
        self.say(f"epochs: {epochs:g}; steps: {num_steps:,}")
        self.run_config = self.run_config.with_steps(num_steps)
        self.plan = self.plan.with_steps(num_steps)
        self.optimizer = self._make_optimizer()  # its schedule asks for the last step

    def _writer(self, start_step: int) -> contextlib.AbstractContextManager[metrics.Writer]:
        if not distributed.is_main():
            return contextlib.nullcontext(metrics.Silent())
        return metrics.MetricsWriter(
            self.directory,
            total_steps=self.run_config.optimizer.num_steps,
            resume_step=start_step,
        )

    def _check_resume(self, step: int, weights_digest: str | None) -> None:
        run, plan = self.run_config, self.plan.model_dump(mode="json")
        differences = run_directory.check_resume(
            self.directory,
            weights_digest=weights_digest,
            plan=plan,
            has_dropout=run.adapter.kind != "none" and run.adapter.dropout > 0,
            num_steps=run.optimizer.num_steps,
        )
        if differences:
            shown = "; ".join(differences)
            self.say(f"not as the run began, so that sums may round otherwise: {shown}")
        run_directory.record_resume(self.directory, step, differences)
        self.say(f"going on at step {step} of {run.optimizer.num_steps}")

    def _parts(self, stream: Any, writer: metrics.Writer) -> loop.Parts:
        run, plan = self.run_config, self.plan
        schedule = optimizers.learning_rate(run.optimizer)
        rows = plan.micro_batch_sequences * plan.data_parallel
        tokens = run.data.global_batch_sequences * run.data.sequence_length
        return loop.Parts(
            run=run,
            mesh=self.mesh,
            train_step=step_lib.make_train_step(
                self.definition,
                run.stage,
                self.optimizer,
                schedule,
                state_shardings=self.state_shardings,
            ),
            eval_step=step_lib.make_eval_step(self.eval_definition),
            frozen=self.frozen,
            stream=stream,
            eval_sets=datasets.held_out_batches(run, self.data, rows, mesh=self.mesh),
            accumulation=plan.accumulation,
            checkpointer=self.checkpointer,
            writer=writer,
            flops_per_step=plan.model_flops_per_token * tokens,
            peak_flops_per_s=None if plan.platform == "cpu" else plan.peak_flops_per_s,
            take_samples=(
                functools.partial(self._take_samples, writer)
                if run.evaluate.sample_prompts
                else None
            ),
            save_evaluation=(
                functools.partial(run_directory.write_evaluation, self.directory)
                if distributed.is_main()
                else lambda _step, _losses: None
            ),
            curriculum=datasets.level_watch(run, self.data, stream),
        )

    def _start_state(self) -> state_lib.TrainState:
        run, definition = self.run_config, self.definition
        paths = definition.trainable_paths()
        key = rng.seed_key(run.seed)
        if run.adapter.kind != "none":
            params = adapter_start.start_adapters(definition, self.frozen, key, self.mesh)
        elif self.weights_path is not None:
            params = weights.load_params(definition, self.weights_path, self.mesh)
        else:
            params = definition_lib.initialise(definition, key, self.mesh, paths)
        state = state_lib.create(
            params, self.optimizer, run.seed, self.mesh, definition.shardings(self.mesh)
        )
        return jax.device_put(state, self.state_shardings)

    def _write_before_step_0(self, weights_digest: str | None) -> None:
        trained = self.definition.num_parameters(self.definition.trainable_paths())
        total = self.definition.num_parameters()
        self.say(f"parameters: {total:,}; trained: {trained:,} ({trained / total:.3%})")
        run = self.asked_config
        run_directory.write_config(self.directory, run)
        manifest.write(
            self.directory / run_directory.MANIFEST,
            {
                **manifest.environment(),
                "name": run.name,
                "config": run.model_dump(mode="json"),
                "config_hash": run.science_hash(),
                "max_steps": self.run_config.optimizer.num_steps,
                "seed": run.seed,
                "prng": str(jax.config.jax_default_prng_impl),
                "threefry_partitionable": bool(jax.config.jax_threefry_partitionable),
                "devices": [str(device) for device in self.mesh.devices.flat],
                "device_kind": jax.devices()[0].device_kind,
                "mesh": dict(self.mesh.shape),
                "processes": jax.process_count(),
                "tokenizer": {"name": self.tokenizer.name, "digest": self.tokenizer.digest},
                "data": datasets.describe(self.data),
                "parameters": total,
                "trainable_parameters": trained,
                "start_checkpoint_digest": weights_digest,
            },
        )
        path = self.directory / run_directory.PLAN
        run_directory.write_json(path, self.plan.model_dump(mode="json"))

    def _take_samples(
        self, writer: metrics.Writer, step: int, params: definition_lib.Params
    ) -> None:
        run = self.run_config
        generator = engine.TextGenerator(self.prompt_definition, params, self.tokenizer)
        completions = generator.complete(
            run_checks.sample_prompts(run, self.tokenizer),
            max_tokens=run.evaluate.sample_max_tokens,
            seed=run.seed,
        )
        if not distributed.is_main():
            return
        texts = [completion.text for completion in completions]
        for number, text in enumerate(texts):
            writer.log_text(step, f"sample/{number}", text)
        run_directory.write_samples(self.directory, step, run.evaluate.sample_prompts, texts)


def _on_main_path(work: Callable[[], Path]) -> Path:
    return Path(distributed.on_main(lambda: str(work())))


def _conclude(directory: Path, outcome: loop.Outcome, wall_s: float) -> Path:
    """Write what a whole run measured, and its report; return where that is."""
    run_directory.write_json(
        directory / run_directory.MEASURED,
        {
            "peak_memory_bytes": _peak_memory_bytes(),
            "seconds_per_step": outcome.seconds_per_step,
            "wall_s": wall_s,
            "steps": outcome.step,
            "reason": outcome.reason,
        },
    )
    run_directory.write_comparison(directory)
    return report.write_report(directory)


def _finished_report(directory: Path) -> Path:
    """Return the report of a finished run; write it where a kill came in between."""
    path = directory / report.REPORT_FILE
    if path.is_file():
        return path
    run_directory.write_comparison(directory)
    return report.write_report(directory)


def _use_compilation_cache() -> None:
    """Keep compiled programs between runs, in the user's cache folder."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path(COMPILATION_CACHE).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _peak_memory_bytes() -> int:
    """Return the peak of device memory where the backend tells, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    if peak:
        return int(peak)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def runtime_of(run: run_config.RunConfig, plan: plan_lib.Plan) -> decoder_lib.Runtime:
    """Return how the run's model computes on the plan's machine."""
    dtype = precision.dtype_of(run.precision.compute)
    placement = expert_parallel.Placement(
        implementation=experts.choose_implementation("auto", plan.platform, dtype),
        transport=expert_parallel.choose_transport(plan.experts_transport or "auto", plan.platform),
        buffer_factor=run.stage.experts.buffer_factor,
        chunk_tokens=expert_shards.CHUNK_TOKENS if plan.is_recomputed else None,
    )
    return decoder_lib.Runtime(
        compute_dtype=dtype,
        attention=attention.choose_implementation(plan.attention, plan.platform, dtype),
        experts=placement,
        context=plan.context_form,
        remat=plan.remat,
        mlp_chunk_tokens=plan.mlp_chunk_tokens,
    )
