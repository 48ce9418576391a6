"""Inputs made to break readers: archives, bombs, PDFs, JSON lines, strings; through both readers.

A child reads a folder of them and tells what came out, what it took and how much memory it needed.
What holds for all: nothing is written, nothing raises, every reject names its file and its reason,
and accepted and rejected together are what was there.
"""

import gzip
import io
import json
import random
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.catalog import samples

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
MAX_RSS_MIB = 200
MAX_CPU_S = 60
SEED = 20261121
READ = """
import json, resource, sys
from collections import Counter
from pathlib import Path
from data_pipelines import catalog, inflate, pdf, readers
from data_pipelines.documents import Document, Limits
asked, limits, results = json.loads(sys.argv[1]), Limits(**json.loads(sys.argv[2])), []
with catalog.Decoders(limits) as decoders:
    for root, kind in asked:
        root = Path(root)
        kinds, files, unnamed, texts, accepted = Counter(), Counter(), [], [], 0
        for file in readers.list_inputs(root):
            name = readers.name_of(file, root)
            if kind == "plain":
                items = readers.read_file(file, name, limits, decoders.pdf)
            else:
                items = catalog.read_file(kind, file, name, limits, decoders)
            for item in items:
                files[name] += 1
                if not item.id.startswith(name):
                    unnamed.append(item.id)
                if isinstance(item, Document):
                    accepted += 1
                    if len(item.text) < 3000:
                        texts.append([item.id, item.text])
                else:
                    kinds[item.kind] += 1
                    if not item.reason.strip() or not item.id.isprintable():
                        unnamed.append(item.id)
        results.append({"accepted": accepted, "rejected": kinds.total(), "kinds": kinds,
                        "files": files, "unnamed": unnamed, "texts": texts})
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
# Not ru_maxrss, which a new process inherits from the one that started it.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"results": results, "rss_mib": int(status["VmHWM"].split()[0]) >> 10,
                  "cpu_s": sum(each.ru_utime + each.ru_stime for each in used)}))
"""


