r"""Rules that a text must keep: constrained writing, and answers in a given form.

A rule is {"rule": NAME, ...}. Counts take `count`, or `min` and `max` (one is enough). Words are
runs of letters and digits with inner apostrophes and hyphens; lines are those that are not empty;
upper and lower case are the same.

| rule | keys | holds when |
|---|---|---|
| words, sentences, lines, paragraphs, letters | count, min, max | there are so many |
| words_per_line | counts: [5, 7, 5], or min and max | each line has so many words |
| word_length | min, max | every word has so many letters |
| contains | words, [times] | each of these words or phrases occurs, at least `times` times |
| lacks | words | none of these words or phrases occurs |
| lacks_letters | letters | none of these letters occurs |
| acrostic | spells, [unit: "word"] | the first letters of the lines (or words) spell it |
| starts_with, ends_with | text | the text does |
| no_rhymes | [letters] | no two lines end on the same word or the same last letters (default 3) |
| unique_words | [longer_than] | no word (longer than so many letters) occurs twice |
| json | [keys] | the text is a JSON value; with keys: an object with exactly these, in any order |
| list_items | count, min, max, [mark: "1." or "-"] | every line is an item, and there are so many |
| upper_case, lower_case | | every letter is |
"""

import json
import re
from collections.abc import Callable
from typing import Any

from data_pipelines.verify import checks

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)")
_PARAGRAPH_GAP = re.compile(r"\n[ \t]*\n")

Rule = dict[str, Any]


def broken(text: str, rules: tuple[Rule, ...]) -> str:
    """Return the first rule that the text breaks, as a sentence; "" if it keeps all.

    Raises:
        BadCheck: a rule is unknown or has wrong keys.
    """
    for rule in rules:
        name = rule.get("rule")
        if name not in _RULES:
            raise checks.BadCheck(f"a rule must be one of {', '.join(_RULES)}; not {name!r}")
        function, known = _RULES[name]
        if unknown := set(rule) - {"rule"} - set(known):
            raise checks.BadCheck(f"the rule {name} has no {', '.join(sorted(unknown))}")
        try:
            why = function(text, rule)
        except (KeyError, TypeError, AttributeError) as error:
            raise checks.BadCheck(
                f"the rule {name} lacks a key, or has a wrong one: {error}"
            ) from (error)
        if why:
            return f"{name}: {why}"
    return ""


def words_of(text: str) -> list[str]:
    """Return the words of a text as they stand."""
    return _WORD.findall(text)


