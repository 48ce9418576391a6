"""Tiny examples of every named format, written as its makers write it; the words are our own.

`write` puts one into a folder: to see what a source should look like, and for tests. Media are
drawn and sounded by the libraries that read them.
"""

import base64
import functools
import gzip
import hashlib
import io
import json
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
PROSE = (
    "A lighthouse keeper counts the ships that pass at night. Each of them carries one lantern at "
    "its bow and two at its stern, so that he knows which way it sails."
)


def write(name: str, folder: str | Path) -> list[Path]:
    """Write the sample of a named source into a folder; return its files.

    Raises:
        ValueError: there is no sample of the name.
    """
    if name not in SAMPLES:
        raise ValueError(f"no sample of {name!r}; there are {', '.join(SAMPLES)}")
    written = []
    for path, data in SAMPLES[name]().items():
        file = Path(folder) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        written.append(file)
    return written


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _lines(*rows: Any) -> bytes:
    return b"".join(_json(row) + b"\n" for row in rows)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def packed_tar(members: Files) -> bytes:
    """Return a tar of some members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@functools.cache
def picture(name: str = "PNG") -> bytes:
    """Return a small picture of a lantern."""
    from PIL import Image
    from PIL import ImageDraw

    image = Image.new("RGB", (48, 32), "navy")
    ImageDraw.Draw(image).ellipse((16, 8, 32, 24), fill="gold")
    buffer = io.BytesIO()
    image.save(buffer, format=name)
    return buffer.getvalue()


@functools.cache
def sound() -> bytes:
    """Return a quarter of a second of a square wave as WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(b"".join(level * 10 for level in (b"\0\x20", b"\0\xe0")) * 100)
    return buffer.getvalue()


@functools.cache
def flac() -> bytes:
    """Return the sound as FLAC."""
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(sound()), dtype="int16")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC")
    return buffer.getvalue()


