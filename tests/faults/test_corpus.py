"""The making of a corpus under faults: kills, and a store that fails in every way at once."""

import collections
import random

import pytest

from data_pipelines.corpus import build
from mistral_jax.storage import mirror
from tests import buckets
from tests import fake_s3
from tests.data_pipelines.corpus import killing
from tests.data_pipelines.corpus import test_build

pytestmark = pytest.mark.faults


def test_six_kills_change_nothing(tmp_path):
    shop = killing.Workshop(tmp_path, seed=3)
    shop.round(kills=3)
    shop.round(kills=1, workers=2)  # its workers must not go on where the next process begins
    for _ in range(12):  # where a kill falls depends on the machine; one must fall behind a part
        if sum(shop.kills.values()) >= 6 and shop.checked_parts:
            break
        shop.round(kills=2)
    assert sum(shop.kills.values()) >= 6
    assert shop.checked_parts > 0


def test_a_store_that_fails_in_every_way_changes_nothing(tmp_path, monkeypatch):
    pytest.importorskip("boto3")
    folder = test_build.write_sources(tmp_path / "in", files=12, rows=4)
    draw = random.Random(5)
    met = collections.Counter()

    def fault() -> str:
        drawn = draw.choice((*fake_s3.FAULTS, "", "", "", ""))
        met[drawn] += 1
        return drawn

    with buckets.fake(tmp_path, monkeypatch) as store:
        monkeypatch.setattr("mistral_jax.storage.s3.READ_TIMEOUT_S", 0.3)
        monkeypatch.setattr("mistral_jax.storage.s3.MAX_ATTEMPTS", 1)
        monkeypatch.setattr("data_pipelines.corpus.fetching.DAMAGED_TRIES", 20)
        monkeypatch.setenv(mirror.OUTAGE_VARIABLE, "60")
        buckets.put_folder(store, folder, "texts/in")
        source = {"name": "notes", "path": "s3://texts/in", "kind": "text", "expert": "general"}
        config = test_build.config_of(tmp_path, sources=[source], near_duplicates=None)
        calm = build.build(config, tmp_path / "calm")
        store.draw_fault = fault
        made = build.build(config, tmp_path / "out")
    assert all(met[kind] for kind in fake_s3.FAULTS)
    assert test_build.tree(made.folder) == test_build.tree(calm.folder)
