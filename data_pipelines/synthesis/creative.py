"""Writing under constraints that can be checked: acrostics, counted words and lines, required and
forbidden words, short stories from a vocabulary.

Levels: words, lines, forms, stories, constraints. Templates write plain prose and verse of correct
grammar; what makes them worth learning is that every constraint is kept.
"""

from data_pipelines.synthesis import base
from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws

VERSION = 1
MAX_TRIES = 40


def sentence(draws: Draws, *, name: str = "", thing: str = "", count: int = 0) -> str:
    """Return a sentence without its end mark; with `count` words if that is given (4 to 14)."""
    shapes = (
        lambda: (
            f"the {_adjective(draws)} {thing or _noun(draws)} {draws.pick(words.VERBS)} "
            f"{_tail(draws)}"
        ),
        lambda: (
            f"{_who(draws, name)} {draws.pick(words.ACTIONS)} the {_adjective(draws)} "
            f"{thing or _noun(draws)}"
        ),
        lambda: (
            f"{_who(draws, name)} {draws.pick(words.ADVERBS)} {draws.pick(words.ACTIONS)} "
            f"the {thing or _noun(draws)} {draws.pick(words.WHERE)}"
        ),
        lambda: (
            f"{draws.pick(words.WHERE)}, {_who(draws, name)} {draws.pick(words.ACTIONS)} "
            f"a {_consonant(draws)} {thing or _noun(draws)}"
        ),
        lambda: (
            f"the {thing or _noun(draws)} and the {_noun(draws)} "
            f"{draws.pick(words.VERBS)} {draws.pick(words.ADVERBS)}"
        ),
        lambda: (
            f"no {thing or _noun(draws)} {draws.pick(words.VERBS)} while the {_adjective(draws)} "
            f"{_noun(draws)} {draws.pick(words.VERBS)}"
        ),
    )
    if not count:
        made = draws.pick(shapes)()
    else:
        made = _counted(draws, count, name, thing)
    return made[0].upper() + made[1:]


def _counted(draws: Draws, count: int, name: str, thing: str) -> str:
    """Return a sentence of exactly `count` words."""
    # "the N V" is three words; adjectives, adverbs and places fill it up to the count.
    parts = ["the", thing or _noun(draws), draws.pick(words.VERBS)]
    left = count - 3
    if name and left >= 3:
        parts, left = [name, draws.pick(words.ACTIONS), "the", thing or _noun(draws)], count - 4
    places = [where for where in words.WHERE if len(where.split()) <= left]
    tail = draws.pick(places).split() if places and draws.chance(0.7) else []
    left -= len(tail)
    noun = len(parts) - (1 if parts[0] == name and name else 2)
    adjectives = draws.sample(words.ADJECTIVES, min(left, 2))
    left -= len(adjectives)
    adverbs = draws.sample(words.ADVERBS, left) if left else []
    joined = [*adverbs[1:2]]  # a second adverb would not read well; put it in front
    parts[noun:noun] = adjectives
    return " ".join([*parts, *adverbs[:1], *joined, *adverbs[2:], *tail])


def _who(draws: Draws, name: str) -> str:
    return name or draws.pick(
        (f"the {_noun(draws)}", draws.pick(words.PEOPLE), "she", "he", "they")
    )


def _noun(draws: Draws) -> str:
    return draws.pick(words.NOUNS)


def _adjective(draws: Draws) -> str:
    return draws.pick(words.ADJECTIVES)


def _consonant(draws: Draws) -> str:
    return draws.pick([each for each in words.ADJECTIVES if each[0] not in "aeiouh"])


def _tail(draws: Draws) -> str:
    return draws.pick((draws.pick(words.WHERE), draws.pick(words.ADVERBS)))


def _task(topic: str, asked: str, text: str, rules: list[dict], wrong: str) -> Task:
    return Task(
        prompt=asked,
        completion=text,
        check={"kind": "constraints", "rules": rules},
        topic=topic,
        wrong=wrong,
    )


def counted_sentence(draws: Draws) -> Task:
    """Write a sentence of an exact number of words that holds one word."""
    count, thing = draws.between(5, 11), _noun(draws)
    text = sentence(draws, thing=thing, count=count) + "."
    asked = draws.pick(
        (
            f"Write one sentence of exactly {count} words that contains the word '{thing}'.",
            f"In exactly {count} words, say something about a {thing}; use that word.",
            f"One sentence, {count} words, no more and no less. It has to mention '{thing}'.",
            f"Use '{thing}' in a sentence that is {count} words long.",
        )
    )
    rules = [
        {"rule": "words", "count": count},
        {"rule": "contains", "words": [thing]},
        {"rule": "sentences", "count": 1},
    ]
    return _task("counted_sentence", asked, text, rules, text[:-1] + " once more.")