@functools.cache
def video() -> bytes:
    """Return half a second of a bar that moves, as MP4."""
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[:, number * 10 : number * 10 + 8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def _filtered_code() -> Files:
    rows = [
        {
            "content": f"def lanterns(ships: int) -> int:\n    return {number} * ships\n",
            "lang": "Python",
            "max_stars_repo_licenses": ["MIT", "Apache-2.0"],
            "max_stars_repo_name": "harbour/lights",
            "max_stars_repo_path": f"lights/{number}.py",
            "hexsha": hashlib.sha1(bytes([number]), usedforsecurity=False).hexdigest(),
        }
        for number in (2, 3)
    ]
    return {"data-00000-of-00001.parquet": _parquet(rows)}


def _qa_threads() -> Files:
    posts = [
        'Id="1" PostTypeId="1" AcceptedAnswerId="3" Title="Count lanterns?" Score="4" '
        'Tags="&lt;ships&gt;" ContentLicense="CC BY-SA 4.0" '
        'Body="&lt;p&gt;How many lanterns has a ship?&lt;/p&gt;"',
        'Id="2" PostTypeId="2" ParentId="1" Score="9" Body="&lt;p&gt;Four, I think.&lt;/p&gt;"',
        'Id="3" PostTypeId="2" ParentId="1" Score="5" '
        'Body="&lt;p&gt;Three: &lt;code&gt;1 + 2&lt;/code&gt;.&lt;/p&gt;"',
        'Id="4" PostTypeId="5" Body="a wiki page of a tag"',
    ]
    rows = "".join(f"  <row {post} />\n" for post in posts)
    return {"Posts.xml": f'<?xml version="1.0"?>\n<posts>\n{rows}</posts>\n'.encode()}


def _api_documentation() -> Files:
    page = (
        "<h1>lanterns()</h1><p>Return how many lanterns a fleet carries.</p><pre>lanterns(2)</pre>"
    )
    docbook = (
        '<?xml version="1.0"?><refentry id="lanterns"><refnamediv><refname>lanterns</refname>'
        "<refpurpose>count lanterns</refpurpose></refnamediv><refsect1><title>Description</title>"
        f"<para>{PROSE}</para></refsect1></refentry>"
    )
    return {
        "devdocs/db.json": _json({"index": page, "ships": f"<h1>ships</h1><p>{PROSE}</p>"}),
        "sphinx/lights.fjson": _json(
            {"title": "Lights", "body": page, "current_page_name": "lights"}
        ),
        "lanterns.xml": docbook.encode(),
    }


def _code_review() -> Files:
    event = {
        "type": "PullRequestReviewCommentEvent",
        "created_at": "2024-05-01T10:00:00Z",
        "repo": {"name": "harbour/lights"},
        "payload": {
            "comment": {
                "body": "Please count the stern lanterns twice.",
                "path": "lights.py",
                "diff_hunk": "@@ -1 +1 @@\n-return ships\n+return 2 * ships",
                "html_url": "https://example.org/harbour/lights/pull/7#r1",
            },
            "pull_request": {
                "title": "Count lanterns",
                "base": {"repo": {"license": {"spdx_id": "MIT"}}},
            },
        },
    }
    lines = _lines(event, {"type": "PushEvent", "payload": {}})
    return {"2024-05-01-10.json.gz": gzip.compress(lines, mtime=0)}


def _bug_reports() -> Files:
    issue = {
        "title": "Lantern is counted twice",
        "body": PROSE,
        "labels": [{"name": "bug"}],
        "state": "open",
        "html_url": "https://example.org/harbour/lights/issues/3",
        "comments": [{"body": "I see it too."}],
    }
    bug = (
        '<?xml version="1.0"?><!DOCTYPE bugzilla SYSTEM "https://example.org/page.cgi?id=bugzilla.dtd">'
        "<bugzilla><bug><bug_id>42</bug_id><short_desc>Lamp stays dark</short_desc>"
        "<bug_status>NEW</bug_status><product>lights</product>"
        f"<long_desc><who>keeper</who><thetext>{PROSE}</thetext></long_desc></bug></bugzilla>"
    )
    return {"issues.json": _json([issue]), "bugs.xml": bug.encode()}


def _arxiv_maths() -> Files:
    source = (
        "\\documentclass{article}\n\\title{On the Count of \\emph{Lanterns}}\n% a remark\n"
        "\\begin{document}\n\\section{Ships}\nLet $n$ be the number of ships; then there are $3n$ "
        f"lanterns.\n{PROSE}\n\\end{{document}}\n"
    )
    paper = gzip.compress(packed_tar({"main.tex": source.encode(), "fig.eps": b"%!PS"}), mtime=0)
    metadata = {
        "id": "2301.00001",
        "title": "On the Count of Lanterns",
        "abstract": f"  {PROSE}\n",
        "license": "http://creativecommons.org/licenses/by/4.0/",
        "categories": "math.CO",
        "update_date": "2023-01-02",
    }
    return {
        "arXiv_src_2301_001.tar": packed_tar({"2301/2301.00001.gz": paper}),
        "arxiv-metadata.json": _lines(metadata),
    }


def _textbooks() -> Files:
    tex = f"\\chapter{{Lights}}\n\\title{{Lights at Sea}}\n{PROSE}\n\\[ 1 + 2 = 3 \\]\n"
    return {"lights.tex": tex.encode(), "ships.md": f"# Ships\n\n{PROSE}\n".encode()}


def _proof_libraries() -> Files:
    coq = (
        "Require Import Arith.\n(* Lemma in_a_comment : False. *)\n"
        "Lemma lanterns : forall n, n + 0 = n.\nProof.\n  intros n. rewrite Nat.add_0_r.\n"
        "  reflexivity.\nQed.\n"
    )
    lean = (
        "/-- Lanterns. -/\ntheorem lanterns (n : Nat) : n + 0 = n := by\n  simp\n\n"
        "def ships := 2\n\ntheorem sterns : ships = 2 := rfl\n"
    )
    agda = "module Lights where\n\nlanterns : (n : Nat) -> n == n\nlanterns n = refl\n"
    return {"Lights.v": coq.encode(), "Lights.lean": lean.encode(), "Lights.agda": agda.encode()}


def _competition_problems() -> Files:
    problem = {
        "problem": "A ship has one lantern at its bow and two at its stern. How many have 4 ships?",
        "level": "Level 2",
        "type": "Counting & Probability",
        "solution": "Each has $1 + 2 = 3$, so there are $4 \\cdot 3 = \\boxed{12}$.",
    }
    return {"counting/1.json": _json(problem)}


def _computational_queries() -> Files:
    row = {"query": "How many lanterns have 17 ships?", "program": "answer = 3 * 17", "answer": 51}
    return {"queries.jsonl": _lines(row)}


def warc_record(kind: str, block: bytes, **headers: str) -> bytes:
    """Return one record of a WARC; a keyword `target_uri` becomes the header WARC-Target-URI."""
    digest = base64.b32encode(hashlib.sha1(block, usedforsecurity=False).digest()).decode()
    fields = {
        "WARC-Type": kind,
        "WARC-Date": "2024-05-01T10:00:00Z",
        "WARC-Block-Digest": f"sha1:{digest}",
        **{f"WARC-{key.replace('_', '-')}": value for key, value in headers.items()},
        "Content-Length": str(len(block)),
    }
    head = "".join(f"{key}: {value}\r\n" for key, value in fields.items())
    return f"WARC/1.0\r\n{head}\r\n".encode() + block + b"\r\n\r\n"


def _filtered_web() -> Files:
    html = f"<html><title>Lights</title><script>x()</script><p>{PROSE}</p></html>"
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}".encode()
    uri = "https://example.org/lights"
    warc = warc_record("warcinfo", b"software: ours\r\n") + warc_record(
        "response", http, **{"Target-URI": uri}
    )
    wet = warc_record(
        "conversion", PROSE.encode(), **{"Target-URI": uri, "Identified-Content-Language": "eng"}
    )
    return {
        "CC-MAIN-1.warc.gz": gzip.compress(warc, mtime=0),
        "CC-MAIN-1.warc.wet.gz": gzip.compress(wet, mtime=0),
    }


