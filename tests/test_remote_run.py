"""Runs whose output is a bucket: kept there, gone on with elsewhere, read back, or refused."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistral_jax import api
from mistral_jax import convert
from mistral_jax import inspect
from mistral_jax import job
from mistral_jax import remote_run
from mistral_jax import run_directory
from mistral_jax.config import load
from mistral_jax.storage import mirror
from mistral_jax.storage import owner
from mistral_jax.storage import remote_folder
from mistral_jax.storage import upload
from tests import buckets
from tests import fake_s3
from tests import test_job

pytest.importorskip("boto3")
URI = "s3://bucket/models/x"
TINY = [
    *test_job.TINY, "adapter.kind=lora", "adapter.rank=2", "adapter.alpha=4.0",
    "adapter.target_modules=[q_proj]", f"output={URI}",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[fake_s3.Store, Path]]:
    """Return a store with documents and one finished run, and the folder of its machine."""
    folder = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch, buckets.fake(folder, patch) as store:
        for number in range(8):
            text = f"Document {number} tells of rivers, lakes and {number * 37} boats. " * 6
            store.put(f"bucket/docs/{number}.txt", text.encode())
        result, said = train()
        assert (result.reason, result.step) == ("done", 4)
        assert said[0] == f"output: {URI}; here: {result.directory}"
        yield store, folder


@pytest.fixture
def store(
    done: tuple[fake_s3.Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[fake_s3.Store]:
    """Return a store with what the finished run left, seen from another machine."""
    with buckets.fake(tmp_path, monkeypatch) as served:
        served.objects.update(done[0].objects)
        yield served


def train(*overrides: str, fresh: bool = False) -> tuple[job.Result, list[str]]:
    said: list[str] = []
    run = load.load_run(test_job.CONFIG, [*TINY, "data.train=s3://bucket/docs", *overrides])
    return job.train(run, fresh=fresh, say=said.append), said


def cut_back(store: fake_s3.Store) -> None:
    """Leave what a kill after step 2 leaves: step 4 has begun to arrive."""
    mark = f"bucket/models/x/checkpoints/4/{upload.LIST_NAME}"
    store.put(mark, store.objects[mark].raw.replace(b'"complete": true', b'"complete": false'))
    for name in ("measured.json", "report.html", "eval.json", "checkpoints/4/state/manifest.ocdbt"):
        del store.objects[f"bucket/models/x/{name}"]


def test_a_finished_run_is_whole_in_the_bucket(done):
    store, folder = done
    there = remote_folder.look(URI)
    assert there.steps == (2, 4) and {"report.html", "measured.json"} <= set(there.small)
    here = remote_run.local_folder(URI)
    assert here.is_relative_to(folder)
    for name in there.small:
        assert store.objects[f"bucket/models/x/{name}"].raw == (here / name).read_bytes(), name
    assert f"output: {URI}" in (here / "config.yaml").read_text()
    assert owner.read(f"{URI}/.owner/000001.json")["released"]


def test_another_machine_goes_on_bit_for_bit(done, store):
    cut_back(store)
    result, said = train()
    assert (result.reason, result.step) == ("done", 4)
    assert "going on at step 2 of 4" in said
    whole = done[1] / "cache" / result.directory.relative_to(result.directory.parents[1])
    assert test_job.hex_losses(result.directory) == test_job.hex_losses(whole)
    assert remote_folder.look(URI).steps == (2, 4)
    assert (result.directory / "config.yaml").read_text() == (whole / "config.yaml").read_text()
    assert train()[0].reason == "finished_before"


def test_a_finished_run_is_found_by_another_machine(store):
    result, _ = train()
    assert result.reason == "finished_before"
    assert result.report is not None and result.report.is_file()


def test_a_run_is_read_by_its_uri(store, tmp_path, capsys):
    model = api.load(URI, compute="float32")
    assert model.run is not None and model.run.output == URI
    assert api.generate(model, ["Rivers"], max_tokens=3)[0].tokens
    exported = convert.export_model(URI, f"{URI}/adapter", format="peft", dtype="float32")
    assert exported.path == f"{URI}/adapter"
    names = {name.rpartition("/")[2] for name in store.objects if "/adapter/" in name}
    assert {"adapter_model.safetensors", "adapter_config.json", upload.LIST_NAME} <= names
    inspect.show(URI)
    assert "lora" in capsys.readouterr().out
    assert train()[0].reason == "finished_before"  # the export below it is no hindrance


def test_another_experiment_a_busy_output_and_foreign_files_are_refused(store):
    with pytest.raises(run_directory.ResumeRefused, match=rf"{URI} holds another.*seed") as caught:
        train("seed=7")
    assert caught.value.exit_code == 3
    assert not (remote_run.local_folder(URI) / "checkpoints").exists()  # nothing large was fetched
    with owner.Owner(URI, "another"), pytest.raises(owner.InUse) as busy:
        train()
    assert busy.value.exit_code == 3
    store.put("bucket/models/y/model.safetensors", b"weights")
    with pytest.raises(upload.UploadError, match=r"not a run's \(model.safetensors is one\)"):
        train("output=s3://bucket/models/y")


def test_missing_and_half_uploaded_data_are_refused_before_anything_is_written(store):
    with pytest.raises(ValueError, match="s3://bucket/gone: there are no files under this prefix"):
        train("output=s3://bucket/models/new", "data.train=s3://bucket/gone")
    store.put(f"bucket/half/{upload.LIST_NAME}", b'{"complete": false, "files": {}}')
    with pytest.raises(ValueError, match="s3://bucket/half: the upload to it was interrupted"):
        train("output=s3://bucket/models/new", "data.train=s3://bucket/half/a.jsonl")
    left = [name for name in store.objects if name.startswith("bucket/models/new/")]
    assert all("/.owner/" in name for name in left)


def test_a_folder_that_began_elsewhere_is_set_aside(store):
    here = remote_run.local_folder(URI)
    here.mkdir(parents=True)
    (here / "manifest.json").write_text("{}")
    result, said = train()
    assert result.reason == "finished_before"
    assert "began elsewhere" in said[0]
    assert (here.parent / f"{here.name}.old-1" / "manifest.json").read_text() == "{}"


def test_fresh_starts_beside_it_and_a_signal_leaves_all_in_the_bucket(store, monkeypatch):
    real = upload.replace
    once: list[bool] = []

    def stop(*arguments, **options) -> None:
        real(*arguments, **options)
        if not once:
            once.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(mirror.upload, "replace", stop)
    result, said = train("optimizer.max_steps=4000", fresh=True)
    assert result.reason == "SIGTERM"
    assert f"run the same command with output={URI}-2 in place of fresh=true" in said[-1]
    there = remote_folder.look(f"{URI}-2")
    assert there.steps[-1] == result.step
