"""Checks of what a run reads and writes on this machine: each fails for its planted fault."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from data_pipelines import prepare
from launch import checks_output
from launch import commands
from mistral_jax import storage
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.formats import peft
from mistral_jax.storage import upload
from tests import checkpoint_on_disk
from tests.launch import preflights
from tests.launch.preflights import context
from tests.launch.preflights import fails
from tests.launch.preflights import look
from tests.launch.preflights import passes


@pytest.fixture
def place(tmp_path, monkeypatch):
    preflights.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(tokenizer):
    made = prepare.prepare(
        "texts", "prepared", tokenizer=tokenizers.load_tokenizer(tokenizer), eval_fraction=0.0
    )
    return made.folder


def write_list(folder, *, is_complete):
    """Write the list of a folder's files as an upload leaves it."""
    files = {
        path.name: {"size_bytes": path.stat().st_size, "sha256": storage.digest(path)}
        for path in folder.iterdir()
        if path.is_file()
    }
    content = {"complete": is_complete, "files": files}
    (folder / upload.LIST_NAME).write_text(json.dumps(content))


def test_every_file_that_the_config_names_must_be_here(place):
    passes("files of the config", context())
    answer = fails("files of the config", context("data.eval=held_out", "data.tokenizer=t.json"))
    assert "data.eval 'held_out'" in answer.detail and "data.tokenizer 't.json'" in answer.detail


def test_what_is_not_here_fails_where_no_new_machine_can_have_it(place):
    new = {"target": "g5_2xlarge"}
    assert (
        "no new machine has it"
        in fails("files of the config", context("data.train=x", **new)).detail
    )
    own = context("data.train=x", "launcher.host=gpu1", **new)
    assert fails("files of the config", own, status="warning").fix == "ls -d x"
    image = context("data.train=/data/x", **new)
    fails("files of the config", image, status="warning")
    assert look("training data", image).status == "skipped"


def test_training_data_must_hold_documents(place):
    passes("training data", context())
    Path("empty").mkdir()
    fails("training data", context("data.train=empty"))
    Path("empty/nothing.md").touch()
    fails("training data", context("data.train=empty"))
    Path("none.md").touch()
    fails("training data", context("data.train=none.md"))


def test_a_row_that_is_no_document_is_named(place):
    rows = Path("rows.jsonl")
    rows.write_text('{"text": "one"}\n{"txt": "two"}\n{"text": "three"}\n')
    answer = fails("training data", context("data.train=rows.jsonl"), status="warning")
    assert "row 2" in answer.detail and answer.fix == "sed -n 2p rows.jsonl"
    rows.write_text('{"text": "one"\n')
    assert "row 1: not JSON" in fails("training data", context("data.train=rows.jsonl")).detail
    rows.write_text('{"text": "one"}\n{"text": "three"}\n')
    passes("training data", context("data.train=rows.jsonl"))


def test_a_prepared_folder_must_be_whole(place):
    folder = prepared("base")
    seen = context(f"data.train={folder}")
    assert "prepared, 0 eval, 1 train" in passes("training data", seen).detail
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    (folder / "pipeline_state.json").write_text("{}")
    answer = fails("training data", seen)
    assert "prepare has not ended" in answer.detail and answer.fix.startswith("./run prepare")
    (folder / "manifest.json").write_bytes(manifest.replace(b'"version"', b'"versoin"'))
    assert "data manifest of version 1" in fails("training data", seen).detail
    (folder / "manifest.json").write_bytes(manifest)
    shard = next((folder / "train").glob("*.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-7])
    assert str(shard) in fails("training data", seen).detail
    shard.unlink()
    assert "it is not there" in fails("training data", seen).detail


def test_a_prepared_folder_must_be_of_the_runs_cap(place):
    folder = prepared("base")
    answer = fails(
        "training data", context(f"data.train={folder}", "data.max_examples_per_document=20")
    )
    assert "prepared with max_examples_per_document None, the run's is 20" in answer.detail
    assert answer.fix.endswith("--max-examples-per-document 20")
    looked_at = context(f"data.eval={folder}", "data.max_examples_per_document=20")
    passes("held-out data", looked_at)


def test_a_half_copied_dataset_is_refused_by_its_list(place):
    write_list(place / "texts", is_complete=False)
    assert "copy has not ended" in fails("training data", context()).detail
    write_list(place / "texts", is_complete=True)
    passes("training data", context())


def test_held_out_data_is_looked_at_like_training_data(place):
    passes("held-out data", context())
    fails("held-out data", context("data.eval_fraction=0.0"), status="warning")
    Path("bad.jsonl").write_text("x\n")
    assert "row 1" in fails("held-out data", context("data.eval=bad.jsonl")).detail
    passes("held-out data", context("data.eval=texts"))


def test_a_tokenizer_must_load_and_fit_the_model(place):
    passes("tokenizer", context())
    answer = fails("tokenizer", context("data.tokenizer=mistral-common:v3"))
    assert "32768 tokens, the model 384" in answer.detail
    Path("base/tokenizer.json").write_text("{")
    fails("tokenizer", context())


def test_data_of_another_tokenizer_is_refused(place):
    folder = prepared("bytes")
    answer = fails("tokenizer of the data", context(f"data.train={folder}"))
    assert "'bytes'" in answer.detail and "--tokenizer base" in answer.fix
    passes("tokenizer of the data", context(f"data.train={folder}", "data.tokenizer=bytes"))
    passes("tokenizer of the data", context())


def test_a_base_checkpoint_must_be_complete(place):
    assert "21 tensors" in passes("base model", context()).detail
    shard = Path("base") / checkpoint_on_disk.SHARDS[1]
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-3])
    assert "truncated" in fails("base model", context()).detail
    shard.unlink()
    fails("base model", context())
    shard.write_bytes(raw)
    settings = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps(settings | {"intermediate_size": 64}))
    assert "gate_proj" in fails("base model", context()).detail


