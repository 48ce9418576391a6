"""Instructions with a form that can be checked: JSON, lists, extraction, rewriting, word problems.

The truths are those of made-up records and of the other generators. Levels: format, extraction,
rewriting, combination, mixture.
"""

import json

from data_pipelines.synthesis import base
from data_pipelines.synthesis import scientific
from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.maths import algebra
from data_pipelines.synthesis.maths import arithmetic

VERSION = 1
FIELDS = ("colour", "city", "goods", "amount", "price", "owner", "year", "state", "room", "weight")
STREETS = (
    "Mill Lane",
    "Station Road",
    "Park Street",
    "Harbour Way",
    "Church Hill",
    "Market Square",
)


def _record(draws: Draws, count: int) -> dict[str, str | int]:
    makers = {
        "colour": lambda: draws.pick(("red", "blue", "green", "amber", "white", "black")),
        "city": lambda: draws.pick(words.PLACES),
        "goods": lambda: draws.pick(words.GOODS),
        "amount": lambda: draws.between(2, 990),
        "price": lambda: draws.between(3, 2400),
        "owner": lambda: draws.pick(words.PEOPLE),
        "year": lambda: draws.between(1950, 2026),
        "state": lambda: draws.pick(("new", "used", "broken", "sealed", "returned", "reserved")),
        "room": lambda: draws.between(1, 480),
        "weight": lambda: draws.between(1, 88),
    }
    return {field: makers[field]() for field in draws.sample(FIELDS, count)}


def _note(draws: Draws, record: dict[str, str | int]) -> str:
    forms = (
        "the {k} is {v}",
        "{k}: {v}",
        "{k} was noted as {v}",
        "as {k} we have {v}",
        "{v} is its {k}",
    )
    parts = [draws.pick(forms).format(k=key, v=value) for key, value in record.items()]
    text = draws.pick(("; ", ", ", ". ")).join(draws.shuffled(parts))
    lead = draws.pick(
        ("Note from {p}: ", "{n} wrote: ", "Entry {i}. ", "Memo, {p}, {n}: ", "Log {i}: ")
    )
    return (
        lead.format(
            p=draws.pick(words.PLACES), n=draws.pick(words.PEOPLE), i=draws.between(10, 9999)
        )
        + text
        + "."
    )


def as_json(draws: Draws) -> Task:
    """Turn a note into JSON."""
    record = _record(draws, draws.between(3, 5))
    note = _note(draws, record)
    answer = json.dumps(record, ensure_ascii=False)
    asked = draws.pick(
        (
            "Return only a JSON object with the keys {keys}, in this order, on one line.",
            "Write this as one line of JSON (keys in this order: {keys}) and nothing else.",
            "Extract {keys} as a JSON object in that order. No other text.",
        )
    ).format(keys=", ".join(record))
    check = [
        {"kind": "constraints", "rules": [{"rule": "json", "keys": sorted(record)}]},
        {"kind": "exact", "expected": answer},
    ]
    return Task(f"{asked}\n\n{note}", answer, check, "as_json", wrong=f"Here it is: {answer}")


def as_list(draws: Draws) -> Task:
    """Sort given things into a numbered or dashed list."""
    things = draws.sample(words.NOUNS, draws.between(4, 8))
    mark = draws.pick(("1.", "-"))
    is_falling = draws.chance(0.3)
    ordered = sorted(things, reverse=is_falling)
    lines = [f"{at}. {t}" if mark == "1." else f"- {t}" for at, t in enumerate(ordered, 1)]
    kind = "numbered list (1., 2., ...)" if mark == "1." else "list with dashes"
    way = "from Z to A" if is_falling else "alphabetically"
    asked = draws.pick(
        (
            "Sort these words {way} into a {kind}: {things}.",
            "Make a {kind} of {things}, {way}. Only the list.",
            "{name} wants {things} {way} as a {kind}.",
        )
    ).format(way=way, kind=kind, things=", ".join(things), name=draws.pick(words.PEOPLE))
    check = [
        {
            "kind": "constraints",
            "rules": [{"rule": "list_items", "count": len(things), "mark": mark}],
        },
        {"kind": "exact", "expected": "\n".join(lines)},
    ]
    return Task(asked, "\n".join(lines), check, "as_list", wrong="\n".join([*lines[1:], lines[0]]))


def extract(draws: Draws) -> Task:
    """Answer from a text by quoting it."""
    people = draws.sample(words.PEOPLE, 4)
    facts = [
        (
            name,
            draws.between(2, 99),
            draws.pick(STREETS),
            draws.pick(words.PLACES),
            draws.pick(words.GOODS),
        )
        for name in people
    ]
    lines = [
        draws.pick(
            (
                "{n} lives at {a} {s} in {p} and ordered {g}.",
                "{g} go to {n}, {a} {s}, {p}.",
                "For {n} of {p} ({a} {s}): {g}.",
            )
        ).format(n=n, a=a, s=s, p=p, g=g)
        for n, a, s, p, g in facts
    ]
    text = " ".join(lines)
    who = draws.below(4)
    name, number, street, place, goods = facts[who]
    wanted, answer, wrong = draws.pick(
        (
            ("the street address", f"{number} {street}", f"{number + 1} {street}"),
            ("the order", goods, facts[who - 1][4] + " and more"),
            ("the city", place, f"near {place}, north"),
        )
    )
    asked = draws.pick(
        (
            f"What is {wanted} of {name}? Quote it from the text and add nothing.",
            f"From the text, copy {wanted} of {name}, word for word, and nothing else.",
        )
    )
    prompt = f"{text}\n\n{asked}"
    # Quoted from the line of that person: others may have the same.
    start = sum(len(line) + 1 for line in lines[:who]) + lines[who].index(answer)
    check = {
        "kind": "span",
        "in": "prompt",
        "start": start,
        "end": start + len(answer),
        "quote": answer,
        "exact": True,
    }
    return Task(prompt, answer, check, "extract", wrong=wrong)


