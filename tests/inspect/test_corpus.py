"""inspect/corpus.py: a corpus's counts, and a row back to archive, member, line and characters."""

import io
import json
import random
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from data_pipelines import prepare
from data_pipelines import sources
from data_pipelines.corpus import provenance
from mistral_jax import inspect
from mistral_jax import tokenizers
from mistral_jax.report import corpus as report
from tests.report import fake_corpus

TEXT = "Lakes are cold. The deepest of them holds a fifth of the fresh water of the world."
REJECTED = 'notes/ä"quoted".md'


def shown(path: Path | str, **options: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    inspect.show(path, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A corpus of one expert with real shards, as the engine leaves it."""
    base = tmp_path_factory.mktemp("plant")
    given, out = base / "given", base / "out"
    given.mkdir()
    with zipfile.ZipFile(given / "lakes.zip", "w") as archive:
        lines = [{"text": f"{TEXT} Lake {n}."} for n in range(5)]
        archive.writestr("rows/lakes.jsonl", "\n".join(map(json.dumps, lines)))
    prepare.prepare(
        given, out / "general", tokenizer=tokenizers.load_tokenizer("bytes"), eval_fraction=0.2
    )
    for split in ("train", "eval"):
        source = sources.ArrayRecordSource(out / "general", split)
        with provenance.ProvenanceWriter(out / "general" / split) as writer:
            for place in range(len(source)):
                facts = {
                    "id": f"notes/{source[place].document}", "source_name": "notes", "kind": "text",
                    "licence": "CC0-1.0", "made_by": "read", "span": [0, 15], "level": 1,
                    "difficulty": 0.5, "digest": f"{place:08x}{split.encode().hex()}",
                }  # fmt: skip
                if split == "train" and place == len(source) - 1:
                    made = {"made_by": "questions/1", "made_from": facts["id"], "id": "made/7"}
                    facts |= {**made, "source_name": "made", "span": [16, 27]}
                writer.add(facts)
            writer.close()
    manifest = fake_corpus.manifest(random.Random(0))
    manifest["experts"] = {"general": manifest["experts"]["general"]}
    manifest["sources"] = {
        "notes": {"type": "documents", "expert": "general", "read": 5, "kept": 5}
    }
    manifest["settings"]["sources"] = [{"name": "notes", "path": str(given)}]
    (out / "manifest.json").write_text(json.dumps(manifest))
    reject = {"id": REJECTED, "kind": "too_short", "reason": "3 words"}
    (out / "rejects.jsonl").write_text(json.dumps(reject, ensure_ascii=False) + "\n")
    return out


def test_a_corpus_shows_its_counts(corpus):
    text = shown(corpus)
    for part in (
        "prepared corpus", "eight experts, small", "mistral-common:v3", "20,000 read",
        "19,811 kept", "812 too_short", "source notes", "levels: facts",
    ):  # fmt: skip
        assert part in text, part
    report.write(corpus)
    assert "report.html" in shown(corpus)
    assert "prepared data" in shown(corpus / "general")


def test_a_row_is_traced_to_archive_member_line_and_characters(corpus):
    name = provenance.locate(corpus / "general" / "train", 0)["id"]
    line = name.rpartition("#")[2]
    text = " ".join(shown(f"{corpus}/general/train#0").split())
    for part in (
        "│ archive │ notes/lakes.zip │", "│ member │ rows/lakes.jsonl │", f"│ line │ {line} │",
        "│ characters │ 0 to 15 │", "│ licence │ CC0-1.0 │", "│ made │ as it was read │",
        "read → processors (clean) → quality gate → exact copies dropped → near copies dropped "
        "→ kept", "│ level │ 1, steps │", "│ difficulty │ 0.500 │", "name notes, type documents",
        f"Lake {int(line) - 1}.",  # the document as it is trained on
    ):  # fmt: skip
        assert part in text, part
    assert text.endswith("characters Lakes are cold.")


def test_a_row_is_found_by_id_and_by_digest(corpus):
    facts = provenance.locate(corpus / "general" / "eval", 0)
    by_id = shown(corpus, row=facts["id"])
    assert by_id == shown(corpus, row=facts["digest"][:12])
    assert by_id == shown(corpus / "general", row=facts["id"])
    assert f"{corpus}/general/eval#0" in by_id.replace("\n", "")


def test_a_row_that_was_made_shows_what_it_was_made_from(corpus):
    text = " ".join(shown(corpus, row="made/7").split())
    assert "│ made │ by questions/1 │" in text
    assert "│ made from │ notes/lakes.zip!rows/lakes.jsonl#" in text
    assert "generated → " in text
    assert text.endswith("characters The deepest")


def test_a_row_that_was_kept_out_says_why(corpus):
    assert f"kept out: {REJECTED}: 3 words" in shown(corpus, row=REJECTED)
    with pytest.raises(ValueError, match=r"no row 'nowhere\.md'; expected an id"):
        shown(corpus, row="nowhere.md")


def test_an_input_that_is_gone_is_said_and_the_row_still_shown(corpus):
    path = corpus / "manifest.json"
    whole = path.read_text()
    manifest = json.loads(whole)
    manifest["settings"]["sources"][0]["path"] = "/nowhere"
    path.write_text(json.dumps(manifest))
    try:
        text = shown(f"{corpus}/general/train#0")
    finally:
        path.write_text(whole)
    assert "the original cannot be shown: it is not in /nowhere any more" in text
    assert "CC0-1.0" in text
