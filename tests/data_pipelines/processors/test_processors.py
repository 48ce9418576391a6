"""The steps of the data plant: what each keeps, changes and refuses, and that none takes long."""

import gzip
import json
import unicodedata

import pytest
from pydantic import ValidationError

from data_pipelines import processors
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.processors import clean
from data_pipelines.processors import code
from data_pipelines.processors import expert
from data_pipelines.processors import maths
from data_pipelines.processors import standard_form
from data_pipelines.processors import toxicity
from mistral_jax.config import processors as config

PROSE = (
    "The harbour was built by the townspeople in the years after the great flood, and for a long "
    "time it was the only one on that coast. Ships from the north brought timber and salt; they "
    "left with wool, which was sold in the markets of the south. When the railway came, the trade "
    "moved inland, and the quays were given to fishermen and to those who repaired their boats."
)


def row(text, kind="text", name="a.txt", **facts):
    return Row(Document(name, "text", text=text), "s", kind, "general", "CC0-1.0", facts=facts)


def run(step, given, **resources):
    return processors.build([step], **resources)(given)


def reject_of(step, given):
    made = run(step, given)
    return made.kind if isinstance(made, Reject) else None


def test_defaults_keep_prose_and_know_its_language():
    made = processors.build(config.Processors().text)(row(PROSE))
    assert isinstance(made, Row)
    assert made.text == PROSE
    assert made.facts["language"] == "en"
    assert made.facts["toxicity"] < 0.2


def test_config_is_a_union_by_kind_and_refuses_what_it_does_not_know():
    text = '{"text": [{"kind": "clean"}, {"kind": "quality", "min_words": 5}]}'
    made = config.Processors.model_validate_json(text)
    assert [step.kind for step in made.text] == ["clean", "quality"]
    assert set(processors.BUILDERS) == {
        branch.model_fields["kind"].default for branch in config.Processors.model_fields["text"]
        .annotation.__args__[0].__origin__.__args__
    }  # fmt: skip
    with pytest.raises(ValidationError, match="quality"):
        config.Processors.model_validate_json('{"text": [{"kind": "qualty"}]}')


def test_clean_takes_navigation_and_running_heads_and_keeps_pages_in_place():
    lines, words = "\n".join(PROSE.split(". ")), PROSE.split()
    pages = [
        f"A Book of Harbours\n{at} Salt\n{lines} No {at}\nand ended with {words[at]}\n"
        f"{words[-at]} it was\n\nPage {at} of 9\n\n"
        for at in range(9)
    ]
    starts = tuple(sum(map(len, pages[:at])) for at in range(9))
    document = Document("b.pdf", "text", text="".join(pages), pages=starts)
    made = run(config.Clean(), Row(document, "s", "text", "general", "x"))
    assert "A Book" not in made.text and "Page 3" not in made.text
    for at, start in enumerate(made.document.pages):
        end = (*made.document.pages, len(made.text))[at + 1]
        assert f"No {at}" in made.text[start:end]
    text = f"Skip to content\n» Read more\n{PROSE}\nWe use cookies to serve you better. OK?\n"
    assert run(config.Clean(), row(text)).text == PROSE
    assert "Read more" in run(config.Clean(boilerplate=False), row(text)).text
    assert reject_of(config.Clean(), row("Read more\n")) == "empty"


def test_clean_changes_every_text_of_a_chat_and_no_part_that_is_none():
    parts = [{"type": "text", "text": "a\u0000b"}, {"type": "image", "image": 3}]
    messages = ({"role": "user", "content": parts}, {"role": "assistant", "content": "c\r\nd"})
    made = run(config.Clean(), Row(Document("c", "chat", messages=messages), "s", "text", "x", "x"))
    assert made.document.messages[0]["content"] == [{"type": "text", "text": "ab"}, parts[1]]
    assert made.document.messages[1]["content"] == "c\nd"


def test_cleaning_is_the_same_with_the_short_cuts_as_without():
    for text in (
        "a\x85b \n\n\n\n\n\nc\t\nd\u2028e",
        "x\r\n\r\n\r\n\r\ny",
        "\x0c",
        "e\u0301\ufeff",
        "",
    ):
        plain = clean.clean.CONTROL.sub(
            "", clean.clean.LINE_END.sub("\n", text.replace("\u2028", "\n"))
        )
        plain = "\n".join(
            line.rstrip(" \t") for line in unicodedata.normalize("NFC", plain).split("\n")
        )
        plain = clean.clean.MANY_BLANK_LINES.sub("\n\n\n", plain).strip("\n").rstrip()
        assert clean.clean.clean_text(text) == plain