def rewrite(draws: Draws) -> Task:
    """Rewrite a sentence by a rule."""
    name, other = draws.sample(words.PEOPLE, 2)
    noun, place = draws.pick(words.NOUNS), draws.pick(words.WHERE)
    action, adjective = draws.pick(words.ACTIONS), draws.pick(words.ADJECTIVES)
    text = f"{name} {action} the {adjective} {noun} {place}."
    rules = {
        "in capital letters": text.upper(),
        f"with {other} in place of {name}": text.replace(name, other),
        f"without the word '{adjective}'": text.replace(f"{adjective} ", ""),
        "in small letters only": text.lower(),
        "with the words in reverse order and no punctuation": " ".join(reversed(text[:-1].split())),
        "with every space replaced by an underscore": text.replace(" ", "_"),
    }
    wanted = draws.pick(tuple(rules))
    asked = draws.pick(
        (
            "Rewrite {w}: {t}",
            "Copy this sentence {w}. {t}",
            "{t}\nRepeat it {w}, and write nothing else.",
        )
    )
    answer = rules[wanted]
    return Task(
        asked.format(w=wanted, t=text),
        answer,
        {"kind": "exact", "expected": answer},
        "rewrite",
        wrong=f"{answer} {text}",
    )


def combined(draws: Draws) -> Task:
    """Filter and sum a small list of records into JSON."""
    goods = draws.sample(words.GOODS, draws.between(4, 6))
    amounts = [draws.between(2, 60) for _ in goods]
    prices = [draws.between(2, 40) for _ in goods]
    limit = draws.between(10, 40)
    kept = {g: a * p for g, a, p in zip(goods, amounts, prices) if a >= limit}
    lines = "\n".join(f"- {a} {g} at {p}" for g, a, p in zip(goods, amounts, prices))
    answer = json.dumps({"goods": sorted(kept), "total": sum(kept.values())})
    asked = draws.pick(
        (
            "{n} stocks goods in {p}. Keep those with an amount of {k} or more and "
            "return one line of JSON: "
            "goods (sorted names) and total (amount times price, summed).",
            "From the list of {n} in {p}, drop everything below {k} pieces. Give JSON on "
            "one line with the "
            "sorted names under goods and the summed value under total.",
        )
    ).format(n=draws.pick(words.PEOPLE), p=draws.pick(words.PLACES), k=limit)
    check = [
        {"kind": "constraints", "rules": [{"rule": "json", "keys": ["goods", "total"]}]},
        {"kind": "exact", "expected": answer},
    ]
    wrong = json.dumps({"goods": sorted(goods), "total": sum(kept.values()) + 1})
    return Task(f"{asked}\n{lines}", answer, check, "combined", wrong=wrong)


def arithmetic_words(draws: Draws) -> Task:
    """Solve a problem of the mathematics generator."""
    return draws.pick((arithmetic.shopping, arithmetic.remainder, arithmetic.travel))(draws)


def harder_problem(draws: Draws) -> Task:
    """Solve a problem of algebra or of measurement."""
    return draws.pick((algebra.ages, algebra.mixture, scientific.table_mean, scientific.dilution))(
        draws
    )


def polite(draws: Draws) -> Task:
    """Write a short message that keeps a form: a letter with a set greeting, close and contents."""
    name, other = draws.sample(words.PEOPLE, 2)
    goods, place = draws.pick(words.GOODS), draws.pick(words.PLACES)
    day = draws.pick(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"))
    hour = draws.between(8, 17)
    purpose, body = draws.pick(
        (
            ("confirm the delivery of the {g}", "the {g} will arrive in {p} on {d} at {h}:00."),
            ("ask for {g}", "could you send us {g} to {p} by {d}, {h}:00?"),
            (
                "apologise for the late {g}",
                "I am sorry that the {g} reach {p} only on {d} at {h}:00.",
            ),
            ("thank for the {g}", "thank you for the {g} that came to {p} on {d} at {h}:00."),
        )
    )
    filled = body.format(g=goods, p=place, d=day, h=hour)
    text = f"Dear {other},\n{filled[0].upper() + filled[1:]}\nKind regards, {name}"
    asked = draws.pick(
        (
            "Write a message of three lines from {n} to {o} to {w}. Begin 'Dear {o},', "
            "end 'Kind regards, {n}', "
            "and mention {p}, {d} and {h}:00.",
            "Three lines, please: {n} wants to {w}. To {o}; names {p}, {d}, {h}:00; "
            "greeting 'Dear {o},' and the "
            "close 'Kind regards, {n}'.",
        )
    ).format(n=name, o=other, w=purpose.format(g=goods), p=place, d=day, h=hour)
    rules = [
        {"rule": "lines", "count": 3},
        {"rule": "starts_with", "text": f"Dear {other},"},
        {"rule": "ends_with", "text": f"Kind regards, {name}"},
        {"rule": "contains", "words": [place, day, f"{hour}:00", goods]},
    ]
    return Task(
        asked,
        text,
        {"kind": "constraints", "rules": rules},
        "polite",
        wrong=text.replace("Dear", "Hi"),
    )


LEVELS: base.ByLevel = (
    (as_list, rewrite),
    (extract, as_json),
    (polite, arithmetic_words),
    (combined,),
    (harder_problem, combined),
)
make = base.of_level(LEVELS)
