"""storage/mirror.py, remote_folder.py: what a run writes is in the bucket, whole or not at all."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mistral_jax import storage
from mistral_jax.storage import mirror
from mistral_jax.storage import owner
from mistral_jax.storage import remote_folder
from mistral_jax.storage import upload

URI = "s3://bucket/models/x"
LIST = f"bucket/models/x/checkpoints/%d/{upload.LIST_NAME}"


@pytest.fixture
def said() -> list[str]:
    return []


def opened(folder: Path, said: list[str], owned: owner.Owner, **changes) -> mirror.Mirror:
    options = {"keep_last": 2, "sent_steps": (), **changes}
    return mirror.Mirror(folder, URI, owned=owned, say=said.append, **options)


def save(folder: Path, step: int, *, loss: float | None = None) -> None:
    """Write a step as the checkpointer does: aside, then renamed."""
    temporary = folder / "checkpoints" / f"{step}.tmp"
    (temporary / "state").mkdir(parents=True)
    (temporary / "state" / "a").write_bytes(bytes([step]) * 1000)
    (temporary / "record").write_text(json.dumps({"step": step}))
    if loss is not None:
        (temporary / "metrics").mkdir()
        (temporary / "metrics" / "metrics").write_text(json.dumps({"loss": loss}))
    temporary.rename(folder / "checkpoints" / str(step))


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def begin(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("manifest.json", "config.yaml", "metrics.jsonl"):
        (folder / name).write_text(name)


def test_small_files_go_before_a_step_and_its_list_last(store, tmp_path, said):
    folder = tmp_path / "run"
    begin(folder)
    with owner.Owner(URI, "here") as owned, opened(folder, said, owned):
        save(folder, 2)
        wait_until(lambda: LIST % 2 in store.objects and b"true" in store.objects[LIST % 2].raw)
        (folder / "measured.json").write_text("{}")
    puts = [r[4:].removeprefix("bucket/models/x/") for r in store.requests if r.startswith("PUT")]
    puts = [name for name in puts if not name.startswith(".owner")]
    mark = f"checkpoints/2/{upload.LIST_NAME}"
    assert puts[:3] == ["config.yaml", "manifest.json", "metrics.jsonl"]
    assert puts[3:] == [
        mark,
        "checkpoints/2/record",
        "checkpoints/2/state/a",
        mark,
        "measured.json",
    ]
    there = remote_folder.look(URI)
    assert (there.steps, there.is_run) == ((2,), True)
    assert not said
    assert not (tmp_path / ".run.outgoing").exists()


def test_that_a_run_has_ended_is_told_after_its_last_step(store, tmp_path, said):
    folder = tmp_path / "run"
    begin(folder)
    with owner.Owner(URI, "here") as owned, opened(folder, said, owned):
        save(folder, 2)
        (folder / "measured.json").write_text("{}")
    puts = [r for r in store.requests if r.startswith("PUT") and "/.owner/" not in r]
    assert puts[-2:] == [f"PUT {LIST % 2}", "PUT bucket/models/x/measured.json"]


def test_a_step_that_the_run_deletes_while_it_is_sent_arrives_whole(store, tmp_path, said):
    folder = tmp_path / "run"
    begin(folder)
    going = threading.Event()
    real = upload.replace

    def slow(path: Path, uri: str, **how) -> None:
        going.set()
        wait_until(lambda: not (folder / "checkpoints" / "2").exists())
        real(path, uri, **how)

    with pytest.MonkeyPatch.context() as patch, owner.Owner(URI, "here") as owned:
        patch.setattr(upload, "replace", slow)
        with opened(folder, said, owned):
            save(folder, 2)
            going.wait(20)
            save(folder, 4)
            shutil.rmtree(folder / "checkpoints" / "2")
    assert remote_folder.look(URI).steps == (2, 4)
    assert store.objects["bucket/models/x/checkpoints/2/state/a"].raw == bytes([2]) * 1000


def test_the_bucket_keeps_what_the_run_keeps(store, tmp_path, said):
    folder = tmp_path / "run"
    begin(folder)
    save(folder, 1, loss=0.5)
    save(folder, 2)
    with owner.Owner(URI, "here") as owned, opened(folder, said, owned, keep_last=1):
        wait_until(lambda: remote_folder.look(URI).steps == (1, 2))
        shutil.rmtree(folder / "checkpoints" / "2")
        save(folder, 3)
    there = remote_folder.look(URI)
    assert (there.steps, there.best_step) == ((1, 3), 1)
    assert not [name for name in store.objects if "checkpoints/2/" in name]


def test_an_outage_is_told_once_and_survived(store, tmp_path, said):
    folder = tmp_path / "run"
    begin(folder)
    with owner.Owner(URI, "here") as owned, opened(folder, said, owned):
        store.is_down = True
        save(folder, 2)
        wait_until(lambda: len([r for r in store.requests if r.startswith("GET")]) > 6)
        save(folder, 4)
        store.is_down = False
    assert remote_folder.look(URI).steps == (2, 4)
    assert len(said) == 2
    assert said[0].startswith("the run goes on, but its output cannot be sent now:")
    assert "SlowDown" in said[0] or "503" in said[0]
    assert said[1].startswith("the output is sent again, after")


def test_expired_credentials_are_an_outage_too(store, tmp_path, said):
    folder = tmp_path / "run"
    begin(folder)
    with owner.Owner(URI, "here") as owned, opened(folder, said, owned):
        store.is_expired = True
        save(folder, 2)
        wait_until(lambda: bool(said))
        store.is_expired = False
    assert "the credentials have expired" in said[0] and "aws sso login" in said[0]
    assert remote_folder.look(URI).steps == (2,)


def test_a_long_outage_stops_the_run_in_order(store, tmp_path, said, monkeypatch):
    monkeypatch.setenv(mirror.OUTAGE_VARIABLE, "0.1")
    folder = tmp_path / "run"
    begin(folder)
    asked = threading.Event()
    old = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        with (
            pytest.raises(mirror.Outage, match=r"nothing could be sent for 0 s.*run the same"),
            owner.Owner(URI, "here") as owned,
            opened(folder, said, owned),
        ):
            store.is_closed = True
            save(folder, 2)
            wait_until(asked.is_set)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert said[-1].startswith("the run stops: ")


def test_who_lost_the_output_sends_nothing_more(store, tmp_path, said):
    folder = tmp_path / "run"
    begin(folder)
    with (
        pytest.raises(owner.Lost, match=r"000002\.json"),
        owner.Owner(URI, "here") as owned,
        opened(folder, said, owned),
    ):
        name = "bucket/models/x/.owner/000001.json"
        store.objects[name] = store.objects[name]._replace(modified_s=0)
        with owner.Owner(URI, "there"):
            before = set(store.objects)
            save(folder, 2)
            wait_until(lambda: bool(said))
            assert set(store.objects) == before


def test_who_loses_the_output_within_a_step_leaves_the_new_owners_files(store, tmp_path):
    """A machine that slept meanwhile: both write step 2, under the same names."""
    begin(tmp_path / "run")
    save(tmp_path / "run", 2)
    theirs = "bucket/models/x/checkpoints/2/state/a"
    is_lost = False

    def check() -> None:
        nonlocal is_lost
        if is_lost:
            raise owner.Lost("taken over")
        is_lost = True  # from now on, while the first file is sent
        store.put(theirs, b"theirs")

    with pytest.raises(owner.Lost):
        upload.replace(tmp_path / "run" / "checkpoints" / "2", f"{URI}/checkpoints/2", check=check)
    assert store.objects[theirs].raw == b"theirs"


def test_an_upload_that_a_kill_cut_off_is_no_step_and_goes_on(store, tmp_path, said):
    folder = tmp_path / "run"
    begin(folder)
    save(folder, 2)
    save(folder, 4)
    store.broken_uploads = 1 + 3 + 2  # owner, small files, then within step 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(mirror.OUTAGE_VARIABLE, "0")
        with (
            pytest.raises(mirror.Outage),
            owner.Owner(URI, "here") as owned,
            opened(folder, said, owned),
        ):
            wait_until(lambda: bool(said))
    there = remote_folder.look(URI)
    assert there.steps == ()  # the last of step 4 is its list
    store.put("bucket/models/x/checkpoints/4/state/stray", b"of the cut-off upload")
    store.broken_uploads = None
    store.requests.clear()
    with owner.Owner(URI, "here") as owned, opened(folder, said, owned, sent_steps=there.steps):
        pass
    assert remote_folder.look(URI).steps == (2, 4)
    assert "bucket/models/x/checkpoints/4/state/stray" not in store.objects
    sent = [r[4:] for r in store.requests if r.startswith("PUT")]
    assert "bucket/models/x/checkpoints/4/record" not in sent  # it had arrived


def test_what_arrives_damaged_is_sent_again(store, tmp_path, said):
    path = tmp_path / "a"
    path.write_bytes(b"content")
    store.damaged_uploads = 1
    with pytest.raises(upload.UploadError, match="arrived damaged"):
        upload.send_file(path, "s3://bucket/a")
    assert "bucket/a" not in store.objects
    upload.send_file(path, "s3://bucket/a")
    assert store.objects["bucket/a"].raw == b"content"


def test_steps_come_down_checked(store, tmp_path, said):
    folder = tmp_path / "run"
    begin(folder)
    save(folder, 2, loss=0.25)
    save(folder, 4, loss=0.5)
    with owner.Owner(URI, "here") as owned, opened(folder, said, owned):
        pass
    there = remote_folder.look(URI)
    assert there.best_steps(1) == {2} and there.best_step == 2
    remote_folder.fetch_small(there, tmp_path / "again")
    remote_folder.fetch_steps(there, {2, 4}, tmp_path / "again")
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert (tmp_path / "again" / file.relative_to(folder)).read_bytes() == file.read_bytes()
    read = remote_folder.stage_to_read(URI)
    assert [path.name for path in (read / "checkpoints").iterdir()] == ["2"]
    name = "bucket/models/x/checkpoints/4/state/a"
    stored = store.objects[name]
    store.objects[name] = stored._replace(raw=b"\7" + stored.raw[1:], etag="0" * 32)
    with pytest.raises(ValueError, match="should be"):
        remote_folder.fetch_steps(there, {4}, tmp_path / "third")
    assert not (tmp_path / "third" / "checkpoints" / "4").exists()
    for step in (2, 4):
        storage.delete(f"{URI}/checkpoints/{step}/{upload.LIST_NAME}")
    with pytest.raises(storage.StorageError, match="without a complete checkpoint"):
        remote_folder.stage_to_read(URI)


def test_names_that_are_no_runs_are_not_small_files():
    assert remote_folder.is_small("evals/step_1.json") and remote_folder.is_small("report.html")
    for name in ("adapter/model.safetensors", "checkpoints/2/x", ".owner/1.json", "data/x"):
        assert not remote_folder.is_small(name)
