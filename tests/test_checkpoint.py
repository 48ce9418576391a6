"""Checkpoints come back bit for bit, or say which array or file is not what was saved."""

import errno
import gc
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import array_digest
from mistral_jax import checkpoint
from mistral_jax import sharding
from mistral_jax.config.evaluate import CheckpointConfig

KEEP_ALL = CheckpointConfig(keep_last=10, keep_best=0)


def make_state(seed: int) -> dict:
    """Return a small state with the dtypes and the nesting of a training state."""
    generator = np.random.default_rng(seed)
    where = sharding.replicated(sharding.single_device_mesh())
    state = {
        "step": np.int32(seed),
        "params": {
            "layers/mlp/up_proj/kernel": generator.normal(size=(2, 16, 24)).astype(np.float32),
            "embed/embedding": jnp.asarray(generator.normal(size=(40, 16)), jnp.bfloat16),
        },
        "opt": (np.float32(0.5), [generator.normal(size=(3,)).astype(np.float32)]),
        "key": generator.integers(0, 2**32, 2, dtype=np.uint32),
    }
    return jax.device_put(state, where)


def abstract(state: dict) -> dict:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_equal(found: dict, expected: dict) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
        assert left.sharding == right.sharding


def save(folder: Path, *steps: int, config: CheckpointConfig = KEEP_ALL, **losses: float) -> None:
    """Save steps; `losses` are held-out losses by s<step>."""
    saver = checkpoint.Checkpointer(folder, config)
    for step in steps:
        record = {"data": {"block": step}, "eval_history": [1.5]}
        saver.save(step, make_state(step), record, eval_loss=losses.get(f"s{step}"))
    saver.close()


def restore_newest(folder: Path) -> tuple[checkpoint.Restored | None, list[str]]:
    saver = checkpoint.Checkpointer(folder, KEEP_ALL)
    try:
        return saver.restore_newest(abstract(make_state(0)))
    finally:
        saver.close()


def test_a_step_comes_back_bit_for_bit_with_its_record(tmp_path: Path) -> None:
    save(tmp_path / "c", 3, 7, s7=2.25)
    restored, complaints = restore_newest(tmp_path / "c")
    assert complaints == []
    assert restored is not None and restored.step == 7
    assert_equal(restored.state, make_state(7))
    assert restored.record["data"] == {"block": 7}
    saver = checkpoint.Checkpointer(tmp_path / "c", KEEP_ALL)
    assert_equal(saver.restore(abstract(make_state(0)), 3).state, make_state(3))
    assert saver.read_record(7)["eval_loss"] == 2.25
    saver.close()


def test_a_saved_state_does_not_change_when_its_buffers_are_donated(tmp_path: Path) -> None:
    saver = checkpoint.Checkpointer(tmp_path / "c", KEEP_ALL)
    state = make_state(1)
    saver.save(1, state, {})
    jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)(state)
    saver.close()
    restored, _ = restore_newest(tmp_path / "c")
    assert restored is not None
    assert_equal(restored.state, make_state(1))


def test_an_empty_folder_has_nothing_to_restore(tmp_path: Path) -> None:
    assert restore_newest(tmp_path / "c") == (None, [])


def test_the_last_and_the_best_steps_are_kept(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=2, keep_best=1)
    save(tmp_path / "c", 1, 2, 3, 4, 5, config=config, s1=3.0, s2=1.0, s3=2.0, s4=2.0, s5=2.0)
    saver = checkpoint.Checkpointer(tmp_path / "c", config)
    assert saver.steps() == [2, 4, 5]
    assert saver.best_step() == 2
    saver.close()


def test_a_reopened_folder_still_keeps_the_best_step(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=1, keep_best=1)
    save(tmp_path / "c", 1, 2, 3, config=config, s1=3.0, s2=1.0, s3=2.0)
    save(tmp_path / "c", 4, 5, config=config, s4=2.5)
    saver = checkpoint.Checkpointer(tmp_path / "c", config)
    assert (saver.steps(), saver.best_step()) == ([2, 5], 2)
    saver.close()


def test_a_reader_leaves_the_save_of_a_live_training_alone(tmp_path: Path) -> None:
    save(tmp_path / "c", 1, s1=2.0)
    under_way = tmp_path / "c" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "c" / "1", under_way)
    reader = checkpoint.Checkpointer(tmp_path / "c", KEEP_ALL, is_reader=True)
    assert (reader.steps(), reader.best_step()) == ([1], 1)
    assert_equal(reader.restore(abstract(make_state(0)), 1).state, make_state(1))
    reader.close()
    assert under_way.is_dir()


@pytest.mark.parametrize("nan", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path: Path, nan: float) -> None:
    config = CheckpointConfig(keep_last=1, keep_best=1)
    save(tmp_path / "c", 1, 2, 3, config=config, s1=nan, s2=3.0, s3=nan)
    saver = checkpoint.Checkpointer(tmp_path / "c", config)
    assert saver.best_step() == 2
    assert saver.steps() == [2, 3]
    saver.close()


