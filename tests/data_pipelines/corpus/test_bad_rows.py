"""The stop rule: it waits for enough rows, counts by source, and says what to do."""

import json

import pytest

from data_pipelines.corpus import bad_rows
from data_pipelines.documents import Document
from data_pipelines.documents import Reject

GOOD = Document("a#1", "text", text="t")
BAD = Reject("a.jsonl#7", "bad_json", "not JSON at column 3")
OTHER = Reject("a.png", "unsupported_type", "not read")


def test_a_source_above_its_share_stops_the_run_once_enough_was_read():
    rule = bad_rows.BadRows(max_bad_fraction=0.1, min_rows=20)
    for number in range(19):
        rule.add("web", BAD if number < 3 else GOOD)
    with pytest.raises(bad_rows.TooManyBadRows) as told:
        rule.add("web", BAD)
    for part in ("'web'", "4 of 20", "20.0%", "4 x bad_json", "a.jsonl#7", "max_bad_fraction"):
        assert part in str(told.value)


def test_a_share_that_is_reached_exactly_and_files_that_were_never_rows_are_allowed():
    rule = bad_rows.BadRows(max_bad_fraction=0.1, min_rows=10)
    for item in [GOOD] * 9 + [OTHER] * 50 + [BAD]:
        rule.add("web", item)
        rule.add("books", GOOD)
    assert rule.counts["web"].num_bad == 1
    assert rule.counts["web"].rejected == {"unsupported_type": 50, "bad_json": 1}
    assert rule.counts["books"].accepted == 60


def test_counts_of_tasks_are_merged_as_if_one_had_read_all():
    tasks = [bad_rows.RowCount() for _ in range(3)]
    for number in range(30):
        tasks[number // 10].add(GOOD if number % 3 else Reject(f"{number}", "empty", "blank"))
    rule = bad_rows.BadRows(max_bad_fraction=0.5, min_rows=5)
    for task in tasks:
        rule.merge("web", bad_rows.RowCount.from_json(json.loads(json.dumps(task.to_json()))))
    whole = rule.counts["web"]
    assert (whole.accepted, whole.num_bad) == (20, 10)
    assert [each[0] for each in whole.examples] == ["0", "3", "6", "9", "12"]
    with pytest.raises(bad_rows.TooManyBadRows):
        bad_rows.BadRows(max_bad_fraction=0.2, min_rows=5).merge("web", whole)