def _books() -> Files:
    text = (
        "The Project Gutenberg eBook of Lights at Sea\n\nTitle: Lights at Sea\nAuthor: A. Keeper\n"
        "Language: English\n\n*** START OF THE PROJECT GUTENBERG EBOOK LIGHTS AT SEA ***\n\n"
        f"CHAPTER I\n\n{PROSE}\n\n*** END OF THE PROJECT GUTENBERG EBOOK LIGHTS AT SEA ***\n"
        "Terms of use follow here.\n"
    )
    return {"pg1.txt": text.encode()}


def _news() -> Files:
    nitf = (
        '<?xml version="1.0"?><!DOCTYPE nitf SYSTEM "nitf-3-6.dtd"><nitf><head>'
        "<title>Lamp lit</title>"
        '<docdata><doc.copyright holder="The Harbour Post"/><date.issue norm="20240501"/></docdata>'
        "</head><body><body.head><hedline><hl1>Lamp lit</hl1></hedline></body.head>"
        f"<body.content><p>{PROSE}</p></body.content></body></nitf>"
    )
    article = {
        "title": "A quiet night",
        "maintext": PROSE,
        "url": "https://example.org/quiet",
        "language": "en",
        "source_domain": "example.org",
        "date_publish": "2024-05-02",
    }
    return {"lamp.xml": nitf.encode(), "cc_news.jsonl": _lines(article)}


def _multilingual_wiki() -> Files:
    text = (
        "{{Infobox|ship={{PAGENAME}}}}'''Phare''' est une [[tour|haute tour]].&lt;ref&gt;x"
        "&lt;/ref&gt;\n"
        "== Histoire ==\n* Elle porte une [https://example.org lanterne].\n{| a\n| b\n|}\n"
        "[[Fichier:Phare.jpg|thumb|Un [[phare]]]][[Catégorie:Tours]]"
    )
    page = (
        "  <page><title>Phare</title><ns>0</ns><id>7</id><revision><id>70</id>"
        f'<model>wikitext</model><text xml:space="preserve">{text}</text></revision></page>\n'
    )
    talk = "  <page><title>Talk:Phare</title><ns>1</ns><revision><text>?</text></revision></page>"
    dump = (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="fr">\n'
        "  <siteinfo><dbname>frwiki</dbname><base>https://fr.example.org/wiki/Accueil</base>"
        '<namespaces><namespace key="6">Fichier</namespace>'
        '<namespace key="14">Catégorie</namespace>'
        f"</namespaces></siteinfo>\n{page}{talk}</mediawiki>\n"
    )
    return {"frwiki-pages-articles.xml": dump.encode()}


