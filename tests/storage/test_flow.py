"""The original flow whole: two buckets, 80/20 split, adapter under models/NAME, answers.

Against the S3 on loopback in the default suite; against SeaweedFS with keys enforced and
fake-gcs-server, with processes killed and machines changed, under the marker slow.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistral_jax import cli
from mistral_jax import storage
from mistral_jax.formats import locate
from mistral_jax.storage import owner
from mistral_jax.storage import upload
from tests import buckets
from tests import store_servers
from tests.storage import original_flow


def test_the_flow_runs_from_two_buckets_to_answers(store, tmp_path, monkeypatch, capsys):
    uris = ("s3://texts", "s3://papers", "s3://out", "s3://models/base")
    flow = original_flow.Flow(*uris, tmp_path)
    flow.fill()
    flow.fill_weights()
    assert cli.main(flow.prepare_words("bytes")) == 0
    made = json.loads(storage.read_bytes(f"s3://out/datasets/{original_flow.NAME}/manifest.json"))
    counts = {name: entry["documents"] for name, entry in made["files"].items()}
    assert sum(counts.values()) == original_flow.NUM_ROWS + original_flow.NUM_PAGES
    assert 0.05 < counts["val_dataset.jsonl"] / sum(counts.values()) < 0.4
    assert cli.main(flow.train_words()) == 0
    assert original_flow.steps(flow.model) == (2, 4)
    assert cli.main(flow.export_words("peft")) == 0
    adapter = f"{flow.model}/adapter"
    assert upload.read_list(f"{adapter}/{upload.LIST_NAME}").is_complete
    config = json.loads(storage.read_bytes(f"{adapter}/adapter_config.json"))
    assert config["r"] == 2
    buckets.other_machine(tmp_path, monkeypatch)
    capsys.readouterr()
    assert cli.main(["generate", flow.model, "The lake", "--max-tokens", "4", "--raw"]) == 0
    assert capsys.readouterr().out.strip()


def test_bad_places_end_with_one_sentence_and_the_right_code(store, tmp_path, capsys):
    flow = original_flow.Flow("s3://texts", "s3://papers", "s3://out", "s3://base", tmp_path)
    flow.fill_weights()

    def ends(words: list[str]) -> tuple[int, str]:
        code = cli.main(words)
        lines = capsys.readouterr().err.strip().splitlines()
        return code, lines[-1]

    assert ends(flow.prepare_words("bytes"))[0] == 2  # nothing is there
    data = f"out/datasets/{original_flow.NAME}"
    store.put(f"{data}/train_dataset.jsonl", b'{"text": "one"}\n')
    store.put(f"{data}/{upload.LIST_NAME}", b'{"complete": false, "files": {}}')
    code, said = ends(flow.train_words())
    assert code == 2 and "it is incomplete" in said
    store.put(f"{data}/{upload.LIST_NAME}", b'{"complete": true, "files": {}}')
    code, said = ends(flow.train_words())
    assert code == 2 and "is not in the list of its folder" in said
    with owner.Owner(flow.model, "another"):
        code, said = ends(flow.train_words())
        assert code == 3 and "writes there since" in said and "aws s3 rm" in said
    store.put(f"out/models/{original_flow.NAME}/model.safetensors", b"x")
    code, said = ends(flow.train_words())
    assert code == 2 and "choose another output=" in said
    for fault, wanted in (("is_closed", "refuses access"), ("is_expired", "have expired")):
        setattr(store, fault, True)
        locate.forget()
        code, said = ends(flow.train_words())
        assert code == 2 and wanted in said, said
        setattr(store, fault, False)


@pytest.fixture(params=[store_servers.seaweedfs, store_servers.google], ids=["seaweedfs", "google"])
def real(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[original_flow.Flow]:
    """Return the flow on a real store."""
    monkeypatch.setenv("MISTRAL_JAX_CACHE", str(tmp_path / "cache"))
    locate.forget()
    with request.param(tmp_path, monkeypatch) as uri:
        scheme = uri.partition("://")[0]
        flow = original_flow.Flow(
            f"{scheme}://texts", f"{scheme}://papers", uri, f"{uri}/base", tmp_path
        )
        flow.fill()
        flow.fill_weights()
        yield flow
    locate.forget()


@pytest.mark.slow
def test_killed_in_an_upload_and_in_a_run_other_machines_end_with_the_same_bits(real, tmp_path):
    machines = [tmp_path / f"machine{number}" for number in range(4)]
    prepare = real.prepare_words("bytes")
    mark = f"{real.out}/datasets/{original_flow.NAME}/{upload.LIST_NAME}"
    shards = f"{real.out}/shards/{original_flow.NAME}"
    original_flow.kill_when(lambda: bool(storage.list_files(shards)), prepare, machines[0])
    original_flow.finish(prepare, machines[1])
    assert upload.read_list(mark).is_complete
    more = ["optimizer.max_steps=40", "evaluate.every_steps=40", "checkpoint.every_steps=4"]
    whole = f"{real.out}/models/whole"
    original_flow.finish(real.train_words(*more, f"output={whole}"), machines[0])
    words = real.train_words(*more)

    def begins_to_arrive() -> bool:
        names = storage.list_files(f"{real.model}/checkpoints")
        return any(name.endswith(upload.LIST_NAME) for name in names)

    original_flow.kill_when(begins_to_arrive, words, machines[1])
    # The same machine goes on at once; another one waits until the dead owner has expired.
    second = original_flow.start(words, machines[2])
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 3 and "writes there since" in out, out
    original_flow.kill_when(lambda: bool(original_flow.steps(real.model)), words, machines[1])
    newest = storage.list_files(f"{real.model}/{owner.FOLDER}")[-1]
    storage.delete(newest)  # as the message tells
    out = original_flow.finish(words, machines[3])
    assert "going on at step" in out
    assert original_flow.losses(real.model) == original_flow.losses(whole)
    original_flow.finish(real.export_words("peft"), machines[0])
    out = original_flow.finish(
        ["generate", real.model, "The lake", "--max-tokens", "4", "--raw"], machines[2]
    )
    assert out.strip()
