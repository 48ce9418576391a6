"""Checks of buckets against the S3 on loopback: rights, tokens, clock, half uploads, owners.

Against SeaweedFS and fake-gcs-server too, where the set `stores` is installed (marker slow).
"""

import json
import time
from pathlib import Path

import pytest

from data_pipelines import prepare
from launch import checks_store
from mistral_jax import storage
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.formats import locate
from mistral_jax.storage import cache
from mistral_jax.storage import owner
from mistral_jax.storage import upload
from tests import buckets
from tests import fake_s3
from tests import store_servers
from tests.launch import preflights
from tests.launch.preflights import context
from tests.launch.preflights import fails
from tests.launch.preflights import look
from tests.launch.preflights import passes

pytest.importorskip("boto3")
OUTPUT = "output=s3://bucket/models/x"


@pytest.fixture
def store(tmp_path, monkeypatch):
    preflights.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    with buckets.fake(tmp_path, monkeypatch) as served:
        yield served


def test_without_a_bucket_no_store_is_asked(store):
    for name in ("store library", "store credentials", "store read", "store write"):
        assert look(name, context()).status == "skipped"
    assert store.requests == []


def test_the_probe_is_written_read_back_and_removed(store):
    seen = context(OUTPUT)
    assert passes("store write", seen).detail.endswith("written, read back, deleted")
    passes("clock", seen)
    passes("output's owner", seen)
    assert store.objects == {}
    assert sum(request.startswith("PUT") for request in store.requests) == 1
    passes("store credentials", seen)
    passes("store library", seen)


def test_a_missing_library_names_its_lock(store, monkeypatch):
    monkeypatch.setitem(checks_store.LIBRARIES, "s3", "no_such_module_here")
    assert fails("store library", context(OUTPUT)).fix == "MISTRAL_JAX_LOCKS=data ./run doctor"


