"""One run from its config: plan, data, model, state, loop, and what is written about it.

The run directory holds everything. The same config finds it again and goes on; a changed one is
refused with the difference named; `fresh` starts beside it.
"""

import contextlib
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines import inputs
from launch import plan as plan_lib
from launch import target as target_lib
from mistral_jax import artifact
from mistral_jax import checkpoint
from mistral_jax import datasets
from mistral_jax import manifest
from mistral_jax import metrics
from mistral_jax import precision
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax import templates
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.config import model as model_config
from mistral_jax.config import run as run_config
from mistral_jax.formats import locate
from mistral_jax.generate import engine
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import weights
from mistral_jax.nn import attention
from mistral_jax.report import write as report
from mistral_jax.train import held_out
from mistral_jax.train import loop
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib

# What a resumed run may change: it does not touch the numbers.
COMPILATION_CACHE = "~/.cache/mistral_jax/compiled"


class ResumeRefused(ValueError):
    """The run directory is of another experiment; the message names each difference."""

    exit_code = 3  # refused by a gate; see cli.py


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

    Raises:
        ResumeRefused: the directory holds another experiment.
        ValueError: bad input; see the message.
    """
    started = time.monotonic()
    machine = target_lib.load_target(target)
    _check_platform(machine)
    decoder = artifact.resolve_decoder(run.model)
    plan = plan_lib.resolve(run, machine, decoder=decoder)
    tokenizer = artifact.find_tokenizer(run)
    _check_tokenizer(tokenizer, decoder)
    directory = _directory(run, fresh=fresh)
    finished = _finished(directory, run)
    if finished is not None:
        return finished
    _refuse_other_experiment(directory, run)
    use_compilation_cache()
    job = _Job(run, plan, decoder, tokenizer, directory, say)
    outcome = job.run()
    wall_s = time.monotonic() - started
    return job.conclude(outcome, wall_s)


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
        self.directory, self.say = directory, say
        devices = jax.devices()[: plan.num_devices]
        self.mesh = sharding.make_mesh(plan.mesh, devices)
        self.definition = definition_lib.define(
            decoder, adapter=run.adapter, runtime=_runtime(run, plan)
        )
        if run.model.weights is not None:
            weights.check(self.definition, locate.local_path(run.model.weights))
        self.optimizer = optimizers.make_optimizer(run.optimizer)
        abstract = artifact.abstract_state(self.definition, run, self.mesh)
        self.state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        checkpoint.check_disk(directory, abstract, run.checkpoint)
        folder = datasets.data_folder(directory)
        with _no_empty_folders(directory, folder):
            self.data = inputs.open_sources(run.data, tokenizer, folder, on_progress=say)
        self.checkpointer = checkpoint.Checkpointer(
            directory / artifact.CHECKPOINTS, run.checkpoint
        )
        self.restored, complaints = self.checkpointer.restore_newest(abstract)
        for complaint in complaints:
            say(f"set aside a damaged checkpoint: {complaint}")
        self.frozen, self.weights_path = artifact.load_frozen(self.definition, run, self.mesh)

    def run(self) -> loop.Outcome:
        """Write the manifest, then train to the end or to a signal."""
        start_step = 0 if self.restored is None else self.restored.step
        self._write_before_step_0(start_step)
        state = self._start_state() if self.restored is None else self.restored.state
        saved_data = None if self.restored is None else self.restored.record["data"]
        stream = datasets.train_stream(self.run_config, self.data, state=saved_data)
        if start_step:
            self.say(f"going on at step {start_step} of {self.run_config.optimizer.max_steps}")
        with metrics.MetricsWriter(
            self.directory,
            total_steps=self.run_config.optimizer.max_steps,
            resume_step=start_step,
        ) as writer:
            return loop.fit(
                self._parts(stream, writer),
                state,
                start_step=start_step,
                eval_history=() if self.restored is None else self.restored.record["eval_history"],
            )

    def _parts(self, stream: Any, writer: metrics.MetricsWriter) -> loop.Parts:
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
            eval_step=step_lib.make_eval_step(self.definition),
            frozen=self.frozen,
            stream=stream,
            eval_sets=datasets.held_out_batches(run, self.data, rows),
            accumulation=plan.accumulation,
            checkpointer=self.checkpointer,
            writer=writer,
            flops_per_step=plan.model_flops_per_token * tokens,
            peak_flops_per_s=None if plan.platform == "cpu" else plan.peak_flops_per_s,
            take_samples=self._take_samples if run.evaluate.sample_prompts else None,
            save_evaluation=self._save_evaluation,
        )

    def _start_state(self) -> state_lib.TrainState:
        run, definition = self.run_config, self.definition
        paths = definition.trainable_paths()
        if run.adapter.kind == "none" and self.weights_path is not None:
            params = weights.load_params(definition, self.weights_path, self.mesh)
        else:
            params = definition_lib.initialise(definition, rng.seed_key(run.seed), self.mesh, paths)
        return state_lib.create(
            params, self.optimizer, run.seed, self.mesh, definition.shardings(self.mesh)
        )

    def _write_before_step_0(self, start_step: int) -> None:
        trained = self.definition.num_parameters(self.definition.trainable_paths())
        total = self.definition.num_parameters()
        self.say(f"parameters: {total:,}; trained: {trained:,} ({trained / total:.3%})")
        if start_step:
            return
        run = self.run_config
        (self.directory / artifact.CONFIG_NAME).write_text(load.dump_yaml(run), encoding="utf-8")
        manifest.write(
            self.directory / "manifest.json",
            {
                **manifest.environment(),
                "name": run.name,
                "config": run.model_dump(mode="json"),
                "config_hash": run.science_hash(),
                "seed": run.seed,
                "prng": str(jax.config.jax_default_prng_impl),
                "threefry_partitionable": bool(jax.config.jax_threefry_partitionable),
                "devices": [str(device) for device in self.mesh.devices.flat],
                "device_kind": jax.devices()[0].device_kind,
                "mesh": dict(self.mesh.shape),
                "tokenizer": {"name": self.tokenizer.name, "digest": self.tokenizer.digest},
                "data": datasets.describe(self.data),
                "parameters": total,
                "trainable_parameters": trained,
                "start_checkpoint_digest": _weights_digest(self.weights_path),
            },
        )
        _write_json(self.directory / "plan.json", self.plan.model_dump(mode="json"))

    def _take_samples(self, step: int, params: definition_lib.Params) -> None:
        run = self.run_config
        prompts = [prompt_tokens(text, self.tokenizer) for text in run.evaluate.sample_prompts]
        generator = engine.TextGenerator(self.definition, params, self.tokenizer)
        completions = generator.complete(
            prompts, max_tokens=run.evaluate.sample_max_tokens, seed=run.seed
        )
        samples = [
            {"prompt": prompt, "text": completion.text}
            for prompt, completion in zip(run.evaluate.sample_prompts, completions, strict=True)
        ]
        path = self.directory / "samples" / f"step_{step:06d}.json"
        _write_json(path, {"step": step, "samples": samples})

    def _save_evaluation(self, step: int, losses: dict[str, held_out.RowLosses]) -> None:
        content = {
            source: {
                "loss": rows.loss,
                "sums": rows.sums.tolist(),
                "weights": rows.weights.tolist(),
            }
            for source, rows in losses.items()
        }
        _write_json(self.directory / "evals" / f"step_{step:06d}.json", content)

    def conclude(self, outcome: loop.Outcome, wall_s: float) -> Result:
        """Release what is open; after a whole run, write what the report shows."""
        self.checkpointer.close()
        if outcome.reason.startswith("SIG"):
            self.say(
                f"{outcome.reason}: saved at step {outcome.step}; run the same command to go on"
            )
            return Result(self.directory, outcome.reason, outcome.step, None)
        _write_json(
            self.directory / "measured.json",
            {
                "peak_memory_bytes": peak_memory_bytes(),
                "seconds_per_step": outcome.seconds_per_step,
                "wall_s": wall_s,
                "steps": outcome.step,
                "reason": outcome.reason,
            },
        )
        write_comparison(self.directory)
        path = report.write_report(self.directory)
        return Result(self.directory, outcome.reason, outcome.step, path)


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in the user's cache folder."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path(COMPILATION_CACHE).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def prompt_tokens(text: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Return a prompt as the model expects it: as a chat where it has a template, else plain."""
    if tokenizer.chat_template is not None and tokenizer.name != "bytes":
        return templates.render_prompt([{"role": "user", "content": text}], tokenizer)
    return tokenizer.encode(text, bos=tokenizer.add_bos)


