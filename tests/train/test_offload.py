"""Layer inputs and optimizer state on the host: the numbers stay, and a run goes on from disk."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from launch import target as target_lib
from mistral_jax import metrics
from mistral_jax import sharding
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from tests import test_job

PATH = "layers/mlp/gate_proj/kernel"


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_a_state_on_the_host_gives_the_updates_of_one_on_the_device(moments: str) -> None:
    config = optimizer_config.AdamW(learning_rate=0.1, max_steps=10, moments=moments)
    mesh = sharding.single_device_mesh()
    lies = {PATH: sharding.named(("layer", "embed", "mlp"), (2, 64, 256), mesh)}
    params = {PATH: jnp.ones((2, 64, 256))}
    gradient = {PATH: jax.random.normal(jax.random.key(0), (2, 64, 256))}
    plain = optimizers.make_optimizer(config)
    on_device = state_lib.create(params, plain, 0, mesh, lies)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), on_device
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state_lib.on_host(abstract))
    on_host = jax.device_put(on_device, shardings)
    waiting = optimizers.with_state_on_host(plain)
    for _ in range(2):
        expected, opt_state = jax.jit(plain.update)(gradient, on_device.opt_state, params)
        on_device = state_lib.TrainState(0, params, opt_state, None)
        update = jax.jit(waiting.update, out_shardings=(None, shardings.opt_state))
        found, opt_state = update(gradient, on_host.opt_state, params)
        on_host = state_lib.TrainState(0, params, opt_state, None)
        assert jnp.array_equal(found[PATH], expected[PATH])
    arrays = [leaf for leaf in jax.tree.leaves(on_host.opt_state) if leaf.ndim]
    assert len(arrays) == (4 if moments == "int8" else 2)
    assert {leaf.sharding.memory_kind for leaf in arrays} == {state_lib.HOST_MEMORY}


def test_a_run_with_both_on_the_host_has_the_losses_of_full_remat_and_resumes(
    tmp_path: Path,
) -> None:
    (tmp_path / "docs").mkdir()
    for number in range(8):
        text = f"Document {number} tells of rivers, lakes and {number * 37} boats. " * 6
        (tmp_path / "docs" / f"{number}.txt").write_text(text)
    text = (target_lib.TARGETS / "local_cpu.yaml").read_text()
    losses = {}
    for name, lines in (("full", "remat: full"), ("host", "remat: offload\noffload: optimizer")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"{text}\n{lines}\n")
        run = tmp_path / name
        test_job.train(tmp_path, f"output={run}", target=str(path))
        losses[name] = test_job.hex_losses(run)
    assert len(losses["full"]) == test_job.NUM_STEPS
    assert losses["host"] == losses["full"]
    shutil.rmtree(run / "checkpoints" / str(test_job.NUM_STEPS))
    (run / "measured.json").unlink()
    lines = (run / metrics.METRICS_FILE).read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 2]
    (run / metrics.METRICS_FILE).write_text("\n".join(kept) + "\n")
    _, said = test_job.train(tmp_path, f"output={run}", target=str(path))
    assert f"going on at step 2 of {test_job.NUM_STEPS}" in said
    assert test_job.hex_losses(run) == losses["full"]