def test_no_credentials_are_told_by_name_only(store, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    assert "hush" not in look("store credentials", context(OUTPUT)).detail
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fails("store credentials", context(OUTPUT), status="warning").fix == "aws configure"


def test_a_bucket_without_rights_fails_for_reading_and_writing(store):
    store.is_closed = True
    assert "refuses access" in fails("store write", context(OUTPUT)).detail
    answer = fails("store read", context("data.train=s3://bucket/x.jsonl"))
    assert answer.fix == "aws sts get-caller-identity"
    assert look("clock", context(OUTPUT)).status == "skipped"


def test_read_only_rights_fail_for_the_output(store):
    store.put("bucket/x.jsonl", b'{"text": "x"}\n')
    store.broken_uploads = 0
    passes("store read", context("data.train=s3://bucket/x.jsonl"))
    fails("store write", context(OUTPUT))


def test_a_bucket_that_forgets_what_may_not_be_deleted_is_found(store):
    store.broken_uploads = 1  # the probe arrives, its removal is refused
    assert "not deleted" in fails("store write", context(OUTPUT)).detail


def test_an_expired_token_is_mended_by_signing_in(store):
    store.is_expired = True
    assert fails("store write", context(OUTPUT)).fix == "aws sso login"
    answer = fails("training data", context("data.train=s3://bucket/x.jsonl"))
    assert "expired" in answer.detail and answer.fix == "aws sso login"


def test_a_store_that_is_down_fails_with_a_command_to_reach_it(store):
    store.is_down = True
    assert fails("store write", context(OUTPUT)).fix.startswith("curl")


def test_what_the_run_reads_must_be_there(store):
    fails("store read", context("data.train=s3://bucket/x.jsonl"))
    fails("training data", context("data.train=s3://bucket/x.jsonl"))
    store.put("bucket/x.jsonl", b"")
    assert "is empty" in fails("training data", context("data.train=s3://bucket/x.jsonl")).detail
    store.put("bucket/x.jsonl", b'{"text": "x"}\n')
    passes("training data", context("data.train=s3://bucket/x.jsonl"))


@pytest.mark.parametrize(("ahead_s", "status"), [(0, "ok"), (-60, "warning"), (2000, "failed")])
def test_the_clock_is_held_against_the_stores(store, monkeypatch, ahead_s, status):
    real = time.time
    monkeypatch.setattr(fake_s3.time, "time", real)
    put = store.put

    def put_by_another_clock(name, raw, metadata=None):
        put(name, raw, metadata)
        late = store.objects[name]._replace(modified_s=real() - ahead_s)
        store.objects[name] = late

    monkeypatch.setattr(store, "put", put_by_another_clock)
    answer = look("clock", context(OUTPUT))
    assert answer.status == status, answer
    if status != "ok":
        assert answer.fix == "sudo timedatectl set-ntp true"


def test_a_half_uploaded_dataset_is_refused(store):
    buckets.put_folder(store, Path("texts"), "bucket/texts")
    passes("training data", context("data.train=s3://bucket/texts"))
    content = {"complete": False, "files": {"a.md": {"sha256": "0" * 64, "size_bytes": 1}}}
    store.put(f"bucket/texts/{upload.LIST_NAME}", json.dumps(content).encode())
    for uri in ("s3://bucket/texts", "s3://bucket/texts/a.md"):
        answer = fails("training data", context(f"data.train={uri}"))
        assert "interrupted" in answer.detail and answer.fix.startswith("./run prepare")


def test_a_prepared_prefix_must_be_whole_and_of_the_models_tokenizer(store):
    made = prepare.prepare(
        "texts", "prepared", tokenizer=tokenizers.load_tokenizer("bytes"), eval_fraction=0.0
    )
    buckets.put_folder(store, made.folder, "bucket/prepared")
    seen = context("data.train=s3://bucket/prepared")
    assert "prepared, 0 eval, 1 train" in passes("training data", seen).detail
    assert "'bytes'" in fails("tokenizer of the data", seen).detail
    shard = next(name for name in store.objects if ".array_record" in name)
    store.put(shard, store.objects[shard].raw[:-1])
    assert "bytes expected" in fails("training data", seen).detail


def test_a_base_model_in_a_bucket_is_looked_at_by_its_headers(store):
    buckets.put_folder(store, Path("base"), "bucket/base")
    seen = context("model.weights=s3://bucket/base")
    assert "21 tensors" in passes("base model", seen).detail
    passes("tokenizer", seen)
    passes("base model's digests", seen)
    content = {"complete": False, "files": {}}
    store.put(f"bucket/base/{upload.LIST_NAME}", json.dumps(content).encode())
    assert "interrupted" in fails("base model's digests", seen).detail


def test_inputs_of_a_bucket_must_fit_the_cache(store, monkeypatch):
    buckets.put_folder(store, Path("base"), "bucket/base")
    seen = context("model.weights=s3://bucket/base")
    passes("input disk", seen)
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0.00001")
    assert fails("input disk", seen).fix == f"export {cache.LIMIT_VARIABLE}=16"
    monkeypatch.delenv(cache.LIMIT_VARIABLE)
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
    assert cache.FOLDER_VARIABLE in fails("input disk", seen).fix


def test_another_experiment_or_no_run_in_the_output_is_refused(store):
    passes("experiment", context(OUTPUT))
    store.put("bucket/models/x/notes.txt", b"mine")
    assert "no run's" in fails("experiment", context(OUTPUT)).detail
    run = load.load_run("run.yaml", [OUTPUT])
    store.put("bucket/models/x/config.yaml", load.dump_yaml(run).encode())
    passes("experiment", context(OUTPUT))
    answer = fails("experiment", context(OUTPUT, "seed=7"))
    assert "seed: 0 -> 7" in answer.detail
    # It is seen from where the launch is typed, too.
    fails("experiment", context(OUTPUT, "seed=7", target="g5_2xlarge"))


def test_a_living_owner_of_the_output_is_refused_and_a_dead_one_not(store):
    record = {"process": 7, "host": "gpu1", "since": "2026-11-21", "released": False}
    name = f"bucket/models/x/{owner.FOLDER}/000001.json"
    store.put(name, json.dumps(record).encode())
    answer = fails("output's owner", context(OUTPUT))
    assert "process 7 on gpu1" in answer.detail and answer.fix == f"aws s3 rm s3://{name}"
    # From where a launch is typed it may be this very run, to which the launch attaches.
    far = fails("output's owner", context(OUTPUT, target="g5_2xlarge"), status="warning")
    assert "process 7 on gpu1" in far.detail and "attaches" in far.detail
    store.objects[name] = store.objects[name]._replace(modified_s=time.time() - 3600)
    passes("output's owner", context(OUTPUT))
    store.put(name, json.dumps(record | {"released": True}).encode())
    passes("output's owner", context(OUTPUT))


@pytest.fixture(params=[store_servers.seaweedfs, store_servers.google], ids=["seaweedfs", "google"])
def real(request, tmp_path, monkeypatch):
    preflights.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISTRAL_JAX_CACHE", str(tmp_path / "cache"))
    locate.forget()
    with request.param(tmp_path, monkeypatch) as uri:
        yield uri
    locate.forget()


@pytest.mark.slow
def test_a_real_store_takes_the_probe_and_its_rights_are_seen(real, monkeypatch):
    storage.write_bytes(f"{real}/data/x.jsonl", b'{"text": "x"}\n')
    seen = context(f"output={real}/models/x", f"data.train={real}/data/x.jsonl")
    for name in ("store write", "store read", "clock", "output's owner", "training data"):
        passes(name, seen)
    assert list(storage.list_files(f"{real}/models")) == []
    upload.send(Path("base"), f"{real}/base")
    passes("base model's digests", context(f"model.weights={real}/base"))
    if real.startswith("s3://"):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        wrong = context(f"output={real}/models/x")
        assert fails("store write", wrong).fix == "aws sts get-caller-identity"
