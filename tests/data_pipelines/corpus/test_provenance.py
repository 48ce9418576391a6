"""corpus/provenance.py: one line a document, found by index, id or digest; never a wrong one."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from data_pipelines import sources
from data_pipelines.corpus import provenance

TEXTS = st.text(st.characters(codec=None), min_size=1, max_size=12)


def facts_of(name: str, **more: object) -> dict[str, object]:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return {"id": name, "source_name": "books", "level": 0, "digest": digest, **more}


def write(folder, rows):
    with provenance.ProvenanceWriter(folder) as writer:
        for row in rows:
            writer.add(row)
        return writer.close()


@settings(max_examples=30, deadline=None)
@given(names=st.lists(TEXTS, max_size=8))
def test_every_row_is_found_by_place_by_id_and_by_digest(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("split")
    rows = [facts_of(name, span=[0, place]) for place, name in enumerate(names)]
    write(folder, rows)
    assert provenance.count(folder) == len(rows)
    for place, row in enumerate(rows):
        assert provenance.locate(folder, place) == row
        same = [(k, other) for k, other in enumerate(rows) if other["id"] == row["id"]]
        assert list(provenance.find(folder, row["id"])) == same
        assert list(provenance.find(folder, row["digest"][:10])) == same


def test_bytes_depend_on_the_facts_alone_and_the_entries_tell_them(tmp_path):
    row = facts_of("a.zip!b", made_from=None, span=None, page_first=1, difficulty=0.25)
    entries = write(tmp_path / "one", [row, facts_of("c")])
    again = write(tmp_path / "two", [dict(reversed(row.items())), facts_of("c")])
    assert entries == again
    for entry in entries:
        data = (tmp_path / "one" / entry["file"]).read_bytes()
        assert entry["size_bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    line = (tmp_path / "one" / provenance.PROVENANCE).read_bytes().splitlines()[0]
    assert list(json.loads(line)) == [
        "id", "source_name", "page_first", "level", "difficulty", "digest",
    ]  # fmt: skip


def test_an_id_inside_another_one_is_not_taken_for_it(tmp_path):
    write(tmp_path, [facts_of("a.txt#12"), facts_of("b", made_from="a.txt#1"), facts_of("a.txt#1")])
    assert [place for place, _ in provenance.find(tmp_path, "a.txt#1")] == [2]
    assert list(provenance.find(tmp_path, "a.txt")) == []


def test_wrong_keys_and_places_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected the keys id, .* got page"):
        write(tmp_path / "a", [facts_of("x", page=3)])
    with pytest.raises(ValueError, match="source_name must be given"):
        write(tmp_path / "b", [{"id": "x"}])
    write(tmp_path / "c", [facts_of("x")])
    for place in (-1, 1):
        with pytest.raises(ValueError, match=f"from 0 to 0, got {place}"):
            provenance.locate(tmp_path / "c", place)
    with pytest.raises(ValueError, match="found none; give a split"):
        provenance.locate(tmp_path / "nothing", 0)


def test_lines_that_do_not_fit_their_index_are_refused(tmp_path):
    write(tmp_path, [facts_of("x"), facts_of("y")])
    lines = tmp_path / provenance.PROVENANCE
    whole = lines.read_bytes()
    lines.write_bytes(whole[:-5])
    with pytest.raises(sources.DamagedShard, match=r"is not what provenance\.idx\.npy says"):
        provenance.locate(tmp_path, 0)
    lines.write_bytes(b"#" * len(whole))
    with pytest.raises(sources.DamagedShard, match="line 2 is damaged"):
        provenance.locate(tmp_path, 1)
    np.save(tmp_path / provenance.INDEX, np.zeros(2, np.int32))
    with pytest.raises(sources.DamagedShard):
        provenance.count(tmp_path)


def test_the_index_of_many_rows_stays_small_and_quick(tmp_path):
    num_rows = 20_000
    write(tmp_path, (facts_of(f"dump.jsonl#{n}") for n in range(num_rows)))
    assert (tmp_path / provenance.INDEX).stat().st_size <= 8 * (num_rows + 1) + 256
    assert provenance.locate(tmp_path, 17_001)["id"] == "dump.jsonl#17001"
    assert [place for place, _ in provenance.find(tmp_path, "dump.jsonl#19999")] == [19_999]
