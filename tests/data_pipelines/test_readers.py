"""Good inputs of every kind, and bad ones one by one: kept out, listed, and the rest still read."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pypdfium2
import pytest

from data_pipelines import clean
from data_pipelines import html_text
from data_pipelines import pdf
from data_pipelines import readers
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject


def make_pdf(text: str | None) -> bytes:
    """Return a one-page PDF written by hand, with or without a line of text."""
    content = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET" if text else "0 0 10 10 re f"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += "".join(f"{offset:010d} 00000 n \n" for offset in offsets).encode()
    return out + f"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()


ENCRYPTED_TRAILER = (
    b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <" + b"00" * 32 + b"> /U <" + b"00" * 32
) + b"> >> /ID [<00><00>] "


def make_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def make_tar(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            else:
                archive.addfile(info)
    return buffer.getvalue()


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return info


def read(folder: Path, files: dict[str, bytes], **limits) -> tuple[dict, dict]:
    """Return {id: document} and {id: kind of reject} of a folder with these files."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    documents, rejects = {}, {}
    for item in items(folder, Limits(**limits)):
        if isinstance(item, Document):
            documents[item.id] = item
        else:
            rejects[item.id] = item.kind
            assert item.reason
    return documents, rejects


def items(folder: Path, limits: Limits) -> Iterator[Document | Reject]:
    with pdf.PdfReader(limits) as pdf_reader:
        for file in readers.list_inputs(folder):
            yield from readers.read_file(file, readers.name_of(file, folder), limits, pdf_reader)


def test_text_markdown_code_and_html_are_read(tmp_path):
    documents, rejects = read(
        tmp_path,
        {
            "a.md": "\ufeff# Grüße".encode(),
            "b/c.py": b"print(1)\n",
            "d.html": b"<title>T</title><p>a <b>b</b><script>no()</script><p>c &amp; d",
            "README": b"plain",
            ".hidden": b"x",
            "__pycache__/x.py": b"x",
        },
    )
    assert {name: each.text for name, each in documents.items()} == {
        "README": "plain",
        "a.md": "# Grüße",
        "b/c.py": "print(1)\n",
        "d.html": "T\na b\nc & d",
    }
    assert not rejects