BROKEN = {
    "too_few_words": "Three short words",
    "word_length": "Donaudampfschifffahrtsgesellschaft " * 30,
    "symbols": " ".join(f"#{word}" for word in PROSE.split()),
    "few_letters": " ".join(f"{at}.{at + 1:04d},{at}=+-*/%({at})" for at in range(60)),
    "duplicate_lines": f"{PROSE}\n" * 3,
    "duplicate_paragraphs": "\n\n".join([f"{PROSE[:160]}\n{PROSE[160:]}"] * 3),
    "bullets": "\n".join(f"- {word} and more of it" for word in PROSE.split()),
    "ellipses": "\n".join(f"{word} and more of it..." for word in PROSE.split()),
    "refused_phrase": f"{PROSE} Lorem ipsum dolor sit amet.",
    "top_2gram": " ".join(f"buy now {word}" for word in PROSE.split()),
    "duplicate_5grams": PROSE + " " + PROSE,
    "stop_words": "Mill Lane, Upper Street, North Gate, Sands Avenue, " * 3
    + " ".join(
        word.capitalize() + "ville," for word in sorted(set(PROSE.split())) if len(word) > 4
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_quality_names_the_rule_that_a_text_breaks(kind):
    step = config.Quality(
        mean_word_length=None if kind == "few_letters" else (2.5, 12.0),
        min_stop_words=0 if kind == "few_letters" else 2,
        max_symbol_ratio=None if kind == "ellipses" else 0.1,
        max_duplicate_lines=None if kind == "duplicate_paragraphs" else 0.3,
        max_top_ngram={2: 0.2} if kind == "top_2gram" else {},
        max_duplicate_ngrams={5: 0.3} if kind == "duplicate_5grams" else {},
    )
    assert reject_of(step, row(BROKEN[kind], language="en")) == kind
    assert reject_of(step, row(PROSE, language="en")) is None


def test_quality_leaves_scripts_without_spaces_and_answers_alone():
    chinese = (
        "科学家在这颗行星的表面发现了水的痕迹。因为放假，会议改到了星期四，请问去火车站怎么走？"
    )
    assert reject_of(config.Quality(), row(chinese, language="zh")) is None
    assert reject_of(config.Quality(), row("水的痕迹", language="zh")) == "too_few_words"
    answer = Document("a", "prompt_completion", prompt="What is 17 x 3?", completion="51")
    assert isinstance(run(config.Quality(), Row(answer, "s", "text", "math", "x")), Row)


def test_language_rejects_what_is_not_wanted_and_does_not_guess():
    step = config.Language(allow=("en",))
    german = "Das alte Haus am Ende der Straße steht seit vielen Jahren leer."
    assert reject_of(step, row(german)) == "language"
    assert run(config.Language(), row(german)).facts["language"] == "de"
    assert run(step, row("x = 3")).facts["language"] == "und"
    assert reject_of(config.Language(allow=("en",), unknown="reject"), row("x = 3")) == (
        "language_unknown"
    )


def test_toxicity_gives_the_probability_of_the_package_and_sees_one_bad_passage():
    profanity_check = pytest.importorskip("profanity_check")
    texts = [
        "You are an idiot.",
        "kill the process",
        "",
        "Ünïcode wörds 42",
        PROSE,
        "shit shit shit",
    ]
    for text, wanted in zip(texts, profanity_check.predict_prob(texts), strict=True):
        assert toxicity.probability(text) == pytest.approx(wanted, abs=1e-9)
    long = f"{PROSE} " * 8 + "You stupid fucking idiots, go to hell, you filthy pigs! " * 12
    found = run(config.Toxicity(), row(long)).facts
    assert found["toxicity_max"] > 0.9 > 0.5 > found["toxicity"]
    assert reject_of(config.Toxicity(max_window=0.9), row(long)) == "toxic_passage"
    assert reject_of(config.Toxicity(), row("You stupid fucking idiot!")) == "toxicity"


def test_contaminated_rows_are_refused_with_the_set_and_others_stay(tmp_path):
    question = (
        "A farmer has seventeen sheep and sells all but nine of them at the market; how many sheep "
        "does the farmer have left when he comes home in the evening?"
    )
    (tmp_path / "grade.jsonl").write_text(
        json.dumps({"question": question, "answer": "9", "note": PROSE}) + "\n"
    )
    short = json.dumps({"prompt": "Name the capital of the country with the longest coast."})
    (tmp_path / "facts.jsonl.gz").write_bytes(gzip.compress(short.encode()))
    step = config.Decontaminate(
        sets=(
            config.EvaluationSet(
                name="grade", path=f"{tmp_path}/grade.jsonl", fields=("question",)
            ),
            config.EvaluationSet(name="facts", path=f"{tmp_path}/facts.jsonl.gz"),
        )
    )
    resources = processors.make_resources(config.Processors(text=(step,)), tmp_path / "made")
    process = processors.build([step], resources=resources)
    copied = "Look: " + question.upper().replace(" ", "\n  ").replace(";", " --")
    found = process(row(f"{PROSE} {copied} {PROSE}"))
    assert found.kind == "contaminated" and "'grade'" in found.reason
    assert (
        "'facts'" in process(row("name THE capital of the country with the longest coast!")).reason
    )
    assert isinstance(process(row(PROSE)), Row), "fields that were not named do not count"
    again = processors.make_resources(config.Processors(text=(step,)), tmp_path / "again")
    name = next(iter(resources.digests))
    assert again.digests == resources.digests
    assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with pytest.raises(ValueError, match="resources"):
        processors.build([step])
    missing = config.Decontaminate(sets=(config.EvaluationSet(name="m", path="/no/such.jsonl"),))
    with pytest.raises(ValueError, match=r"m: /no/such\.jsonl cannot be read"):
        processors.make_resources(config.Processors(text=(missing,)), tmp_path)


def test_threads_become_chats_and_fences_are_closed():
    made = standard_form.thread_of(
        Document("q", "text", text="Q: Why?\nA: So.\n\nQ: How?\nA: Thus.")
    )
    assert [each["content"] for each in made.messages] == ["Why?", "So.", "How?", "Thus."]
    text = "Question: one\nQuestion: two\nAnswer: 3"
    assert standard_form.thread_of(Document("q", "text", text=text)).text == text
    assert standard_form.standard_fences("~~~py\nx\n~~~\nthen\n```JS\ny") == (
        "```python\nx\n```\nthen\n```javascript\ny\n```"
    )
    messages = tuple(
        {"role": role, "content": said}
        for role, said in (("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"))
    )
    assert standard_form.standard_turns(messages) == (
        {"role": "user", "content": "a\n\nb"}, {"role": "assistant", "content": "c"},
    )  # fmt: skip


CODE = '"""A module."""\n\nimport os\n\n\ndef size(path):\n    return os.stat(path).st_size\n'


@pytest.mark.parametrize(
    ("kind", "text", "name"),
    [
        (None, CODE, "a.py"),
        ("does_not_parse", CODE + "def (:\n", "a.py"),
        ("unbalanced", "int main() {{{{ f(((( [[[[ \n", "a.c"),
        ("long_line", "var a=1;" * 500, "a.js"),
        ("minified", "\n".join(["var abc=function(){return 1};" * 8] * 9), "a.js"),
        ("data", "\n".join("0123456789, " * 4 for _ in range(50)), "a.py"),
        ("generated", "# Code generated by protoc. DO NOT EDIT.\n" + CODE, "a_pb2.py"),
        ("licence", "// SPDX-License-Identifier: GPL-2.0-only\nint main() { return 0; }\n", "a.c"),
    ],
)
def test_code_refuses_what_nobody_wrote_and_what_is_cut(kind, text, name):
    step = config.Code(licences=("MIT", "Apache-2.0"))
    assert reject_of(step, row(text, "code", name)) == kind


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("# SPDX-License-Identifier: MIT OR Apache-2.0\n", "MIT OR Apache-2.0"),
        ("/* Licensed under the Apache License, Version 2.0 */", "Apache-2.0"),
        ("GNU General Public License as published, either version 3 of", "GPL-3.0"),
        ("Permission is hereby granted, free of charge, to any", "MIT"),
        ("Redistribution and use in source and binary forms ... Neither the name", "BSD-3-Clause"),
        ("print('hello')", ""),
    ],
)
def test_licence_headers_are_named_by_spdx(head, licence):
    assert code.licence_of(head) == licence


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (r"Let $x \in \{1, 2\}$ and \[ \left( \frac{a}{b} \right) \] cost \$5.", ""),
        ("It costs $5, not {6.", ""),
        (r"Then \frac{a}{b is", "braces"),
        (r"\begin{align} a \end{equation}", "closes what was not opened"),
        (r"so $\alpha is", "dollar"),
        (r"\left( \frac{a}{b}", "left"),
        (r"\frac{a}{b} % an open { in a comment", ""),
    ],
)
def test_latex_must_close_what_it_opens(text, problem):
    found = maths.unbalanced(text)
    assert problem in found and bool(found) == bool(problem)
    assert maths.density("2 + 2 = 4") == 1.0 and maths.density("two and two") == 0.0


def test_media_needs_metadata_and_a_caption():
    known = {"kind": "image", "sha256": "00", "width": 64, "height": 8}
    step = config.Media()
    assert reject_of(step, row("a cat", "media")) == "no_media"
    assert reject_of(step, row(" ", "media", media={**known, "height": 64})) == "no_caption"
    assert reject_of(step, row("a cat", "media", media=known)) == "small_picture"
    sound = {"kind": "audio", "sha256": "00", "duration_s": 0.01}
    assert reject_of(step, row("a beep", "media", media=sound)) == "short_media"
    assert reject_of(step, row("a cat", "media", media={**known, "height": 64})) is None


def test_expert_goes_by_marks_and_stays_where_there_are_none():
    theorem = (
        "Theorem. Let $p$ be prime. The polynomial converges by the lemma; see the proof. " * 3
    )
    assert run(config.Expert(), row(theorem)).expert == "math"
    assert run(config.Expert(), row(PROSE)).expert == "general"
    assert run(config.Expert(), row(CODE, "code")).expert == "code"
    assert run(config.Expert(only=("other",)), row(theorem)).expert == "general"
    assert expert.expert_of("", 8.0) == ""