def forbidden_letter(draws: Draws) -> Task:
    """Write a sentence without one letter (a lipogram), with given words."""
    letter = draws.pick("bcfgkmpuvwyz")
    for _ in range(MAX_TRIES):
        thing = _noun(draws)
        text = sentence(draws, thing=thing) + "."
        if letter not in text.lower():
            break
    else:
        raise base.Unmade("no_lipogram", f"no sentence without {letter} came up")
    asked = draws.pick(
        (
            f"Write a sentence with the word '{thing}' and without the letter '{letter}'.",
            f"Avoid the letter '{letter}' entirely and write one sentence about a {thing}.",
            f"A lipogram: no '{letter}' anywhere, but '{thing}' must appear. One sentence.",
        )
    )
    rules = [
        {"rule": "lacks_letters", "letters": letter},
        {"rule": "contains", "words": [thing]},
        {"rule": "sentences", "count": 1},
    ]
    return _task("forbidden_letter", asked, text, rules, text[:-1] + f" {letter}{letter}.")


def acrostic(draws: Draws) -> Task:
    """Write a poem whose lines spell a word."""
    name = draws.pick([each for each in (*words.NOUNS, *words.PEOPLE) if 4 <= len(each) <= 7])
    lines = [_line_with(draws, letter) for letter in name.lower()]
    asked = draws.pick(
        (
            f"Write an acrostic: the lines begin with the letters of '{name.upper()}', in order.",
            f"A poem of {len(name)} lines whose initials spell '{name.upper()}'.",
            f"Spell '{name.upper()}' with the first letters of the lines of a short poem.",
        )
    )
    rules = [{"rule": "acrostic", "spells": name}, {"rule": "lines", "count": len(name)}]
    return _task("acrostic", asked, "\n".join(lines), rules, "\n".join([*lines[1:], lines[0]][:-1]))


def _line_with(draws: Draws, letter: str) -> str:
    """Return a line of verse that begins with a letter."""
    openers = [each for each in words.ADJECTIVES if each[0] == letter]
    nouns = [each for each in words.NOUNS if each[0] == letter]
    if openers and (not nouns or draws.chance(0.6)):
        head = f"{draws.pick(openers)} {_noun(draws)}s"
    elif nouns:
        head = f"{draws.pick(nouns)} and {_noun(draws)}"
    else:
        head = {"x": "xylophones of glass", "z": "zigzag roads"}.get(letter, f"{letter}")
    line = f"{head} {draws.pick(words.VERBS)} {_tail(draws)}"
    return line[0].upper() + line[1:]


def syllable_free_form(draws: Draws) -> Task:
    """Write a poem whose lines have given numbers of words."""
    counts = [draws.between(4, 8) for _ in range(draws.between(3, 5))]
    theme = _noun(draws)
    lines = [
        sentence(draws, count=count, thing=theme if not at else "")
        for at, count in enumerate(counts)
    ]
    shape = ", ".join(map(str, counts))
    asked = draws.pick(
        (
            f"Write {len(counts)} lines about a {theme} with {shape} words; mention the word.",
            f"A poem with '{theme}' in it. Words per line: {shape}.",
            f"Lines of {shape} words, in that order; one of them names a {theme}.",
        )
    )
    rules = [{"rule": "words_per_line", "counts": counts}, {"rule": "contains", "words": [theme]}]
    wrong = "\n".join([lines[0] + " again", *lines[1:]])
    return _task("words_per_line", asked, "\n".join(lines), rules, wrong)


