"""The registry of named sources: every format read from a sample, and refused piece by piece."""

import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_pipelines import catalog
from data_pipelines.catalog import registry
from data_pipelines.catalog import samples
from data_pipelines.corpus import row as rows
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject

LIMITS = Limits()
NAMED = [name for name, entry in catalog.types().items() if entry.group != "plain"]


@pytest.fixture(scope="module")
def decoders():
    with catalog.Decoders(LIMITS) as opened:
        yield opened


def read(name: str, folder: Path, decoders) -> tuple[dict[str, Document], dict[str, Reject]]:
    """Return {id: document} and {id: reject} of a folder, as a corpus reads its source."""
    entry = catalog.type_of(name)
    documents, rejects = {}, {}
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        where = file.relative_to(folder).as_posix()
        if not catalog.takes(entry, where):
            continue
        for item in catalog.read_file(name, file, where, LIMITS, decoders):
            found = documents if isinstance(item, Document) else rejects
            assert item.id not in found, "ids are unique"
            found[item.id] = item
    return documents, rejects


# Each: how many documents the sample gives, what one of them says, facts of one of them.
EXPECTED = {
    "filtered_code": (2, "return 3 * ships", {"licence": "Apache-2.0 OR MIT"}),
    "qa_threads": (1, "Accepted answer\n\nThree: 1 + 2.", {"licence": "CC BY-SA 4.0", "score": 5}),
    "api_documentation": (4, "lanterns(2)", {"title": "Lights", "page": "lights"}),
    "code_review": (1, "+return 2 * ships", {"licence": "MIT", "repository": "harbour/lights"}),
    "bug_reports": (2, "# Lamp stays dark", {"bug": "42", "product": "lights"}),
    "arxiv_maths": (2, "there are $3n$ lanterns", {"arxiv": "2301.00001"}),
    "textbooks": (2, "\\[ 1 + 2 = 3 \\]", {"title": "Lights at Sea"}),
    "proof_libraries": (4, "= n.\nProof.", {"system": "coq", "title": "lanterns"}),
    "competition_problems": (1, "\\boxed{12}", {"answer": "12", "difficulty": 0.25}),
    "computational_queries": (1, "answer = 3 * 17", {"answer": "51"}),
    "filtered_web": (2, "one lantern", {"url": "https://example.org/lights", "language": "eng"}),
    "books": (1, "CHAPTER I", {"author": "A. Keeper", "language": "English"}),
    "news": (2, "Lamp lit\n\nA lighthouse", {"licence": "copyright The Harbour Post"}),
    "multilingual_wiki": (
        1,
        "Phare est une haute tour.\nHistoire\nElle porte une lanterne.",
        {"language": "fr", "url": "https://fr.example.org/wiki/Phare"},
    ),
    "translation_memories": (
        2,
        "Translate from fr to de:\nLa lampe brûle.\nDie Lampe brennt.",
        {"source_language": "fr", "language": "de"},
    ),
    "logic_puzzles": (2, "Answer: no", {"answer": "12", "family": "chain_sum"}),
    "papers": (1, "Lanterns and ships\n\nWe count", {"doi": "10.1/lights", "language": "en"}),
    "legal_cases": (2, "(majority) Lamp, J.", {"court": "Court of the Coast"}),
    "philosophy": (2, "counts the ships", {"licence": "CC0-1.0", "author": "A. Keeper"}),
    "game_records": (2, "1. e4 e5 2. Bc4 Nc6 3. Qh5 Nf6?? 4. Qxf7# 1-0", {"num_moves": 7}),
    "image_text_pairs": (3, "a round lamp", {"licence": "CC-BY-4.0"}),
    "video_captions": (2, "The lamp is lit.\nA ship goes by.", {"language": "en", "end_s": 0.5}),
    "transcripts": (3, "THE LAMP IS LIT", {"language": "fr", "up_votes": "2"}),
    "figures": (2, "Lanterns by ship.", {"title": "Figure 1", "doi": "10.1/lights"}),
    "screenshots": (1, "ImageView: Lamp\nButton: Light the lamp", {"num_views": 4}),
}  # fmt: skip
MEDIA = {
    "image_text_pairs": {"kind": "image", "width": 48, "height": 32, "format": "png"},
    "video_captions": {"kind": "video", "width": 64, "duration_s": 0.5, "path": "lamp.mp4"},
    "transcripts": {"kind": "audio", "sample_rate": 8000, "duration_s": 0.25, "format": "flac"},
    "figures": {"kind": "image", "width": 48, "path": "f1.jpg"},
    "screenshots": {"kind": "image", "height": 32, "path": "72.jpg"},
}


def test_the_registry_has_five_named_sources_of_each_group_and_three_for_each_expert():
    entries = [catalog.type_of(name) for name in NAMED]
    groups = [entry.group for entry in entries]
    assert {group: groups.count(group) for group in groups} == dict.fromkeys(groups, 5)
    assert len(NAMED) == 25
    assert NAMED == list(samples.SAMPLES) == list(EXPECTED)
    for expert in rows.EXPERTS:
        of_it = [each.name for each in entries if expert in (each.expert, *each.also_for)]
        assert len(of_it) >= 3, (expert, of_it)
    assert all(entry.licence and entry.kind in rows.KINDS for entry in entries)