def _translation_memories() -> Files:
    unit = (
        '<tu><tuv xml:lang="en"><seg>The <bpt i="1">&lt;b&gt;</bpt>lamp burns.</seg></tuv>'
        '<tuv xml:lang="fr"><seg>La lampe brûle.</seg></tuv>'
        '<tuv xml:lang="de"><seg>Die Lampe brennt.</seg></tuv></tu>'
    )
    tmx = (
        '<?xml version="1.0"?><!DOCTYPE tmx SYSTEM "tmx14.dtd"><tmx version="1.4">'
        f'<header srclang="fr" datatype="plaintext"/><body>{unit}</body></tmx>'
    )
    return {"lights.tmx": tmx.encode()}


def _logic_puzzles() -> Files:
    plain = {
        "question": "A keeper always lies. He says that his lamp is lit. Is it?",
        "answer": "no",
        "reasoning": "What he says is false, so the lamp is not lit.",
    }
    gym = {
        "question": "What is 3 * 4?",
        "answer": "12",
        "metadata": {"source_dataset": "chain_sum", "source_index": 0},
    }
    return {"puzzles.jsonl": _lines(plain, gym)}


def _jats(figure: str = "") -> bytes:
    return (
        '<?xml version="1.0"?><!DOCTYPE article PUBLIC "-//NLM//DTD JATS v1.3//EN" "JATS.dtd">'
        '<article xmlns:xlink="http://www.w3.org/1999/xlink" xml:lang="en"><front><journal-meta>'
        "<journal-title>Harbour Letters</journal-title></journal-meta><article-meta>"
        '<article-id pub-id-type="doi">10.1/lights</article-id><title-group><article-title>'
        "Lanterns and <italic>ships</italic></article-title></title-group><permissions>"
        '<license xlink:href="https://creativecommons.org/licenses/by/4.0/"><p>open</p></license>'
        "</permissions><abstract><p>We count lanterns.</p></abstract></article-meta></front><body>"
        f"<sec><title>Results</title><p>{PROSE}</p>{figure}</sec></body></article>"
    ).encode()


def _papers() -> Files:
    return {"PMC1.nxml": _jats()}


def _legal_cases() -> Files:
    cap = {
        "name": "Keeper v. Harbour",
        "decision_date": "1901-05-01",
        "court": {"name": "Court of the Coast"},
        "jurisdiction": {"name": "Coast"},
        "casebody": {
            "data": {"opinions": [{"type": "majority", "author": "Lamp, J.", "text": PROSE}]}
        },
    }
    listener = {"case_name": "Ship v. Shore", "plain_text": PROSE[::-1], "date_filed": "1902-01-01"}
    return {"cases.jsonl": _lines(cap, listener)}


def _philosophy() -> Files:
    html = (
        '<html><head><meta name="DC.rights" content="CC-BY-4.0"><title>x</title></head>'
        f"<body><h1>Light</h1><p>{PROSE}</p></body></html>"
    )
    tei = (
        '<?xml version="1.0"?><TEI xmlns="http://www.tei-c.org/ns/1.0" xml:lang="en"><teiHeader>'
        "<fileDesc><titleStmt><title>Of Light</title><author>A. Keeper</author></titleStmt>"
        '<publicationStmt><availability><licence target="CC0-1.0"/></availability>'
        f"</publicationStmt></fileDesc></teiHeader><text><body><head>I</head><p>{PROSE}</p>"
        "<note>an editor's</note></body></text></TEI>"
    )
    return {"light.html": html.encode(), "of_light.xml": tei.encode()}


