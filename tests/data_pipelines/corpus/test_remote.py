"""A corpus whose output is a bucket: the local one's bytes, whoever was killed or came between."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines import prepare
from data_pipelines.corpus import build
from data_pipelines.corpus import outgoing
from data_pipelines.corpus import output
from data_pipelines.corpus import progress
from data_pipelines.corpus import remote
from data_pipelines.corpus import state
from data_pipelines.corpus import worker
from mistral_jax import storage
from mistral_jax.storage import mirror
from mistral_jax.storage import owner
from mistral_jax.storage import upload
from tests import buckets
from tests import fake_s3
from tests.data_pipelines.corpus import test_build

URI = "s3://bucket/corpora/notes"
PREFIX = "bucket/corpora/notes/"
BESIDE = (owner.FOLDER, state.STATE, upload.LIST_NAME)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_s3.Store]:
    pytest.importorskip("boto3")
    with buckets.fake(tmp_path, monkeypatch) as served:
        yield served


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Return a folder with sources, and the digests of the corpus that a local run makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    test_build.write_sources(folder / "in", files=4, rows=2)
    made = build.build(config_of(folder, output=str(folder / "out")), folder / "out")
    finish(made.folder)
    return folder, test_build.tree(made.folder)


def config_of(folder: Path, **changed):
    return test_build.config_of(folder, **{"output": URI, "task_bytes": 3000, **changed})


def finish(folder: Path) -> None:
    (folder / "report.html").write_text("the report")


class Killer(progress.Progress):
    """Ends the process's work, as far as the store sees it, at a point of a stage."""

    def __init__(self, stage: str, tasks: int):
        super().__init__(is_silent=True)
        self._at, self._tasks = stage, tasks
        self._now = ""

    def stage(self, name: str, *arguments, **options) -> None:
        super().stage(name, *arguments, **options)
        self._now = name
        self._maybe()

    def task_done(self, entry) -> None:
        if self._now == self._at:
            self._tasks -= 1
        self._maybe()

    def _maybe(self) -> None:
        if self._now == self._at and self._tasks == 0:
            raise KeyboardInterrupt


def make(config, shown: progress.Progress | None = None) -> prepare.Prepared:
    shown = shown or progress.Progress.silent()
    return remote.make(config, progress=shown, say=lambda line: None, finish=finish)


def published(store: fake_s3.Store) -> dict[str, str]:
    """Return the digests of what counts in the bucket."""
    names = [name.removeprefix(PREFIX) for name in store.objects if name.startswith(PREFIX)]
    listed = upload.read_list(f"{URI}/{upload.LIST_NAME}")
    assert listed.is_complete
    assert set(listed.sha256) == {n for n in names if not n.startswith(BESIDE)}
    for name, digest in listed.sha256.items():
        assert storage.digest(f"{URI}/{name}") == digest
    return dict(listed.sha256)


def state_of(store: fake_s3.Store) -> dict:
    return json.loads(store.objects[PREFIX + state.STATE].raw)["stages"]