def story(draws: Draws) -> Task:
    """Write a story of so many sentences with required words, without forbidden ones."""
    name, place = draws.pick(words.PEOPLE), draws.pick(words.PLACES)
    count = draws.between(4, 7)
    needed = draws.sample(words.NOUNS, 3)
    told = [f"{name} came to {place} with a {_consonant(draws)} {_noun(draws)}."]
    told += [
        sentence(draws, name=name if draws.chance(0.6) else "", thing=each) + "." for each in needed
    ]
    told = told[:count] + [sentence(draws) + "." for _ in range(count - len(told))]
    text = " ".join(told)
    used = set(text.lower().replace(".", " ").replace(",", " ").split())
    banned = [each for each in draws.sample(words.NOUNS, 8) if each not in used][:2]
    asked = draws.pick(
        (
            "Tell a story of {count} sentences set in {place}. Use the words {needed}; "
            "do not use {banned}.",
            "Write {count} sentences about {name} in {place}. Required: {needed}. "
            "Forbidden: {banned}.",
            "A {count}-sentence story with {name}. It needs {needed} and must avoid "
            "{banned}. It happens in {place}.",
        )
    ).format(
        count=count, place=place, name=name, needed=", ".join(needed), banned=" and ".join(banned)
    )
    rules = [
        {"rule": "sentences", "count": count},
        {"rule": "contains", "words": [*needed, place]},
        {"rule": "lacks", "words": banned},
    ]
    wrong = f"{text} The {banned[0] if banned else needed[0]} stayed."
    return _task("story", asked, text, rules, wrong)


def chain_story(draws: Draws) -> Task:
    """Write a text that keeps several constraints at once: ends, starts, words, paragraphs."""
    name, ending = draws.pick(words.PEOPLE), _noun(draws)
    count = draws.between(2, 3)
    paragraphs = []
    for at in range(count):
        inner = [
            sentence(draws, name=name if not number else "") + "."
            for number in range(draws.between(2, 3))
        ]
        paragraphs.append(" ".join(inner))
        if at == count - 1:
            paragraphs[-1] += f" Nothing was left but the {ending}."
    first = f"Once, {name} {draws.pick(words.ACTIONS)} the {_noun(draws)}."
    paragraphs[0] = f"{first} {paragraphs[0]}"
    letters = [each for each in "jqxz" if each not in " ".join(paragraphs).lower()]
    letter = draws.pick(letters) if letters else ""
    ban = f" Do not use the letter '{letter}'." if letter else ""
    asked = draws.pick(
        (
            f"Write {count} paragraphs that begin with 'Once, {name}' and end with 'the "
            f"{ending}.'{ban}",
            f"A text of {count} paragraphs. Its first words are 'Once, {name}', its last "
            f"'the {ending}.'{ban}",
            f"Start with 'Once, {name}', close with 'the {ending}.', in {count} paragraphs.{ban}",
        )
    )
    rules = [
        {"rule": "paragraphs", "count": count},
        {"rule": "starts_with", "text": f"Once, {name}"},
        {"rule": "ends_with", "text": f"the {ending}."},
        *([{"rule": "lacks_letters", "letters": letter}] if letter else []),
    ]
    text = "\n\n".join(paragraphs)
    return _task("chain_story", asked, text, rules, " ".join(paragraphs) + " The end.")


def word_acrostic(draws: Draws) -> Task:
    """Write one line whose words spell a word by their initials."""
    spelled = draws.pick([each for each in words.NOUNS if 4 <= len(each) <= 6])
    pool = (*words.NOUNS, *words.ADJECTIVES, *words.VERBS, *words.ADVERBS)
    line = [draws.pick([w for w in pool if w[0] == letter] or [letter]) for letter in spelled]
    asked = draws.pick(
        (
            f"Give {len(spelled)} words whose initials spell '{spelled}'.",
            f"A line of words that begin, one after another, with the letters of '{spelled}'.",
            f"Make a word chain: initials '{spelled}', one word for each letter.",
        )
    )
    rules = [
        {"rule": "acrostic", "spells": spelled, "unit": "word"},
        {"rule": "words", "count": len(spelled)},
    ]
    return _task("word_acrostic", asked, " ".join(line), rules, " ".join(reversed(line)) + " end")


def listing(draws: Draws) -> Task:
    """Write a numbered list of images with one required word each."""
    count, theme = draws.between(3, 6), _noun(draws)
    items = [f"{at}. {sentence(draws, thing=theme)}" for at in range(1, count + 1)]
    asked = draws.pick(
        (
            f"List {count} numbered images (1., 2., ...) in which a {theme} plays a part; "
            f"name it each time.",
            f"Number {count} first lines for a story about a {theme}. Each says '{theme}'.",
        )
    )
    rules = [
        {"rule": "list_items", "count": count, "mark": "1."},
        {"rule": "contains", "words": [theme], "times": count},
    ]
    return _task("listing", asked, "\n".join(items), rules, "\n".join(items[:-1]))


LEVELS: base.ByLevel = (
    (counted_sentence, word_acrostic),
    (forbidden_letter, listing),
    (acrostic, syllable_free_form),
    (story,),
    (chain_story,),
)
make = base.of_level(LEVELS)