def test_a_base_that_is_not_what_its_list_says_is_found_by_digest(place):
    passes("base model's digests", context())
    write_list(place / "base", is_complete=True)
    assert "by digest" in passes("base model's digests", context()).detail
    shard = Path("base") / checkpoint_on_disk.SHARDS[0]
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    passes("base model", context())
    assert fails("base model's digests", context()).fix == f"sha256sum {shard}"
    write_list(place / "base", is_complete=False)
    assert "has not ended" in fails("base model's digests", context()).detail


def test_an_adapter_is_no_base_and_is_told_its_base(place):
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
                "base_model_name_or_path": "base", "bias": "none"}  # fmt: skip
    folder = Path("adapter")
    folder.mkdir()
    (folder / peft.CONFIG_NAME).write_text(json.dumps(settings))
    shutil.copy(Path("base") / checkpoint_on_disk.SHARDS[0], folder / peft.WEIGHTS_NAME)
    answer = fails("adapter", context("model.weights=adapter"))
    assert answer.fix.startswith("./run merge adapter adapter-merged --base base")
    passes("adapter", context())


def saved_run(*overrides, weights=None):
    """Write what a run leaves in its output before step 0."""
    run = load.load_run("run.yaml", ["output=out", *overrides])
    Path("out").mkdir(exist_ok=True)
    Path("out/config.yaml").write_text(load.dump_yaml(run))
    digests = weights or {
        name: storage.digest(Path("base") / name) for name in checkpoint_on_disk.SHARDS
    }
    began = " ".join(f"{name}:{digest}" for name, digest in digests.items())
    Path("out/manifest.json").write_text(json.dumps({"start_checkpoint_digest": began}))


def test_an_adapter_of_another_base_is_refused(place):
    saved_run()
    assert "the base that the run began from" in passes("adapter", context("output=out")).detail
    saved_run(weights=dict.fromkeys(checkpoint_on_disk.SHARDS, "0" * 64))
    answer = fails("adapter", context("output=out"))
    assert "not of base" in answer.detail and "fresh=true" in answer.fix


def test_samples_that_exceed_the_models_positions_are_refused(place):
    prompt = "evaluate.sample_prompts=[aaaaaaaaaa]"
    passes("samples", context(prompt))
    answer = fails("samples", context(prompt, "evaluate.sample_max_tokens=60"))
    assert answer.fix.endswith("evaluate.sample_max_tokens=54")


def test_the_science_hash_is_held_against_the_last_run_in_the_output(place):
    passes("experiment", context("output=out"))
    saved_run()
    assert "goes on there" in passes("experiment", context("output=out")).detail
    passes("experiment", context("output=out", "checkpoint.every_steps=3"))
    changed = context("output=out", "optimizer.learning_rate=1e-4")
    answer = fails("experiment", changed)
    assert "optimizer.learning_rate: 0.001 -> 0.0001" in answer.detail
    assert answer.fix.endswith("fresh=true")
    passes("experiment", context("output=out", "optimizer.learning_rate=1e-4", "fresh=true"))
    Path("out/measured.json").write_text("{}")
    fails("experiment", context("output=out"), status="warning")
    assert look("experiment", context("output=out", target="g5_2xlarge")).status == "skipped"


def test_an_output_that_is_held_or_cannot_be_written_is_refused(place):
    passes("output folder", context("output=out"))
    Path("file").touch()
    assert "is a file" in fails("output folder", context("output=file/out")).detail
    Path("out").mkdir()
    with Path("out/.train.lock").open("a") as lock:
        passes("output in use", context("output=out"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "trains in out now" in fails("output in use", context("output=out")).detail


def test_a_run_that_is_under_way_itself_is_no_reason_to_refuse_an_attaching_launch(
    place, monkeypatch
):
    monkeypatch.setattr(commands, "ROOT", Path.cwd())
    folder = commands.launch_folder(context("output=out").run)
    for made in (folder, Path("out")):
        made.mkdir(parents=True)
    with Path("out/.train.lock").open("a") as train, (folder / "lock").open("a") as supervisor:
        fcntl.flock(train, fcntl.LOCK_EX)
        fails("output in use", context("output=out"))
        fcntl.flock(supervisor, fcntl.LOCK_EX)
        assert "attaches" in passes("output in use", context("output=out")).detail
        fails("output in use", context("output=out", "seed=8"))  # of another run it is


def test_checkpoints_need_their_disk(place, monkeypatch):
    seen = context()
    need = checks_output.checkpoint_bytes(seen)
    trained = 2 * 2 * ((32 + 32) + (32 + 16))  # layers, rank, in and out of q_proj and v_proj
    assert need == int((trained * 12 + 64) * 4 * 1.2)
    passes("checkpoint disk", seen)
    monkeypatch.setattr(storage, "free_bytes", lambda path: need - 1)
    answer = fails("checkpoint disk", context())
    assert "checkpoint.keep_last=1" in answer.fix