def test_jsonl_of_all_three_shapes_is_read(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    lines = [{"messages": chat}, {"prompt": "p", "completion": "c"}, {"text": "t"}]
    data = "\n\n".join(json.dumps(line) for line in lines).encode()
    documents, rejects = read(tmp_path, {"x.jsonl": data, "y.jsonl.gz": gzip.compress(data)})
    assert not rejects
    for name in ("x.jsonl", "y.jsonl.gz!y.jsonl"):
        assert documents[f"{name}#1"].messages == tuple(chat)
        assert (documents[f"{name}#3"].prompt, documents[f"{name}#3"].completion) == ("p", "c")
        assert documents[f"{name}#5"].text == "t"


def chat_line(answer: dict | None = None, **keys: object) -> bytes:
    turn = {"role": "assistant", "content": "a", **(answer or {})}
    return json.dumps({"messages": [{"role": "user", "content": "q"}, turn], **keys}).encode()


@pytest.mark.parametrize(
    "line",
    [
        chat_line({"tool_calls": None, "weight": None}, tools=None),
        chat_line({"weight": 1}, prompt="q", prompt_id="7"),
    ],
)
def test_keys_that_change_nothing_are_accepted(tmp_path, line):
    documents, rejects = read(tmp_path, {"x.jsonl": line})
    assert not rejects
    assert documents["x.jsonl#1"].messages[1] == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"text": "\xff"}', "not_utf8"),
        (b'{"text": "a"', "bad_json"),
        (b'{"text": NaN}', "bad_json"),
        (b'{"text": "a", "text": "b"}', "bad_json"),
        (b'{"text": "\\ud800"}', "bad_json"),
        (b'{"n": ' + b"9" * 5000 + b', "text": "a"}', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'["text"]', "bad_schema"),
        (b'{"text": 3}', "bad_schema"),
        (b'{"body": "a"}', "bad_schema"),
        (b'{"text": "a", "messages": []}', "bad_schema"),
        (b'{"prompt": "a", "text": "b"}', "bad_schema"),
        (chat_line(prompt="another"), "bad_schema"),
        (chat_line(tools=[{"type": "function"}]), "bad_schema"),
        (chat_line({"tool_calls": [{"id": "1"}]}), "bad_schema"),
        (chat_line({"weight": 0.5}), "bad_schema"),
        (b'{"messages": [{"role": "alien", "content": "a"}]}', "bad_schema"),
        (b'{"messages": [{"role": "assistant"}]}', "bad_schema"),
        (b'{"messages": []}', "empty_chat"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "empty_chat"),
        (b'{"prompt": "a", "completion": " "}', "empty"),
        (b'{"text": "' + b"a" * 300_000 + b'"}', "line_too_long"),
    ],
)
def test_a_bad_line_is_listed_and_the_next_one_read(tmp_path, line, kind):
    data = b'{"text": "first"}\n' + line + b'\n{"text": "last"}'
    documents, rejects = read(tmp_path, {"x.jsonl": data}, line_bytes=200_000)
    assert rejects == {"x.jsonl#2": kind}
    assert sorted(documents) == ["x.jsonl#1", "x.jsonl#3"]


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.txt", b"fine\nnot \xff fine", "not_utf8"),
        ("a.txt", b"a\0b", "binary"),
        ("a.txt", b" \n\t", "empty"),
        ("a.jsonl", b"\n\n", "empty"),
        ("a.png", b"\x89PNG", "unsupported_type"),
        ("a.txt", b"a" * 5000, "too_large"),
        ("a.zip", b"PK\3\4 and no more", "damaged_archive"),
        ("a.tar.gz", make_tar({"x.txt": bytes(range(256)) * 9})[:-40], "damaged_archive"),
        ("a.pdf", b"%PDF-1.7\nnothing", "bad_pdf"),
        ("a.pdf", make_pdf(None), "no_text"),
        (
            "a.pdf",
            make_pdf("secret").replace(b"/Root", ENCRYPTED_TRAILER + b"/Root"),
            "encrypted",
        ),
    ],
)
def test_a_bad_file_is_kept_out_of_the_good_ones(tmp_path, name, data, kind):
    documents, rejects = read(tmp_path, {name: data, "good.txt": b"good"}, member_bytes=4096)
    assert kind in rejects.values()
    assert all(identity.startswith(name) for identity in rejects)
    assert [each.text for each in documents.values()] == ["good"]


def test_lines_that_are_all_too_long_are_not_called_none(tmp_path):
    _, rejects = read(tmp_path, {"x.jsonl": b"x" * 100}, line_bytes=10)
    assert rejects == {"x.jsonl#1": "line_too_long"}


def test_a_bad_text_names_its_line():
    reject = readers.read_text("a.txt", b"fine\nnot \xff fine", is_html=False)
    assert isinstance(reject, Reject)
    assert reject.id == "a.txt#2"
    assert "byte 9" in reject.reason


def test_pdf_text_is_read_also_after_a_corrupt_one(tmp_path):
    documents, rejects = read(
        tmp_path,
        {
            "1.pdf": b"%PDF junk",
            "2.pdf": make_pdf("Hello PDF"),
            "3.zip": make_zip({"m.pdf": make_pdf("In zip")}),
        },
    )
    assert rejects == {"1.pdf": "bad_pdf"}
    assert documents["2.pdf"].text == "Hello PDF"
    assert documents["3.zip!m.pdf"].text == "In zip"


def test_our_handmade_pdf_opens_in_pdfium_directly():
    document = pypdfium2.PdfDocument(make_pdf("Hello"))
    assert document[0].get_textpage().get_text_bounded() == "Hello"


def test_the_pdf_process_keeps_its_limits(tmp_path):
    started = time.monotonic()
    _, rejects = read(tmp_path, {"1.pdf": make_pdf("late"), "ok.txt": b"ok"}, pdf_timeout_s=0.001)
    assert rejects == {"1.pdf": "bad_pdf"}
    _, rejects = read(tmp_path, {}, pdf_memory_bytes=16 << 20)
    assert rejects == {"1.pdf": "bad_pdf"}
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_members_are_read(tmp_path, mode):
    suffix = {"w": ".tar", "w:gz": ".tar.gz", "w:bz2": ".tar.bz2", "w:xz": ".tar.xz"}[mode]
    data = make_tar({"a.txt": b"one", "b/c.md": b"two", "._a.txt": b"fork"}, mode)
    documents, rejects = read(tmp_path, {f"x{suffix}": data})
    assert {name: each.text for name, each in documents.items()} == {
        f"x{suffix}!a.txt": "one",
        f"x{suffix}!b/c.md": "two",
    }
    assert not rejects