def read(*asked: tuple[Path, str], **limits) -> list[dict]:
    """Read folders, each by a reader, in one child; check what holds for every hostile input.

    The processes that decode PDFs and media keep their own limits, which are not counted here.
    """
    before = [sorted(folder.parent.rglob("*")) for folder, _ in asked]
    pairs = json.dumps([(str(folder), kind) for folder, kind in asked])
    done = subprocess.run(
        [sys.executable, "-c", READ, pairs, json.dumps(limits)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert before == [sorted(folder.parent.rglob("*")) for folder, _ in asked]
    said = json.loads(done.stdout)
    for result in said["results"]:
        print({key: result[key] for key in ("accepted", "kinds")})
        assert not result["unnamed"]
    print({key: said[key] for key in ("rss_mib", "cpu_s")})
    assert said["rss_mib"] < MAX_RSS_MIB
    assert said["cpu_s"] < MAX_CPU_S
    return said["results"]


# Names that leave an archive, and names that only look so.
ESCAPES = [
    "../x.txt", "../../../../tmp/x.txt", "a/../../x.txt", "a/b/../../../x.txt", "./../x.txt",
    "a/./../../x.txt", "/abs.txt", "//host/share.txt", "///x.txt", "..", "../", "a/..",
    "..\\x.txt", "a\\..\\..\\x.txt", "\\abs.txt", "\\\\host\\x.txt", "C:\\x.txt", "C:/x.txt",
    "c:x.txt", "../good.txt",
]  # fmt: skip
ODD = [
    "....//x.txt", "%2e%2e/x.txt", "..%2fx.txt", "\u2025/x.txt", "~root/x.txt", "a\nb.txt",
    "-rf.txt", "con.txt", "a" * 300 + ".txt", "\u202etxt.x.txt",
]  # fmt: skip
SHAPES = [
    "file", "symlink", "hardlink", "char", "block", "fifo", "pax_path", "pax_link", "long", "twice",
]  # fmt: skip


def hostile_tar(shape: str, name: str) -> bytes:
    """Return a tar with a hostile member before a good one."""
    buffer = io.BytesIO()
    layout = tarfile.GNU_FORMAT if shape == "long" else tarfile.PAX_FORMAT
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        info = tarfile.TarInfo("m.txt" if shape.startswith("pax") else name)
        data = b"hostile"
        types = {
            "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "char": tarfile.CHRTYPE,
            "block": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE, "pax_link": tarfile.SYMTYPE,
        }  # fmt: skip
        info.type = types.get(shape, tarfile.REGTYPE)
        info.linkname = name if shape in types else ""
        info.pax_headers = {"path": name} if shape == "pax_path" else {}
        info.size = len(data) if info.isreg() else 0
        for _ in range(1 + (shape == "twice")):
            archive.addfile(info, io.BytesIO(data) if info.size else None)
        good = tarfile.TarInfo("good.txt")
        good.size = 4
        archive.addfile(good, io.BytesIO(b"good"))
    return buffer.getvalue()


def test_300_hostile_tars_give_their_good_member_and_nothing_else_of_theirs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(ESCAPES + ODD):
        for shape in SHAPES:
            (folder / f"{shape}-{number:02}.tar").write_bytes(hostile_tar(shape, name))
    # Dot files of whoever packed the archive are left out: two names look like them.
    hidden = sum(len(SHAPES) for name in ODD if name.startswith("."))
    for said in read((folder, "plain"), (folder, "documents")):
        assert said["accepted"] + said["rejected"] == 300 * 2 + 30 - hidden
        assert len(said["files"]) == 300
        good = [identity for identity, text in said["texts"] if text == "good"]
        assert len(good) == 300
        # Links and devices are refused under any name, files under a name that leaves.
        files = [each for each in said["texts"] if each[1] == "hostile"]
        inside = {f"-{number:02}.tar!" for number in range(len(ESCAPES), 30)}
        assert all(any(mark in identity for mark in inside) for identity, _ in files)
        assert said["kinds"]["not_a_file"] + said["kinds"]["unsafe_name"] >= 6 * 20


def hostile_zips() -> Iterator[tuple[str, bytes]]:
    """Yield 200 zips: 20 escapes in three shapes, and seven kinds of damage by 20 places."""
    for number, name in enumerate(ESCAPES):
        for shape in ("file", "link", "twice"):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                info = zipfile.ZipInfo(name)
                info.external_attr = (0o120777 if shape == "link" else 0o100644) << 16
                archive.writestr(info, name)
                archive.writestr("good.txt", "good")
                if shape == "twice":
                    archive.writestr("sub/good.txt", "good")
            yield f"name-{shape}-{number:02}.zip", buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.txt", f"text {number} " * 50)
    whole = buffer.getvalue()
    local, central, end = (whole.rfind(mark) for mark in (b"PK\3\4", b"PK\1\2", b"PK\5\6"))
    chance = random.Random(SEED)
    for number in range(20):
        places = {
            "flip": chance.randrange(len(whole)),
            "local": local + chance.randrange(30),
            "central": central + chance.randrange(46),
            "end": end + chance.randrange(22),
            "first": chance.randrange(30),
        }
        for shape, place in places.items():
            data = bytearray(whole)
            data[place] = chance.randrange(256)
            yield f"{shape}-{number:02}.zip", bytes(data)
        yield f"cut-{number:02}.zip", whole[: chance.randrange(1, len(whole))]
        yield f"junk-{number:02}.zip", chance.randbytes(200) + whole + chance.randbytes(20)


def test_200_hostile_zips_escape_nowhere_and_stop_nothing(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    written = dict(hostile_zips())
    assert len(written) == 200
    for name, data in written.items():
        (folder / name).write_bytes(data)
    (said,) = read((folder, "plain"))
    assert len(said["files"]) == 200
    assert said["kinds"]["unsafe_name"] >= 40
    assert not [text for _, text in said["texts"] if text in ESCAPES]


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield 40 bombs: ten kinds in four sizes, of 8 to 64 MiB where it is bytes."""
    for power in range(23, 27):
        zeros = b"0" * (1 << power)
        once = gzip.compress(zeros, 9)
        inner = _zip({"a.txt": zeros})
        lying = bytearray(inner)
        for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
            place = lying.rfind(mark) + at
            lying[place : place + 4] = (100).to_bytes(4, "little")
        yield f"plain-{power}.zip", inner
        yield f"nested-{power}.zip", _zip({f"{n}.zip": inner for n in range(4)})
        yield f"lying-{power}.zip", bytes(lying)
        yield f"chain-{power}.txt.gz.gz", gzip.compress(once)
        yield f"line-{power}.jsonl.gz", once
        yield f"tar-{power}.tar.gz", gzip.compress(samples.packed_tar({"a.txt": zeros}))
        yield (
            f"deep-{power}.tar.gz",
            gzip.compress(samples.packed_tar({"b.tar.gz": _gz_tar(zeros)})),
        )
        yield (
            f"many-{power}.tar.gz",
            gzip.compress(samples.packed_tar({f"{n}.txt": b"" for n in range(500 * (power - 22))})),
        )
        yield f"page-{power}.pdf", pdf_of(zlib.compress(zeros[: 1 << 24], 9))
        yield f"laughs-{power}.xml.gz", gzip.compress(laughs(power))


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _gz_tar(data: bytes) -> bytes:
    return gzip.compress(samples.packed_tar({"a.txt": data}))


def laughs(depth: int) -> bytes:
    """Return XML whose entities name each other, ten times each."""
    lines = ['<!DOCTYPE article [<!ENTITY e0 "ha">']
    lines += [f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, depth)]
    return "".join([*lines, f"]><article><body><p>&e{depth - 1};</p></body></article>"]).encode()


def pdf_of(content: bytes, pages: int = 1) -> bytes:
    """Return a PDF whose pages share one deflated stream."""
    kids = " ".join(f"{5 + n} 0 R" for n in range(pages))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Length {len(content)} /Filter /FlateDecode >>\nstream\n".encode()
        + content
        + b"\nendstream",
    ]
    page = (
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
        "/Resources << /Font << /F1 3 0 R >> >> >>"
    )
    objects += [page.encode()] * pages
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    start, size = len(out), len(objects) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n".encode()
    out += "".join(f"{offset:010d} 00000 n \n" for offset in offsets).encode()
    return out + f"trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()


def test_40_bombs_go_off_nowhere(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    written = dict(bombs())
    assert len(written) == 40
    for name, data in written.items():
        (folder / name).write_bytes(data)
    (tmp_path / "xml" / "in").mkdir(parents=True)
    for power in range(4):
        (tmp_path / "xml" / "in" / f"{power}.xml").write_bytes(laughs(6 + power * 4))
    said, laughed = read(
        (folder, "plain"),
        (tmp_path / "xml" / "in", "papers"),
        member_bytes=4 << 20,
        max_members=400,
        pdf_timeout_s=5.0,
    )
    assert len(said["files"]) == 40
    stopped = ("bomb", "too_large", "too_deep", "too_many_members", "line_too_long")
    assert sum(said["kinds"].get(kind, 0) for kind in stopped) >= 30
    assert laughed["kinds"] == {"unsafe_xml": 4}


def mutated_pdfs(count: int) -> Iterator[bytes]:
    """Yield PDFs with bytes changed, cut out, doubled, or a number in them made large."""
    text = b"BT /F1 12 Tf 50 700 Td (A ship goes by) Tj ET\n" * 20
    whole = pdf_of(zlib.compress(text), pages=5)
    chance = random.Random(SEED)
    for number in range(count):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 12)):
            place = chance.randrange(len(data) - 20)
            match number % 5:
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place : place + chance.randrange(1, 20)]
                case 2:
                    data[place:place] = data[place : place + chance.randrange(1, 200)]
                case 3:
                    data[place] = ord(chance.choice("0123456789<>[]()/ "))
                case _:
                    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
                    at = chance.choice(digits)
                    data[at : at + 1] = str(chance.randrange(1 << 40)).encode()
        yield bytes(data)


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutated_pdfs_cost_themselves_alone(tmp_path, count):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, data in enumerate(mutated_pdfs(count)):
        (folder / f"{number:04}.pdf").write_bytes(data)
    (said,) = read((folder, "plain"), pdf_timeout_s=2.0)
    assert said["accepted"] + said["rejected"] == count == len(said["files"])
    assert said["accepted"] > count // 10
    assert set(said["kinds"]) <= {"bad_pdf", "no_text", "encrypted"}


def bad_lines(count: int) -> list[bytes]:
    """Return lines of JSON, most of them bad in one of twenty ways; none is blank."""
    chance = random.Random(SEED)
    words = ["lamp", "ship", "\u00e9", "\U0001f6a2", "\\ud800", "\\u0000", "\ufeff", "\x01"]
    lines = []
    for number in range(count):
        said = "".join(chance.choice(words) for _ in range(chance.randrange(1, 8)))
        good = json.dumps({"text": f"row {number}", "problem": "p", "solution": "s", "n": number})
        makers: list[Callable[[str, str], str]] = [
            lambda good, said: good,
            lambda good, said: '{"text": "' + said + '"}',
            lambda good, said: good[: chance.randrange(1, len(good))],
            lambda good, said: '{"text": NaN}',
            lambda good, said: '{"text": 1e999}',
            lambda good, said: "[" * chance.randrange(1, 5000),
            lambda good, said: '{"a":' * 500 + "1" + "}" * 500,
            lambda good, said: '{"text": "a", "text": "b"}',
            lambda good, said: chance.choice(["null", "true", "3", '"text"', "[]", "{}"]),
            lambda good, said: '{"text": ' + chance.choice(["3", "null", "[]", "{}", "true"]) + "}",
            lambda good, said: (
                '{"messages": ' + chance.choice(['"x"', "[]", "[1]", '[{"role": 3}]']) + "}"
            ),
            lambda good, said: '{"prompt": "p", "completion": ""}',
            lambda good, said: '{"text": "' + "y" * chance.randrange(9000, 20_000) + '"}',
            lambda good, said: good.replace('"', "'"),
            lambda good, said: good + good,
            lambda good, said: '{"question": "q", "answer": ' + "9" * 5000 + "}",
            lambda good, said: '{"query": "q", "program": "import os\\nos.abort()", "answer": 1}',
            lambda good, said: '{"problem": "p", "solution": "\\\\boxed{' + "{" * 50 + '"}',
        ]
        line = makers[number % len(makers)](good, said).encode("utf-8", "surrogatepass")
        if number % 19 == 7:
            line = line.replace(b"t", bytes([chance.choice([0, 0x80, 0xFF])]), 1)
        if number % 23 == 5:
            line = b"\xef\xbb\xbf" + line
        lines.append(line.replace(b"\n", b" ") or b"{")
    return lines


def test_10000_bad_lines_are_all_accounted_for(tmp_path):
    lines = bad_lines(10_000)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    packed = gzip.compress(b"\n".join(lines))
    cut = tmp_path / "cut"
    (cut / "in").mkdir(parents=True)
    (cut / "in" / "rows.jsonl.gz").write_bytes(packed[: len(packed) * 2 // 3])
    loaders = ("plain", "competition_problems", "logic_puzzles", "computational_queries")
    *whole, part = read(
        *((folder, kind) for kind in loaders), (cut / "in", "plain"), line_bytes=8192
    )
    for said in whole:
        assert said["accepted"] + said["rejected"] == 10_000
        assert {"bad_json", "not_utf8", "line_too_long", "bad_schema"} <= set(said["kinds"])
    assert whole[0]["accepted"] >= 400
    assert part["accepted"] > 100
    assert part["kinds"]["damaged_archive"] == 1


def test_the_naughty_strings_are_read_as_they_are_or_refused_by_name(tmp_path):
    strings = json.loads((ROOT / "tests" / "data" / "blns.json").read_text(encoding="utf-8"))
    assert len(strings) == 485
    folders = {name: tmp_path / name / "in" for name in ("lines", "names", "web", "media")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    lines = [json.dumps({"text": text}) for text in strings]
    (folders["lines"] / "blns.jsonl").write_text("\n".join(lines))
    archive = _zip({f"{text}/x.txt": b"inside" for text in dict.fromkeys(strings) if text})
    (folders["names"] / "names.zip").write_bytes(archive)
    members = {f"{number}.html": f"<p>{t}</p>a".encode() for number, t in enumerate(strings)}
    (folders["names"] / "pages.tar").write_bytes(samples.packed_tar(members))
    records = (samples.warc_record("conversion", text.encode()) for text in strings)
    (folders["web"] / "naughty.wet").write_bytes(b"".join(records))
    rows = [{"image": text, "caption": text or "x"} for text in strings]
    (folders["media"] / "figures.jsonl").write_text("\n".join(map(json.dumps, rows)))

    kinds = {"lines": "plain", "names": "plain", "web": "filtered_web", "media": "figures"}
    said, names, web, media = read(*((folders[name], kind) for name, kind in kinds.items()))
    blank = {"empty": sum(not text.strip() for text in strings)}
    assert [each["accepted"] + each["rejected"] for each in (said, web, media)] == [485] * 3
    assert said["kinds"] == web["kinds"] == blank
    kept = [text for text in strings if text.strip()]
    assert [text for _, text in said["texts"]] == [text for _, text in web["texts"]] == kept
    assert names["files"]["pages.tar"] == 485
    assert 0 < names["files"]["names.zip"] <= 485
    assert set(names["kinds"]) == {"unsafe_name"}


@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_mutated_samples_of_every_format_never_raise(tmp_path, count):
    chance = random.Random(SEED)
    letters = b" \n\t\"'<>{}[]()&;:,.-=%0123456789abcxyz\\"
    asked = []
    for name, files in samples.SAMPLES.items():
        for path, data in files().items():
            if path.endswith((".png", ".jpg", ".mp4", ".flac", ".wav")):
                continue
            if path.endswith(".gz"):  # its checksum would hide what lies inside
                path, data = path.removesuffix(".gz"), gzip.decompress(data)
            for number in range(count):
                changed = bytearray(data)
                for _ in range(chance.randrange(1, 6)):
                    place = chance.randrange(len(changed))
                    changed[place] = chance.choice(letters if number % 2 else range(256))
                stop = len(changed) if number % 4 else chance.randrange(len(changed))
                file = tmp_path / name / "in" / str(number) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(bytes(changed[:stop]))
        asked.append((tmp_path / name / "in", name))
    for (_, name), said in zip(asked, read(*asked)):
        # One that turns into an event or a page of another kind has nothing to say.
        assert len(said["files"]) >= 0.9 * count, name