def lines_of(text: str) -> list[str]:
    """Return the lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _counted(number: int, rule: Rule) -> str:
    low, high = rule.get("count", rule.get("min")), rule.get("count", rule.get("max"))
    if low is None and high is None:
        raise KeyError("count, min or max")
    if (low is not None and number < low) or (high is not None and number > high):
        wanted = f"{low}" if low == high else f"{low or 0} to {'any' if high is None else high}"
        return f"there are {number}, not {wanted}"
    return ""


def _sentences(text: str) -> int:
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    tail = text[ends[-1] :] if ends else text
    return len(ends) + bool(words_of(tail))


def _counts(measure: Callable[[str], int]) -> Callable[[str, Rule], str]:
    return lambda text, rule: _counted(measure(text), rule)


def _words_per_line(text: str, rule: Rule) -> str:
    lengths = [len(words_of(line)) for line in lines_of(text)]
    if "counts" in rule:
        return "" if lengths == list(rule["counts"]) else f"they are {lengths}"
    return next((why for length in lengths if (why := _counted(length, rule))), "")


def _word_length(text: str, rule: Rule) -> str:
    for word in words_of(text):
        if why := _counted(sum(map(str.isalpha, word)), rule):
            return f"in {word!r} {why}"
    return ""


def _times(text: str, phrase: str) -> int:
    pattern = rf"(?<!\w){re.escape(phrase.casefold())}(?!\w)"
    return len(re.findall(pattern, text.casefold()))


def _contains(text: str, rule: Rule) -> str:
    times = rule.get("times", 1)
    return next(
        (f"{word!r} is missing" for word in rule["words"] if _times(text, word) < times), ""
    )


def _lacks(text: str, rule: Rule) -> str:
    return next((f"{word!r} occurs" for word in rule["words"] if _times(text, word)), "")


def _lacks_letters(text: str, rule: Rule) -> str:
    found = set(text.casefold()) & set(rule["letters"].casefold())
    return f"{', '.join(sorted(found))} occurs" if found else ""


def _acrostic(text: str, rule: Rule) -> str:
    units = words_of(text) if rule.get("unit") == "word" else lines_of(text)
    firsts = ["".join(words_of(unit))[:1] for unit in units]
    spelled = "".join(firsts).casefold()
    return "" if spelled == rule["spells"].casefold() else f"it spells {spelled!r}"


def _starts_with(text: str, rule: Rule) -> str:
    return "" if text.strip().startswith(rule["text"]) else f"it starts {text.strip()[:40]!r}"


def _ends_with(text: str, rule: Rule) -> str:
    return "" if text.strip().endswith(rule["text"]) else f"it ends {text.strip()[-40:]!r}"


def _no_rhymes(text: str, rule: Rule) -> str:
    seen: dict[str, str] = {}
    for line in lines_of(text):
        if not (words := words_of(line)):
            continue
        last = words[-1].casefold()
        ending = last[-rule.get("letters", 3) :]
        if ending in seen:
            return f"{last!r} rhymes with {seen[ending]!r}"
        seen[ending] = last
    return ""


def _unique_words(text: str, rule: Rule) -> str:
    seen = set()
    for word in map(str.casefold, words_of(text)):
        if len(word) > rule.get("longer_than", 0):
            if word in seen:
                return f"{word!r} occurs twice"
            seen.add(word)
    return ""


def _json(text: str, rule: Rule) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if "keys" in rule and (not isinstance(value, dict) or set(value) != set(rule["keys"])):
        return f"not an object with exactly {', '.join(rule['keys'])}"
    return ""


def _list_items(text: str, rule: Rule) -> str:
    lines = lines_of(text)
    for number, line in enumerate(lines, start=1):
        mark = f"{number}." if rule.get("mark", "-") == "1." else rule.get("mark", "-")
        if not line.startswith(mark + " "):
            return f"line {number} does not start with {mark!r}"
    return _counted(len(lines), rule)


def _upper_case(text: str, rule: Rule) -> str:
    return "" if text == text.upper() else "there are small letters"


def _lower_case(text: str, rule: Rule) -> str:
    return "" if text == text.lower() else "there are capital letters"


_COUNT = ("count", "min", "max")
# Name -> the function that says what is wrong, and its keys.
_RULES: dict[str, tuple[Callable[[str, Rule], str], tuple[str, ...]]] = {
    "words": (_counts(lambda text: len(words_of(text))), _COUNT),
    "sentences": (_counts(_sentences), _COUNT),
    "lines": (_counts(lambda text: len(lines_of(text))), _COUNT),
    "paragraphs": (
        _counts(lambda text: len([p for p in _PARAGRAPH_GAP.split(text) if p.strip()])),
        _COUNT,
    ),
    "letters": (_counts(lambda text: sum(map(str.isalpha, text))), _COUNT),
    "words_per_line": (_words_per_line, ("counts", "min", "max", "count")),
    "word_length": (_word_length, _COUNT),
    "contains": (_contains, ("words", "times")),
    "lacks": (_lacks, ("words",)),
    "lacks_letters": (_lacks_letters, ("letters",)),
    "acrostic": (_acrostic, ("spells", "unit")),
    "starts_with": (_starts_with, ("text",)),
    "ends_with": (_ends_with, ("text",)),
    "no_rhymes": (_no_rhymes, ("letters",)),
    "unique_words": (_unique_words, ("longer_than",)),
    "json": (_json, ("keys",)),
    "list_items": (_list_items, (*_COUNT, "mark")),
    "upper_case": (_upper_case, ()),
    "lower_case": (_lower_case, ()),
}