def test_without_any_evaluation_there_is_no_best_step(tmp_path: Path) -> None:
    save(tmp_path / "c", 1, 2)
    saver = checkpoint.Checkpointer(tmp_path / "c", KEEP_ALL)
    assert saver.best_step() is None
    saver.close()


def flip_bit(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] ^= 1 << (position % 8)
    path.write_bytes(raw)


def array_files(step: Path) -> list[Path]:
    """Return the files that hold array data: the large ones below the state item."""
    files = [p for p in (step / "state").rglob("*") if p.is_file()]
    return sorted(p for p in files if p.parent.name == "d" and p.stat().st_size > 500)


def test_a_flipped_bit_in_the_arrays_is_found_and_the_step_before_is_taken(tmp_path: Path) -> None:
    save(tmp_path / "sound", 1, 2)
    files = [p.relative_to(tmp_path / "sound") for p in array_files(tmp_path / "sound" / "2")]
    assert files
    found = 0
    for trial in range(8):
        folder = tmp_path / f"c{trial}"
        shutil.copytree(tmp_path / "sound", folder)
        flip_bit(folder / files[trial % len(files)], 977 * trial + 211)
        restored, complaints = restore_newest(folder)
        assert restored is not None
        if restored.step == 2:  # the bit was in a part that nothing reads
            assert_equal(restored.state, make_state(2))
            continue
        found += 1
        assert_equal(restored.state, make_state(1))
        assert len(complaints) == 1
        assert f"{folder}/2: " in complaints[0]
        assert (tmp_path / f"c{trial}-damaged" / "2").is_dir()
        assert restore_newest(folder)[1] == []
    assert found >= 4


def test_a_digest_that_does_not_match_names_the_array(tmp_path: Path) -> None:
    save(tmp_path / "c", 1)
    path = tmp_path / "c" / "1" / "digests" / "metadata"
    digests = json.loads(path.read_text())
    digests["params/embed/embedding"] = "00000000-1280"
    path.write_text(json.dumps(digests))
    message = (
        r"no sound checkpoint is left; .*c/1: array params/embed/embedding is not what was saved"
    )
    with pytest.raises(checkpoint.CheckpointCorrupt, match=message):
        restore_newest(tmp_path / "c")


def test_a_changed_record_is_found(tmp_path: Path) -> None:
    """The data position is as much a part of the step as its arrays."""
    save(tmp_path / "c", 1, 2)
    path = tmp_path / "c" / "2" / "record" / "metadata"
    text = path.read_text()
    assert '"block": 2' in text
    path.write_text(text.replace('"block": 2', '"block": 3'))
    restored, complaints = restore_newest(tmp_path / "c")
    assert restored is not None and restored.step == 1
    assert "c/2: record is not what was saved" in complaints[0]


@pytest.mark.parametrize("fault", ["truncate", "remove"])
def test_a_damaged_record_is_named_and_another_step_is_the_best(tmp_path: Path, fault: str) -> None:
    save(tmp_path / "c", 1, 2, s1=2.0, s2=1.0)
    path = tmp_path / "c" / "2" / "record" / "metadata"
    if fault == "truncate":
        path.write_bytes(path.read_bytes()[:20])
    else:
        path.unlink()
    reader = checkpoint.Checkpointer(tmp_path / "c", KEEP_ALL, is_reader=True)
    with pytest.raises(checkpoint.CheckpointCorrupt, match=f"{tmp_path}/c/2: cannot be read: "):
        reader.read_record(2)
    with pytest.warns(UserWarning, match="left out of the choice of the best step: .*c/2: "):
        assert reader.best_step() == 1
    reader.close()