def write_comparison(directory: Path) -> None:
    """Write eval.json: held-out loss at the first and the last evaluation, paired by row."""
    files = sorted((directory / "evals").glob("step_*.json"))
    if len(files) < 2:
        return
    *earlier, last = (json.loads(path.read_text(encoding="utf-8")) for path in files)
    sources = {}
    for name, content in last.items():
        after = _row_losses(content)
        # A run that went on with another evaluate.max_rows has rows that are not paired.
        candidates = (_row_losses(side[name]) for side in earlier if name in side)
        before = next((rows for rows in candidates if len(rows.sums) == len(after.sums)), None)
        if before is None:
            continue
        difference, low, high = held_out.paired_interval(before, after)
        sources[name] = {
            "rows": len(before.sums),
            "before": before.loss,
            "after": after.loss,
            "difference": difference,
            "interval_low": low,
            "interval_high": high,
        }
    _write_json(directory / "eval.json", {"sources": sources})


def _row_losses(content: dict[str, Any]) -> held_out.RowLosses:
    return held_out.RowLosses(np.asarray(content["sums"]), np.asarray(content["weights"]))


def peak_memory_bytes() -> int:
    """Return the peak of device memory where the backend tells, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    if peak:
        return int(peak)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _directory(run: run_config.RunConfig, *, fresh: bool) -> Path:
    directory = Path(run.run_directory()).expanduser()
    if not fresh:
        return directory
    number = 2
    while directory.exists():
        directory = directory.with_name(f"{Path(run.run_directory()).name}-{number}")
        number += 1
    return directory


@contextlib.contextmanager
def _no_empty_folders(directory: Path, data: Path) -> Iterator[None]:
    """Make a run directory; where the work in it is refused, take away what stayed empty."""
    missing = [p for p in (directory, *directory.parents) if not p.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except ValueError:
        for folder in (*data.glob("*"), data, *missing):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _finished(directory: Path, run: run_config.RunConfig) -> Result | None:
    measured = directory / "measured.json"
    if not measured.is_file():
        return None
    _refuse_other_experiment(directory, run)
    steps = json.loads(measured.read_text(encoding="utf-8"))["steps"]
    path = directory / "report.html"
    return Result(directory, "finished_before", steps, path if path.is_file() else None)


def _refuse_other_experiment(directory: Path, run: run_config.RunConfig) -> None:
    saved = directory / artifact.CONFIG_NAME
    if not saved.is_file():
        return
    found = manifest.differences(load.load_run(saved).science(), run.science())
    if found:
        raise ResumeRefused(
            f"{directory} holds another experiment; {'; '.join(found)}; "
            "set these back, choose another output=, or start beside it with fresh=true"
        )


def _check_platform(machine: target_lib.Target) -> None:
    found = jax.default_backend()
    if found != machine.platform or len(jax.devices()) < machine.num_chips:
        raise ValueError(
            f"target {machine.name} wants {machine.num_chips} {machine.platform} device(s), but "
            f"jax sees {len(jax.devices())} of {found}; choose another --target, or run "
            "`mistral-jax doctor`"
        )


def _check_tokenizer(tokenizer: tokenizers.Tokenizer, decoder: model_config.DecoderConfig) -> None:
    if tokenizer.vocab_size > decoder.vocab_size:
        raise ValueError(
            f"data.tokenizer: {tokenizer.name} has {tokenizer.vocab_size} tokens, but the model's "
            f"vocabulary is {decoder.vocab_size}; use the model's own tokenizer (auto)"
        )


def _runtime(run: run_config.RunConfig, plan: plan_lib.Plan) -> decoder_lib.Runtime:
    dtype = precision.dtype_of(run.precision.compute)
    name = attention.choose_implementation(plan.attention, plan.platform, dtype)
    return decoder_lib.Runtime(compute_dtype=dtype, attention=name, remat=plan.remat)


def _weights_digest(path: Path | None) -> str | None:
    if path is None:
        return None
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    names = [p for p in files if p.suffix in (".safetensors", ".gguf")]
    digests = [f"{p.name}:{manifest.storage.digest(p)}" for p in names]
    return " ".join(digests)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
