"""report/corpus.py: a corpus's manifest becomes one safe page; what is missing is left out."""

import json
import random
import re
from pathlib import Path

import pytest

from mistral_jax.report import bar_chart
from mistral_jax.report import corpus
from mistral_jax.report import corpus_batches
from tests.report import fake_corpus
from tests.report.test_write import Page

SECTIONS = {
    "funnel", "sources", "experts", "rejects", "batches", "near-duplicates", "shares", "scans",
    "next", "provenance", "config",
}  # fmt: skip
EVIL = '</p><script>alert(1)</script><img src=x onerror="alert(2)">'


def page_of(folder: Path) -> str:
    return corpus.write(folder).read_text(encoding="utf-8")


def with_manifest(folder: Path, manifest: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_every_part_of_the_manifest_has_its_place_and_nothing_is_loaded(tmp_path):
    text = page_of(fake_corpus.make_corpus(tmp_path / "out"))
    page = Page(text)
    assert page.ids == SECTIONS
    assert page.links == []
    assert "script" not in page.tags
    assert not re.search(r"https?://|url\(|@import", text)
    assert page.tags.count("svg") == 3 * 2 + 6  # two histograms an expert, six metrics
    for shown in (
        "19,811", "86.1% of 23,000", "−1,257", "57 of 60 passed", "3 of 60 failed", "syntax basics",
        "64 to 127 tokens: ", "difficulty 0.05 to 0.1: ", "contaminated", "at least 0.7",
        "at most 0.1", "161 clusters of 445 rows", "pkg_00/LICENSE", "and 13 more",
        "mistral-common", "de", "CC-BY-4.0", "code_tasks/1", "iban", "archive.zip!plates.pdf",
        "min_diversity",
        "web/dump.jsonl.gz!dump.jsonl#1811", "code/train#0",
    ):  # fmt: skip
        assert shown in text, shown


def test_what_the_funnel_loses_is_counted_behind_the_generated_rows(tmp_path):
    rows = {"read": 80, "generated": 20, "all": 100, "processed": 90, "kept": 90}
    funnel = [{"stage": stage, "rows": number} for stage, number in rows.items()]
    text = page_of(with_manifest(tmp_path, {"kind": "corpus", "funnel": funnel}))
    assert re.findall(r'num bad">([^<]*)<', text) == ["", "", "", "−10", ""]


def test_any_part_may_be_missing(tmp_path):
    whole = fake_corpus.manifest(random.Random(0))
    for key in [*whole, "tokenizer is null"]:
        part = {name: value for name, value in whole.items() if name != key}
        part |= {"kind": "corpus"} | ({"tokenizer": None} if key == "tokenizer is null" else {})
        Page(page_of(with_manifest(tmp_path, part)))
    assert Page(page_of(with_manifest(tmp_path, {"kind": "corpus"}))).ids == {"next"}


def test_texts_cannot_become_markup(tmp_path):
    def spoil(value):
        if isinstance(value, dict):
            return {
                EVIL if key in ("MIT", "en", "code", "too_short", "email") else key: spoil(one)
                for key, one in value.items()
            }
        if isinstance(value, list):
            return [spoil(one) for one in value]
        return (
            EVIL if isinstance(value, str) and value not in ("corpus", "batches.jsonl") else value
        )

    manifest = fake_corpus.manifest(random.Random(0))
    funnel = manifest.pop("funnel")
    folder = with_manifest(tmp_path, spoil(manifest) | {"funnel": funnel})
    batch = {"source": EVIL, "diversity": 0.1, "failed": [f"diversity {EVIL}"]}
    (folder / "batches.jsonl").write_text(json.dumps(batch) + "\n", encoding="utf-8")
    text = page_of(folder)
    page = Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert page.handlers == []
    assert text.count("&lt;script&gt;") >= 20


def test_failed_batches_are_all_seen_and_passed_ones_are_thinned(tmp_path):
    path = tmp_path / "batches.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(9000):
            failed = ["toxicity"] if number % 1000 == 17 else []
            # A small batch may pass below the bar: the gate's word counts, not the number.
            line = {"toxicity": 0.3 if failed else 0.2, "diversity": None, "failed": failed}
            file.write(json.dumps(line) + "\n")
    found = corpus_batches.read(path, {"max_toxicity": 0.1, "min_diversity": 0.7}, num_shown=4)
    metrics = {each.name: each for each in found.metrics}
    toxicity = metrics["toxicity"]
    assert (found.num_batches, found.num_failed, len(found.failed)) == (9000, 9, 4)
    assert (toxicity.num_passed, toxicity.num_failed) == (8991, 9)
    assert [number for number, _ in toxicity.failed] == [1000 * k + 18 for k in range(9)]
    assert 1000 <= len(toxicity.passed) <= corpus_batches.MAX_KEPT
    assert toxicity.passed[0] == (1, 0.2)
    assert toxicity.passed[-1][0] > 8900
    assert toxicity.is_upper
    assert toxicity.threshold == 0.1
    assert not metrics["diversity"].passed


def test_bars_are_as_high_as_their_counts():
    bins = [bar_chart.Bin(str(n), f"bin {n}", n) for n in (0, 1, 50, 100)]
    picture = str(bar_chart.bar_chart(bins, label="x"))
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"><title', picture)]
    assert heights[0] == 0.0
    assert heights[1] == bar_chart.MIN_BAR_HEIGHT
    assert heights[3] == pytest.approx(2 * heights[2])
    assert bar_chart.bar_chart(bins[:1], label="x") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "expected a prepared corpus"),
        ("{", "not valid JSON"),
        ('{"kind": "data"}', 'expected a manifest of kind "corpus"'),
        ('{"kind": "corpus", "funnel": [{}]}', r"manifest\.json: field missing or of the wrong"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        corpus.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_line_of_the_batches_is_named(tmp_path):
    folder = fake_corpus.make_corpus(tmp_path / "out", num_batches=2)
    with (folder / "batches.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"diversity": \n')
    with pytest.raises(ValueError, match=r"batches\.jsonl: line 3 is not"):
        corpus.write(folder)