def with_limit(kind: int, limit: int, action: Callable[[], object]) -> None:
    """Do something while the system allows this process less."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, before[1]))
    try:
        action()
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.filterwarnings("ignore:coroutine", "ignore:unclosed event loop")
def test_a_system_out_of_file_handles_is_no_damage(tmp_path: Path) -> None:
    save(tmp_path / "c", 1, 2)
    saver = checkpoint.Checkpointer(tmp_path / "c", KEEP_ALL)
    with pytest.raises(OSError, match="cannot be read now") as caught:
        with_limit(resource.RLIMIT_NOFILE, 3, lambda: saver.restore_newest(abstract(make_state(0))))
    assert caught.value.errno == errno.EMFILE
    assert saver.steps() == [1, 2]
    assert not (tmp_path / "c-damaged").exists()
    restored, complaints = saver.restore_newest(abstract(make_state(0)))
    assert restored is not None and (restored.step, complaints) == (2, [])
    saver.close()
    del caught
    gc.collect()  # Orbax's half-made event loop complains here, not in a later test


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_up_during_a_save_is_named(tmp_path: Path) -> None:
    save(tmp_path / "c", 1)
    saver = checkpoint.Checkpointer(tmp_path / "c", KEEP_ALL)
    # Arrays of one number would be packed; these do not fit into the largest file allowed.
    state = {"a": jnp.asarray(np.random.default_rng(0).normal(size=20_000), jnp.float32)}

    def save_too_much() -> None:
        saver.save(2, state, {})
        saver.wait()

    with pytest.raises(checkpoint.DiskTooSmall, match=r"the disk is full, .* free some space"):
        with_limit(resource.RLIMIT_FSIZE, 20_000, save_too_much)
    assert restore_newest(tmp_path / "c")[0].step == 1


def test_a_run_whose_checkpoints_were_all_set_aside_does_not_begin_again(tmp_path: Path) -> None:
    save(tmp_path / "c", 1)
    (tmp_path / "c" / "1" / "record" / "metadata").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(checkpoint.CheckpointCorrupt, match="no sound checkpoint is left"):
            restore_newest(tmp_path / "c")
    save(tmp_path / "c", 2)
    assert restore_newest(tmp_path / "c")[0].step == 2


@pytest.mark.parametrize("item", ["state", "record", "digests"])
@pytest.mark.parametrize("fault", ["truncate", "empty", "remove"])
def test_a_damaged_or_missing_file_sets_the_step_aside(
    tmp_path: Path, item: str, fault: str
) -> None:
    save(tmp_path / "c", 1, 2)
    folder = tmp_path / "c" / "2" / item
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "commit_success.txt"]
    target = max(files, key=lambda p: p.stat().st_size)
    if fault == "remove":
        shutil.rmtree(folder)
    else:
        raw = target.read_bytes()
        target.write_bytes(raw[: len(raw) // 2] if fault == "truncate" else b"")
    restored, complaints = restore_newest(tmp_path / "c")
    assert restored is not None and restored.step == 1
    assert_equal(restored.state, make_state(1))
    assert len(complaints) == 1 and f"{tmp_path}/c/2: cannot be read: " in complaints[0]


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "c", 1)
    other = abstract(make_state(0))
    kernel = other["params"]["layers/mlp/up_proj/kernel"]
    other["params"]["layers/mlp/up_proj/kernel"] = jax.ShapeDtypeStruct(
        (2, 16, 25), kernel.dtype, sharding=kernel.sharding
    )
    saver = checkpoint.Checkpointer(tmp_path / "c", KEEP_ALL)
    with pytest.raises(checkpoint.CheckpointCorrupt, match="c/1: "):
        saver.restore(other, 1)
    saver.close()


def test_what_an_interrupted_save_left_is_passed_over_and_gives_way(tmp_path: Path) -> None:
    save(tmp_path / "c", 1)
    leftover = tmp_path / "c" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "c" / "1", leftover)
    (leftover / "commit_success.txt").unlink()
    restored, complaints = restore_newest(tmp_path / "c")
    assert restored is not None and (restored.step, complaints) == (1, [])
    save(tmp_path / "c", 2)
    restored, complaints = restore_newest(tmp_path / "c")
    assert restored is not None and (restored.step, complaints) == (2, [])
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["1", "2"]


def test_a_disk_that_is_too_small_is_refused_before_the_start(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    giant = {"a": jax.ShapeDtypeStruct((free // 8, 2), jnp.float32)}
    message = r"GiB free, but the run's checkpoints need [0-9.]+ GiB; free some space, set output="
    with pytest.raises(checkpoint.DiskTooSmall, match=message) as caught:
        checkpoint.check_disk(tmp_path / "not" / "yet", giant, CheckpointConfig())
    assert caught.value.exit_code == 3
    checkpoint.check_disk(tmp_path / "not" / "yet", make_state(0), CheckpointConfig())
    assert not (tmp_path / "not").exists()
    # Of four copies three are there: one more must fit, and it does.
    copy = {"a": jax.ShapeDtypeStruct((free // 4, 2), jnp.int8)}
    with pytest.raises(checkpoint.DiskTooSmall):
        checkpoint.check_disk(tmp_path, copy, CheckpointConfig(keep_last=2, keep_best=1))
    for step in (1, 2, 3):
        (tmp_path / str(step)).mkdir()
    checkpoint.check_disk(tmp_path, copy, CheckpointConfig(keep_last=2, keep_best=1))


def test_digests_name_every_array_and_see_every_bit() -> None:
    state = make_state(0)
    digests = array_digest.digests_of(state)
    assert set(digests) == {
        "step", "key", "opt/0", "opt/1/0",
        "params/layers/mlp/up_proj/kernel", "params/embed/embedding",
    }  # fmt: skip
    state["params"]["embed/embedding"] = -state["params"]["embed/embedding"]
    changed = array_digest.digests_of(state)
    assert {name for name in digests if digests[name] != changed[name]} == {
        "params/embed/embedding"
    }
    assert checkpoint.size_bytes(state) == 4 + 2 * 16 * 24 * 4 + 40 * 16 * 2 + 4 + 12 + 8