def test_a_bucket_gets_what_a_folder_gets_and_the_same_call_does_nothing(
    store, whole, tmp_path, monkeypatch
):
    folder, expected = whole
    made = make(config_of(folder))
    assert not made.is_reused
    assert published(store) == expected
    puts = [r[4:].removeprefix(PREFIX) for r in store.requests if r.startswith("PUT")]
    sent = [name for name in puts if not name.startswith((".owner", "work/"))]
    assert sent[-2:] == ["manifest.json", upload.LIST_NAME]
    assert sorted(state_of(store)) == ["encode", "map"]
    buckets.other_machine(tmp_path, monkeypatch)
    store.requests.clear()
    again = make(config_of(folder))
    assert again.is_reused and again.manifest == made.manifest
    assert {r for r in store.requests if r.startswith("PUT")} == {
        r for r in store.requests if r.startswith(f"PUT {PREFIX}.owner/")
    }


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "tasks", "same_machine"),
    [
        ("map", 2, False),
        ("encode", 1, True),
        pytest.param("publish", 0, False, marks=SLOW),
        pytest.param("map", 0, False, marks=SLOW),
        pytest.param("join", 0, False, marks=SLOW),
        pytest.param("encode", 1, False, marks=SLOW),
        pytest.param("map", 2, True, marks=SLOW),
        pytest.param("publish", 0, True, marks=SLOW),
    ],
)
def test_a_run_that_ended_anywhere_goes_on_on_any_machine(
    store, whole, tmp_path, monkeypatch, stage, tasks, same_machine
):
    folder, expected = whole
    monkeypatch.setattr(outgoing, "WRITE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        make(config_of(folder), Killer(stage, tasks))
    there = state_of(store) if PREFIX + state.STATE in store.objects else {}
    if not same_machine:
        buckets.other_machine(tmp_path, monkeypatch)
    done = []
    run = worker.run
    monkeypatch.setattr(worker, "run", lambda job, *task: (done.append(task), run(job, *task))[1])
    made = make(config_of(folder))
    assert published(store) == expected
    for at, number in done:
        assert str(number) not in there.get(at, {}), "a task was done again"
    assert made.resumed_tasks == 2 * len(state_of(store)["map"]) - len(done)
    assert not [name for name in store.objects if "/work/" in name]


@pytest.mark.slow
def test_after_an_outage_the_same_call_sends_what_is_missing(store, whole, monkeypatch):
    folder, expected = whole
    monkeypatch.setenv(mirror.OUTAGE_VARIABLE, "0")
    monkeypatch.setattr(owner, "RELEASE_PAUSES_S", (0.0,))
    for number in (3, 16):  # while parts go up, and while the corpus does
        store.broken_uploads = number
        with pytest.raises(mirror.Outage, match="run the same command here"):
            make(config_of(folder))
        assert not is_whole(store)
        store.broken_uploads = None
    assert PREFIX + "general/train_dataset.jsonl" not in store.objects
    make(config_of(folder))
    assert published(store) == expected


def is_whole(store: fake_s3.Store) -> bool:
    name = PREFIX + upload.LIST_NAME
    return name in store.objects and upload.read_list(f"s3://{name}").is_complete


def test_who_comes_second_is_refused_while_the_first_lives(store, whole, tmp_path, monkeypatch):
    folder, _ = whole
    with owner.Owner(URI, "elsewhere"):
        with pytest.raises(owner.InUse, match="writes there since") as refused:
            make(config_of(folder))
        assert refused.value.exit_code == 3


def test_who_was_passed_over_sends_nothing_more(store, whole, monkeypatch):
    folder, _ = whole

    class PassedOver(progress.Progress):
        def task_done(self, entry) -> None:
            store.put(f"{PREFIX}.owner/000009.json", b"{}")

    with pytest.raises(owner.Lost):
        make(config_of(folder), PassedOver(is_silent=True))
    assert PREFIX + "manifest.json" not in store.objects


def test_other_files_under_the_prefix_are_refused_and_stay(store, whole):
    store.put(f"{PREFIX}thesis.txt", b"mine")
    with pytest.raises(upload.UploadError, match="choose another output"):
        make(config_of(whole[0]))
    assert PREFIX + "thesis.txt" in store.objects


def test_a_checkpoint_or_another_corpus_under_the_prefix_is_refused_and_stays(store, whole):
    store.put(f"{PREFIX}{upload.LIST_NAME}", b'{"complete": true, "files": {}}')
    with pytest.raises(upload.UploadError, match="choose another output"):
        make(config_of(whole[0]))
    store.put(f"{PREFIX}manifest.json", b'{"kind": "corpus", "name": "old"}')
    with pytest.raises(output.OtherCorpus, match="corpus 'old'"):
        make(config_of(whole[0]))
    assert {PREFIX + upload.LIST_NAME, PREFIX + "manifest.json"} <= store.objects.keys()


def test_sides_stay_when_another_machine_adds_files(store, tmp_path, monkeypatch):
    test_build.write_sources(tmp_path / "in", files=3, rows=2)
    first = make(config_of(tmp_path, near_duplicates=None))
    kept = first.manifest["funnel"][-1]["rows"]
    text = json.dumps({"text": test_build.text_of(999)})
    (tmp_path / "in" / "000.jsonl").write_text(text)
    buckets.other_machine(tmp_path, monkeypatch)
    store.broken_uploads = 18  # into the corpus, whose old list of assignments then has gone
    monkeypatch.setenv(mirror.OUTAGE_VARIABLE, "0")
    monkeypatch.setattr(owner, "RELEASE_PAUSES_S", (0.0,))
    with pytest.raises(mirror.Outage):
        make(config_of(tmp_path, near_duplicates=None))
    assert not is_whole(store)
    store.broken_uploads = None
    buckets.other_machine(tmp_path, monkeypatch, "third")
    for name in [name for name in store.objects if ".owner" in name]:
        store.objects.pop(name)  # the second machine could not say that it has left
    store.put(f"{PREFIX}notes/thesis.txt", b"somebody's")
    second = make(config_of(tmp_path, near_duplicates=None))
    assert PREFIX + "notes/thesis.txt" in store.objects
    assert second.manifest["split"]["from_before"] == kept
    assert second.manifest["funnel"][-1]["rows"] == kept + 1