def test_archives_are_read_to_depth_two(tmp_path):
    inner = make_zip({"deep.txt": b"deep"})
    middle = make_tar({"in.zip": inner, "mid.txt": b"mid"})
    documents, rejects = read(tmp_path, {"o.zip": make_zip({"m.tar.gz": middle})})
    assert list(documents) == ["o.zip!m.tar.gz!mid.txt"]
    assert rejects == {"o.zip!m.tar.gz!in.zip": "too_deep"}


def test_gzip_in_gzip_is_read_to_depth_two(tmp_path):
    twice = gzip.compress(gzip.compress(b"text"))
    documents, rejects = read(
        tmp_path, {"a.txt.gz.gz": twice, "b.txt.gz.gz.gz": gzip.compress(twice)}
    )
    assert [each.text for each in documents.values()] == ["text"]
    assert list(rejects.values()) == ["too_deep"]


@pytest.mark.parametrize(
    "name", ["../up.txt", "a/../../up.txt", "/abs.txt", "..\\up.txt", "C:\\x.txt", "\\\\host\\x"]
)
def test_names_that_leave_the_archive_are_refused(tmp_path, name):
    good = {"good.txt": b"good"}
    documents, rejects = read(
        tmp_path,
        {"a.zip": make_zip({name: b"bad", **good}), "b.tar.gz": make_tar({name: b"bad", **good})},
    )
    assert sorted(documents) == ["a.zip!good.txt", "b.tar.gz!good.txt"]
    assert list(rejects.values()) == ["unsafe_name"] * 2


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_tar_are_refused(tmp_path, kind):
    data = make_tar({"bad.txt": special("bad.txt", kind), "good.txt": b"good"})
    documents, rejects = read(tmp_path, {"a.tgz": data})
    assert list(documents) == ["a.tgz!good.txt"]
    assert rejects == {"a.tgz!bad.txt": "not_a_file"}


def test_a_link_in_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link.txt")
    info.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "/etc/passwd")
        archive.writestr("good.txt", "good")
    documents, rejects = read(tmp_path, {"a.zip": buffer.getvalue()})
    assert (list(documents), rejects) == (["a.zip!good.txt"], {"a.zip!link.txt": "not_a_file"})


ZEROS = b"0" * (8 << 20)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.zip", make_zip({"bomb.txt": ZEROS})),
        ("a.tar.gz", make_tar({"bomb.txt": ZEROS})),
        ("a.tar.gz", make_tar({"skipped.png": ZEROS})),
        ("a.tar.xz", make_tar({"bomb.txt": ZEROS}, "w:xz")),
        ("a.txt.gz", gzip.compress(ZEROS)),
        ("a.zip", make_zip({"in.tar": make_tar({"bomb.txt": ZEROS}, "w")})),
    ],
)
def test_a_bomb_is_stopped_by_its_ratio(tmp_path, name, data):
    documents, rejects = read(tmp_path, {name: data, "good.txt": b"good"})
    assert list(documents) == ["good.txt"]
    assert "bomb" in rejects.values()


@pytest.mark.parametrize("limits", [{"total_bytes": 100}, {"max_members": 1}])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_caps_on_bytes_and_members_end_an_archive(tmp_path, limits, make):
    suffix = ".zip" if make is make_zip else ".tar.gz"
    data = make({"a.txt": b"short", "b.txt": b"long" * 1000})
    _, rejects = read(tmp_path, {f"a{suffix}": data, "good.txt": b"good"}, **limits)
    assert set(rejects.values()) <= {"too_large", "too_many_members"}
    assert rejects


def test_nothing_is_written_while_reading(tmp_path):
    (tmp_path / "in").mkdir()
    data = make_tar(
        {"../evil.txt": b"x", "a.zip": make_zip({"../../evil.txt": b"x", "b.md": b"b"})}
    )
    read(tmp_path / "in", {"a.tgz": data})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tgz", "in"]


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(readers.NoDocuments, match="the folder is empty; expected PDF"):
        readers.list_inputs(tmp_path)
    with pytest.raises(ValueError, match="expected a file or a folder"):
        readers.list_inputs(tmp_path / "nowhere")


