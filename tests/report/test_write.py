"""report/write.py: one safe, self-contained page from whatever files there are."""

import html.parser
import json
import re
import subprocess
import sys

import pytest

from mistral_jax.report import write

VOID = {"meta", "br", "img", "hr", "input", "link"}
SECTIONS = {
    "learning", "held-out", "samples", "resume", "exports", "machine", "data", "next",
    "provenance", "config",
}  # fmt: skip


class Page(html.parser.HTMLParser):
    """Collects tags, ids and attributes, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.handlers = [], [], set(), [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            if name in ("src", "href", "xlink:href"):
                self.links.append(value)
            if name.startswith("on"):
                self.handlers.append(name)
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            if tag not in ("circle", "line", "polyline", "rect"):
                raise AssertionError(f"</{tag}> closes {self.open[-3:]}")
        else:
            self.open.pop()


def read(folder, **options):
    return write.write_report(folder, **options).read_text(encoding="utf-8")


@pytest.mark.parametrize("spelled", ["my run", "'my run'", '"my run"', "my run  "])
def test_a_name_of_two_words_is_the_whole_title(tmp_path, spelled):
    (tmp_path / "config.yaml").write_text(f"name: {spelled}\nseed: 1\n", encoding="utf-8")
    assert "<h1>my run</h1>" in read(tmp_path)


def test_whole_run_has_every_section_and_loads_nothing(run_directory):
    text = read(run_directory)
    page = Page(text)
    assert page.ids >= SECTIONS
    assert page.links == []
    assert "script" not in page.tags
    assert not re.search(r"https?://|url\(|@import", text)
    assert page.tags.count("svg") == 4


def test_figures_of_the_files_stand_on_the_page(run_directory):
    text = read(run_directory)
    for shown in (
        "134,515,008", "4,884,480", "3.001 → 2.194", "-0.8611 to -0.7544", "no clear change",
        "bit-identical", "2.30e-05", "3 min 41 s", "uncalibrated", "318,204", "0.12.0.1",
        "warmup_steps: 5",
    ):  # fmt: skip
        assert shown in text, shown


@pytest.mark.parametrize(
    ("file", "section"),
    [
        ("resume.json", "resume"),
        ("eval.json", "held-out"),
        ("export/parity.json", "exports"),
        ("plan.json", "machine"),
        ("config.yaml", "config"),
        ("metrics.jsonl", "learning"),
        ("manifest.json", "provenance"),
    ],
)
def test_section_is_absent_without_its_file(run_directory, file, section):
    (run_directory / file).unlink()
    assert section not in Page(read(run_directory)).ids


def test_empty_run_directory_still_gives_a_page(tmp_path):
    assert Page(read(tmp_path)).ids == {"next"}


def test_texts_cannot_become_markup(run_directory):
    evil = "</p><script>alert(1)</script><img src=x onerror=alert(2)>"
    sample = run_directory / "samples" / "step_000000.json"
    sample.write_text(
        json.dumps({"step": 0, "samples": [{"prompt": evil, "text": evil}]}), encoding="utf-8"
    )
    (run_directory / "config.yaml").write_text(f"name: {evil}\n# {evil}\n", encoding="utf-8")
    with (run_directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 60, "eval": evil, "loss": 2.0}) + "\n")
    manifest = json.loads((run_directory / "manifest.json").read_text(encoding="utf-8"))
    manifest["versions"][evil] = evil
    manifest["data"][0]["name"] = evil
    (run_directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    text = read(run_directory, notes=[evil], next_commands=[(evil, evil)])
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.handlers == []
    assert text.count("&lt;script&gt;") >= 8


def test_worse_loss_and_broken_resume_are_said(run_directory):
    evals = {"sources": {"docs": {"rows": 64, "before": 2.0, "after": 2.5, "difference": 0.5,
                                  "interval_low": 0.4, "interval_high": 0.6}}}  # fmt: skip
    (run_directory / "eval.json").write_text(json.dumps(evals), encoding="utf-8")
    steps = [{"step": 21, "before_hex": "0x1p+1", "after_hex": "0x1.1p+1", "equal": False}]
    proof = {"killed_at": 25, "resumed_at": 20, "steps": steps}
    (run_directory / "resume.json").write_text(json.dumps(proof), encoding="utf-8")
    text = read(run_directory)
    for shown in ("worse", "differs", "✗ no"):
        assert shown in text


def test_damaged_file_is_named_and_the_old_report_stays(run_directory):
    old = read(run_directory)
    (run_directory / "eval.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"eval\.json: not valid JSON"):
        write.write_report(run_directory)
    (run_directory / "eval.json").write_text('{"sources": {"a": {}}}', encoding="utf-8")
    with pytest.raises(ValueError, match="field missing or of the wrong type"):
        write.write_report(run_directory)
    assert (run_directory / "report.html").read_text(encoding="utf-8") == old


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such run directory"):
        write.write_report(tmp_path / "nothing")


def test_report_imports_no_jax():
    code = "import sys; from mistral_jax.report import write; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
