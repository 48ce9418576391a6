"""The demo's documents: the same bytes at any time, and PDFs that say what was written."""

from pathlib import Path

import pypdfium2
import pytest

from mistral_jax import corpus


def test_the_same_bytes_come_out_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_library_sources", lambda: [Path(corpus.__file__)])
    folders = [corpus.build(tmp_path / "a")]
    monkeypatch.setattr("time.time", lambda: 2e9)  # what gzip and tarfile ask
    folders.append(corpus.build(tmp_path / "b"))
    first, second = ({each.name: each.read_bytes() for each in f.iterdir()} for f in folders)
    assert len(first) == 3
    assert first == second


def test_a_pdf_holds_no_clock_and_says_its_text() -> None:
    data = corpus.write_pdf("A line.\n" * 3)
    assert b"(D:20260101000000" in data
    assert pypdfium2.PdfDocument(data)[0].get_textpage().get_text_bounded().count("A line.") == 3