def _game_records() -> Files:
    games = (
        '[Event "Harbour open"]\n[White "Keeper"]\n[Black "Sailor"]\n[Result "1-0"]\n\n'
        "1. e4 e5 2. Bc4 {a [lamp] is lit} Nc6 (2... Nf6 3. d3) 3. Qh5 Nf6?? 4. Qxf7# 1-0\n\n"
        '[Event "Harbour open"]\n[Result "1/2-1/2"]\n\n1. d4 d5 $6 1/2-1/2\n'
    )
    return {"games.pgn": games.encode()}


def _image_text_pairs() -> Files:
    row = {
        "URL": "https://example.org/lamp.jpg",
        "TEXT": "A gold lamp in the dark",
        "WIDTH": 640,
        "HEIGHT": 480,
        "LICENSE": "CC-BY-4.0",
        "similarity": 0.31,
    }
    members = {
        "0001.png": picture(),
        "0001.json": _json({"caption": "a round lamp", "license": "CC0-1.0"}),
        "0002.jpg": picture("JPEG"),
        "0002.txt": b"another lamp\n",
    }
    return {"laion-0.parquet": _parquet([row]), "00000.tar": packed_tar(members)}


def _video_captions() -> Files:
    vtt = (
        "WEBVTT\n\nNOTE of the keeper\n\n1\n00:00:00.000 --> 00:00:00.300 align:start\n"
        "<v Keeper>The lamp is lit.\n\n00:00.300 --> 00:00.500\nA ship goes by.\n"
    )
    srt = "1\n00:00:01,000 --> 00:00:02,500\n<i>Das Licht brennt.</i>\n"
    return {"lamp.en.vtt": vtt.encode(), "lamp.mp4": video(), "night.de.srt": srt.encode()}


def _transcripts() -> Files:
    table = "client_id\tpath\tsentence\tup_votes\tlocale\nk\tcv_1.wav\tLe phare est loin.\t2\tfr\n"
    return {
        "84/121/84-121-0000.flac": flac(),
        "84/121/84-121.trans.txt": b"84-121-0000 THE LAMP IS LIT\n84-121-0001 A SHIP GOES BY\n",
        "fr/validated.tsv": table.encode(),
        "fr/clips/cv_1.wav": sound(),
    }


def _figures() -> Files:
    figure = (
        '<fig id="f1"><label>Figure 1</label><caption><p>Lanterns by ship.</p></caption>'
        '<graphic xlink:href="f1"/></fig>'
    )
    row = {"image": "lamp.png", "caption": "Brightness of a lamp", "license": "CC-BY-4.0"}
    return {
        "figures.jsonl": _lines(row),
        "lamp.png": picture(),
        "PMC1/PMC1.nxml": _jats(figure),
        "PMC1/f1.jpg": picture("JPEG"),
    }


def _screenshots() -> Files:
    button = {"class": "android.widget.Button", "text": "Light the lamp", "bounds": [0, 0, 48, 16]}
    icon = {"class": "android.widget.ImageView", "content-desc": ["Lamp"], "children": []}
    hidden = {"text": "secret", "visible-to-user": False}
    root = {"class": "android.widget.FrameLayout", "children": [icon, button, hidden, None]}
    screen = {"activity_name": "harbour/Lamp", "activity": {"root": root}}
    return {"72.json": _json(screen), "72.jpg": picture("JPEG")}


SAMPLES: dict[str, Callable[[], Files]] = {
    "filtered_code": _filtered_code,
    "qa_threads": _qa_threads,
    "api_documentation": _api_documentation,
    "code_review": _code_review,
    "bug_reports": _bug_reports,
    "arxiv_maths": _arxiv_maths,
    "textbooks": _textbooks,
    "proof_libraries": _proof_libraries,
    "competition_problems": _competition_problems,
    "computational_queries": _computational_queries,
    "filtered_web": _filtered_web,
    "books": _books,
    "news": _news,
    "multilingual_wiki": _multilingual_wiki,
    "translation_memories": _translation_memories,
    "logic_puzzles": _logic_puzzles,
    "papers": _papers,
    "legal_cases": _legal_cases,
    "philosophy": _philosophy,
    "game_records": _game_records,
    "image_text_pairs": _image_text_pairs,
    "video_captions": _video_captions,
    "transcripts": _transcripts,
    "figures": _figures,
    "screenshots": _screenshots,
}