def test_links_to_nothing_and_to_folders_are_listed(tmp_path):
    (tmp_path / "dead.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "linked").symlink_to("/usr")
    _, rejects = read(tmp_path, {"good.txt": b"good"})
    assert rejects == {"dead.txt": "not_a_file", "linked": "linked_folder"}


@pytest.fixture
def closed_to_us():
    """Give up root's right to read everything, and a folder that ordinary users reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        yield Path(name)
        if is_root:
            os.seteuid(0)
        for path in Path(name).rglob("*"):
            path.chmod(0o700)


def test_what_may_not_be_read_is_listed(closed_to_us):
    files = {"good.txt": b"good", "secret.txt": b"s", "locked/x.txt": b"x", "listed/y.txt": b"y"}
    read(closed_to_us, files)
    for name, mode in (("secret.txt", 0), ("locked", 0), ("listed", 0o400)):
        (closed_to_us / name).chmod(mode)
    documents, rejects = read(closed_to_us, {})
    assert list(documents) == ["good.txt"]
    assert rejects == dict.fromkeys(("secret.txt", "locked", "listed/y.txt"), "unreadable")
    listed = readers.list_inputs(closed_to_us)
    sizes = {file.name: readers.file_size_bytes(file) for file in listed}
    assert sizes == {"good.txt": 4, "secret.txt": 1, "locked": None, "y.txt": None}


def test_odd_names_are_read_and_shown_printably(tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff\x1b.txt"
    Path(os.fsdecode(odd)).write_text("odd")
    members = {"in!.jsonl": b'{"text": "b"}'}
    documents, rejects = read(tmp_path, {"a!.txt": b"a", "z!.zip": make_zip(members)})
    assert sorted(documents) == ["\\udcff\\x1b.txt", "a!.txt", "z!.zip!in!.jsonl#1"]
    assert not rejects


def packed_zip(content: bytes, method: int) -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("\xe9.txt", content)
    return bytearray(buffer.getvalue())


def changed(data: bytearray, marker: bytes, offset: int, new: bytes) -> bytes:
    """Return the bytes with others at an offset behind the last place of a marker."""
    start = data.rfind(marker) + offset
    return bytes(data[:start] + new + data[start + len(new) :])


SMALL_ZIP = packed_zip(b"some text", zipfile.ZIP_DEFLATED)
DIRECTORY, END = b"PK\1\2", b"PK\5\6"
# The name is "\xe9.txt" in UTF-8; the first place is the member's, the last the directory's.
BAD_NAME = b"\xff\xfe.txt"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (bytes(packed_zip(ZEROS, zipfile.ZIP_BZIP2)), "unsupported_compression"),
        (bytes(packed_zip(ZEROS, zipfile.ZIP_LZMA)), "unsupported_compression"),
        (changed(SMALL_ZIP, DIRECTORY, 46, BAD_NAME), "damaged_archive"),
        (bytes(SMALL_ZIP).replace("\xe9.txt".encode(), BAD_NAME, 1), "damaged_archive"),
        (make_zip({"in.zip": changed(SMALL_ZIP, END, 16, b"\0\0\0\x7f")}), "damaged_archive"),
    ],
)
def test_zips_whose_headers_lie_are_refused(tmp_path, data, kind):
    documents, rejects = read(tmp_path, {"a.zip": data, "good.txt": b"good"})
    assert (list(documents), list(rejects.values())) == (["good.txt"], [kind])


def test_members_that_share_bytes_do_not_get_round_the_ratio(tmp_path):
    letters = random.Random(0).randbytes(20_000).hex()
    text = "".join(letters[i : i + 100].ljust(10_000, "0") for i in range(0, len(letters), 100))
    data = packed_zip(text.encode(), zipfile.ZIP_DEFLATED)
    start, end = data.rfind(DIRECTORY), data.rfind(END)
    assert len(text) < 150 * (end - start + len(data)), "no bomb by itself"
    directory = bytes(data[start:end]) * 3
    tail = bytearray(data[end:])
    tail[8:12] = (3).to_bytes(2, "little") * 2
    tail[12:16] = len(directory).to_bytes(4, "little")
    documents, rejects = read(tmp_path, {"a.zip": bytes(data[:start]) + directory + bytes(tail)})
    assert len(documents) == 1
    assert list(rejects.values()) == ["bomb"]


def sparse_member(size: int) -> bytes:
    """Return a header in GNU's old format: 512 bytes, and a hole up to a size."""
    info = tarfile.TarInfo("hole.txt")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    numbers = [number.to_bytes(12, "big") for number in (0, 512, size, 0)]
    header[386:434] = b"".join(bytes([each[0] | 0x80]) + each[1:] for each in numbers)
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"x" * 512


THREE = make_tar({f"{name}.txt": name.encode() for name in "abc"}, "w")


@pytest.mark.parametrize(
    ("data", "kind", "read_before"),
    [
        (changed(bytearray(THREE), b"b.txt", 0, b"B"), "damaged_archive", ["a.tar!a.txt"]),
        (THREE[: 2 * 1024 + 200], "damaged_archive", ["a.tar!a.txt", "a.tar!b.txt"]),
        (THREE[: 2 * 1024], "damaged_archive", ["a.tar!a.txt", "a.tar!b.txt"]),
        (sparse_member(1 << 40) + THREE, "sparse_file", [f"a.tar!{name}.txt" for name in "abc"]),
    ],
)
def test_tars_lose_no_member_in_silence(tmp_path, data, kind, read_before):
    documents, rejects = read(tmp_path, {"a.tar": data})
    assert (list(documents), list(rejects.values())) == (read_before, [kind])


@pytest.mark.parametrize("cut", range(0, 400, 23))
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_damaged_archive_never_raises(tmp_path, make, cut):
    suffix = ".zip" if make is make_zip else ".tar.gz"
    data = bytearray(make({"a.txt": b"some text to read", "b.md": b"more of it" * 30}))
    data[cut % len(data)] ^= 0x5A
    documents, _ = read(tmp_path, {f"a{suffix}": bytes(data), "good.txt": b"good"})
    assert documents["good.txt"].text == "good"


def test_clean_makes_text_regular_and_keeps_its_indentation():
    raw = "\ufeffe\u0301\x07 x\u00ad  \r\n\r\n\r\n\r\n\r\n    y\x0cz\t\n\n"
    assert clean.clean_text(raw) == "é x\u00ad\n\n\n    y\nz"
    assert clean.clean_text(clean.clean_text(raw)) == clean.clean_text(raw)
    assert clean.clean_text("a\vb") == clean.clean_turn("a\vb") == "a\nb"


HTML_UNITS = ["<a ", "</", "<!--", "<?", "<![CDATA[", "<script>", '<a b="', "<p", "<svg><p>", "&#9"]


@pytest.mark.parametrize("unit", HTML_UNITS)
def test_html_takes_time_by_its_length_alone(unit):
    started = time.process_time()
    html_text.html_text(unit * 50_000)
    assert time.process_time() - started < 2, "the standard library's parser takes minutes"


def test_a_long_run_of_spaces_is_cleaned_at_once():
    started = time.process_time()
    assert len(clean.clean_text("a" + " " * 200_000 + "b")) == 200_002
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>one</p><svg><path d=''><p>two</p>", "one\ntwo"),
        ("<svg><text>x</text></svg>a<svg/>b<style>p > a</style>c", "abc"),
        ("<SCRIPT>if (a<b) '</p>'</script >d", "d"),
        ("1 < 2 &lt; 3 &amp;lt; <3", "1 < 2 < 3 &lt; <3"),
        ("<a title='x > y' t=a\"b>z</a> it's", "z it's"),
        ("<!doctype html>a<!-- b > c -->d<?php e ?>f<!-->g", "adfg"),
        ("a <b c", "a c"),
        (f"&#{'9' * 5000};&#x41;", "\ufffdA"),
    ],
)
def test_html_text_is_what_a_reader_sees(source, text):
    assert html_text.html_text(source) == text


def test_compressors_used_here_agree_with_the_reader(tmp_path):
    plain = make_tar({"a.txt": b"x"}, "w")
    files = {"1.tar.gz": gzip.compress(plain), "2.tar.gz": bz2.compress(plain)}
    documents, _ = read(tmp_path, {**files, "3.tar": lzma.compress(plain)})
    assert len(documents) == 3