@pytest.mark.parametrize("name", NAMED)
def test_a_sample_of_every_format_is_read(tmp_path, decoders, name):
    samples.write(name, tmp_path)
    documents, rejects = read(name, tmp_path, decoders)
    assert not rejects
    count, said, facts = EXPECTED[name]
    assert len(documents) == count
    assert any(said in rows.text_of(each) for each in documents.values())
    assert any(facts.items() <= each.facts.items() for each in documents.values())
    if name in MEDIA:
        found = [each.facts["media"] for each in documents.values()]
        checked = [each for each in found if MEDIA[name].items() <= each.items()]
        assert checked and checked[0]["checked"]
        assert len(checked[0]["sha256"]) == 64 and checked[0]["bytes"] > 100
    # What a row is written as must be JSON, and come back.
    for each in documents.values():
        row = rows.Row(each, name, "text", "general", "none", facts=each.facts)
        assert rows.text_of(rows.from_line(rows.to_line(row)).document) == rows.text_of(each)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("game_records", "tar"), ("figures", "zip"), ("transcripts", "tar"), ("qa_threads", "tar")],
)
def test_archives_around_a_format_change_nothing_but_ids(tmp_path, decoders, name, kind):
    samples.write(name, tmp_path / "plain")
    files = sorted(each for each in (tmp_path / "plain").rglob("*") if each.is_file())
    (tmp_path / "packed").mkdir()
    packed = tmp_path / "packed" / f"all.{kind}"
    with zipfile.ZipFile(packed, "w") if kind == "zip" else tarfile.open(packed, "w") as archive:
        for file in files:
            add = archive.write if isinstance(archive, zipfile.ZipFile) else archive.add
            add(file, file.relative_to(tmp_path / "plain").as_posix())
    plain, _ = read(name, tmp_path / "plain", decoders)
    inside, rejects = read(name, tmp_path / "packed", decoders)
    assert not [each for each in rejects.values() if each.kind != "unsupported_type"]
    assert [identity.removeprefix(f"all.{kind}!") for identity in inside] == list(plain)
    for before, after in zip(plain.values(), inside.values()):
        if name != "transcripts" or before.facts.get("speaker"):
            # A member's path is whole where the folder's file has a name beside it.
            assert rows.text_of(after) == rows.text_of(before)
            media = [each.facts.get("media", {}) for each in (before, after)]
            assert media[0].get("sha256") == media[1].get("sha256")


PGN = '[White "a"]\n[Result "1-0"]\n\n'
# name of the type, file, bytes, id of the reject behind the file, kind, what the reason says
BROKEN = [
    ("filtered_code", "a.parquet", b"PAR1 and no more", "", "bad_parquet", "damaged"),
    ("qa_threads", "posts.xml", b'<posts>\n<row Id="x" PostTypeId="1" Body="b"/></posts>',
     "#1", "bad_schema", "line 2: expected a number in Id"),
    ("api_documentation", "db.json", b'{"a": 3}', "#1", "bad_schema", "page 1"),
    ("code_review", "e.json", b'{"type": "PullRequestReviewCommentEvent"}', "#1", "bad_schema",
     "comment"),
    ("bug_reports", "b.xml", b"<bugzilla>\n<bug><bug_id>1</bug_id></bug></bugzilla>",
     "#1", "bad_schema", "line 2"),
    ("arxiv_maths", "a.tex", b"\\title{x}\n\\begin{document} y", "", "bad_latex", "line 2"),
    ("textbooks", "a.pdf", b"%PDF-1.7 no", "", "bad_pdf", "not a readable PDF"),
    ("proof_libraries", "a.v", b"\nLemma x : True.\nProof. exact I.\n", "#2", "unfinished_proof",
     "line 2: x has no proof"),
    ("proof_libraries", "a.lean", b"theorem x : P := by sorry\n", "#1", "unproven", "left open"),
    ("competition_problems", "p.json", b'[{"problem": "1?", "solution": "\\\\boxed{1"}]',
     "#1", "bad_latex", "never closed"),
    ("computational_queries", "q.jsonl", b'{"query": "q", "program": "a b", "answer": 1}',
     "#1", "bad_program", "line 1"),
    ("filtered_web", "a.warc", samples.warc_record("conversion", b"0123456789")[:-8],
     "#1", "bad_warc", "cut short"),
    ("filtered_web", "a.wet", samples.warc_record("conversion", b"one").replace(b"one", b"two"),
     "#1", "bad_digest", "sha1"),
    ("books", "b.txt", b"*** START OF THE PROJECT GUTENBERG EBOOK X ***\ntext", "", "bad_book",
     "END"),
    ("news", "n.xml", b"<nitf><body>\n<block/></body></nitf>", "#1", "bad_schema", "line 1"),
    ("multilingual_wiki", "w.xml", b"<mediawiki>\n<page><title>T</title></page></mediawiki>",
     "#1", "bad_schema", "line 2"),
    ("translation_memories", "t.tmx",
     b'<tmx><body><tu><tuv xml:lang="en"><seg>a</seg></tuv></tu></body></tmx>',
     "#1", "bad_schema", "two languages"),
    ("logic_puzzles", "l.jsonl", b'{"question": "q", "answer": null}', "#1", "bad_schema",
     "answer"),
    ("papers", "p.xml", b"<article><front/></article>", "#1", "bad_schema", "without abstract"),
    ("legal_cases", "c.json", b'{"name": "A v. B", "casebody": {}}', "", "bad_schema", "opinions"),
    ("philosophy", "e.html", b"<p>x<h1>Light", "", "bad_schema", "line 1"),
    ("game_records", "g.pgn", PGN.encode() + b"1. e4 e9 1-0\n", "#1", "bad_pgn", "'e9' is no move"),
    ("game_records", "g.pgn", PGN.encode() + b"1. e4 {x 1-0\n", "#1", "bad_pgn", "never closed"),
    ("image_text_pairs", "i.png", b"\x89PNG\r\n\x1a\n no", "", "bad_media", "cannot be decoded"),
    ("video_captions", "v.vtt", b"WEBVTT\n\n00:02.000 --> 00:01.000\nx\n", "#3", "bad_subtitles",
     "line 3"),
    ("transcripts", "t.tsv", b"path\tsentence\na.mp3\n", "#2", "bad_transcript", "2 columns"),
    ("figures", "f.jsonl", b'{"image": "f.png"}', "#1", "bad_schema", '"caption"'),
    ("screenshots", "s.json", b'{"activity": []}', "", "bad_schema", "view hierarchy"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "data", "at", "kind", "reason"), BROKEN)
def test_what_is_malformed_is_rejected_with_its_place(
    tmp_path, decoders, name, file, data, at, kind, reason
):
    (tmp_path / file).write_bytes(data)
    documents, rejects = read(name, tmp_path, decoders)
    assert not documents
    assert [(each.id, each.kind) for each in rejects.values()] == [(f"{file}{at}", kind)]
    assert reason in rejects[f"{file}{at}"].reason


def test_every_named_source_has_a_malformed_case():
    assert {each[0] for each in BROKEN} == set(NAMED)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'<!DOCTYPE a [<!ENTITY x "yy">]><article>&x;</article>', "unsafe_xml"),
        (b'<!DOCTYPE a [<!ENTITY x SYSTEM "/etc/passwd">]><article>&x;</article>', "unsafe_xml"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><article>&x;</article>', "bad_schema"),
        (b"<article>" + b"<p>" * 1000, "unsafe_xml"),
        (b"<article><body><p>a</body></article>", "bad_xml"),
        (b'<?xml version="1.0" encoding="x-none"?><article/>', "bad_xml"),
        (b"<other/>", "bad_schema"),
    ],
)
def test_xml_that_reaches_outside_or_is_broken_is_refused(tmp_path, decoders, data, kind):
    (tmp_path / "a.xml").write_bytes(data)
    documents, rejects = read("papers", tmp_path, decoders)
    assert not documents
    assert [each.kind for each in rejects.values()] == [kind]


def test_an_element_larger_than_the_cap_costs_itself_alone(decoders):
    page = "<page><title>{}</title><revision><text>{}</text></revision></page>"
    dump = f"<mediawiki>{page.format('A', 'x' * 5000)}{page.format('B', 'y')}</mediawiki>"
    limits = Limits(member_bytes=4096)
    items = list(
        catalog.read("multilingual_wiki", "w.xml", io.BytesIO(dump.encode()), limits, decoders)
    )
    assert [(each.id, type(each)) for each in items] == [("w.xml#1", Reject), ("w.xml#2", Document)]


def test_companions_outside_of_the_folder_are_not_found(tmp_path, decoders):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(samples.picture())
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    lines = [{"image": name, "caption": "c"} for name in ("../secret.png", "link.png", "/a.png")]
    (tmp_path / "in" / "f.jsonl").write_text("\n".join(map(json.dumps, lines)))
    documents, _ = read("figures", tmp_path / "in", decoders)
    assert [each.facts["media"]["checked"] for each in documents.values()] == [False] * 3


def test_plain_types_read_what_prepare_reads_and_media(tmp_path, decoders):
    (tmp_path / "a.md").write_text("# A")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}'))
    documents, _ = read("documents", tmp_path, decoders)
    assert {each.text for each in documents.values()} == {"# A", "b"}
    (tmp_path / "c.wav").write_bytes(samples.sound())
    (tmp_path / "c.txt").write_text("a lamp hums\n")
    documents, rejects = read("media", tmp_path, decoders)
    (sound,) = documents.values()
    assert (sound.text, sound.facts["media"]["channels"]) == ("a lamp hums", 1)
    assert not rejects  # a compressed file has the name of what is in it


def test_an_unknown_type_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=re.escape("'chess' is not known; expected one of docum")):
        catalog.type_of("chess")
    assert all(registry.loader_of(key) for key in registry.LOADERS)
