"""Translation and grammar: agreement, plural, tense, word order, and languages that do not exist.

Levels: words, agreement, sentences, transformations, unknown_languages.
"""

from data_pipelines.synthesis import base
from data_pipelines.synthesis import grammars
from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws

VERSION = 1
ENDINGS = (
    " Write the result after 'Answer:'.",
    " End with 'Answer:' and the result.",
    " The last line is 'Answer: ...', in small letters where the language allows it.",
    " Give it after 'Answer:', without a full stop.",
)


def _task(
    draws: Draws, topic: str, asked: str, reason: str, answer: str | list[str], wrong: str
) -> Task:
    first = answer if isinstance(answer, str) else answer[0]
    opening = draws.pick(
        (
            "",
            "",
            "{name} learns languages in {place}. ",
            "Homework from {place}: ",
            "{name} asks: ",
            "For {name}'s phrase book: ",
            "Lesson {n}. ",
        )
    ).format(name=draws.pick(words.PEOPLE), place=draws.pick(words.PLACES), n=draws.between(1, 90))
    return Task(
        prompt=opening + asked + draws.pick(ENDINGS),
        completion=f"{reason}\nAnswer: {first}",
        check={"kind": "exact", "expected": answer, "after": "Answer:", "fold": True},
        topic=topic,
        wrong=f"{reason}\nAnswer: {wrong}",
    )


def plural(draws: Draws) -> Task:
    """Give the plurals of a few words, with articles where there are any."""
    language = draws.pick(grammars.LANGUAGES)
    nouns = draws.sample(tuple(grammars.WORDS[language]), 3)
    given = [grammars.phrase(grammars.Phrase(noun), language) for noun in nouns]
    made = [grammars.phrase(grammars.Phrase(noun, is_plural=True), language) for noun in nouns]
    asked = draws.pick(
        (
            f"Put these {language} words into the plural, with articles: {', '.join(given)}.",
            f"What are the {language} plurals of {', '.join(given)}? Keep the articles.",
        )
    )
    reason = "; ".join(f"{a} becomes {b}" for a, b in zip(given, made)) + "."
    return _task(draws, "plural", asked, reason, ", ".join(made), ", ".join([given[0], *made[1:]]))


def vocabulary(draws: Draws) -> Task:
    """Translate a list of nouns."""
    language = draws.pick(grammars.LANGUAGES)
    nouns = draws.sample(tuple(grammars.WORDS[language]), 3)
    phrases = [grammars.Phrase(noun, is_plural=draws.chance(0.4)) for noun in nouns]
    given = [grammars.english_phrase(each) for each in phrases]
    made = [grammars.phrase(each, language) for each in phrases]
    asked = draws.pick(
        (
            f"Translate into {language}: {', '.join(given)}.",
            f"How do you say '{', '.join(given)}' in {language}?",
        )
    )
    reason = "; ".join(f"{a} is {b}" for a, b in zip(given, made)) + "."
    return _task(
        draws, "vocabulary", asked, reason, ", ".join(made), ", ".join([made[1], made[0], made[2]])
    )


def agreement(draws: Draws) -> Task:
    """Make an adjective agree."""
    language = draws.pick(grammars.LANGUAGES)
    one = grammars.Phrase(
        draws.pick(tuple(grammars.WORDS[language])),
        draws.pick(tuple(grammars.TINTS[language])),
        draws.chance(0.5),
    )
    two = grammars.Phrase(
        draws.pick([noun for noun in grammars.WORDS[language] if noun != one.noun]),
        draws.pick(tuple(grammars.TINTS[language])),
        draws.chance(0.5),
    )
    english = f"{grammars.english_phrase(one)} and {grammars.english_phrase(two)}"
    linking = {"Spanish": "y", "Italian": "e", "French": "et", "German": "und", "Esperanto": "kaj"}
    made = [grammars.phrase(each, language) for each in (one, two)]
    flipped = grammars.Phrase(one.noun, one.adjective, not one.is_plural)
    asked = draws.pick(
        (
            f"Mind the agreement and translate into {language}: {english}.",
            f"Say '{english}' in {language}; articles and adjectives must agree.",
        )
    )
    name, _, gender = grammars.WORDS[language][one.noun]
    reason = f"{name} is {'feminine' if gender == 'f' else 'masculine'}."
    if language == "German":
        article = grammars.phrase(grammars.Phrase(one.noun), language).split()[0]
        reason = f"{name} takes {article}."
    elif language == "Esperanto":
        reason = f"{name} ends in -o, adjectives in -a; -j marks the plural of both."
    joined = f" {linking[language]} ".join(made)
    wrong = f" {linking[language]} ".join([grammars.phrase(flipped, language), made[1]])
    return _task(draws, "agreement", asked, reason, joined, wrong)


def translate(draws: Draws) -> Task:
    """Translate a sentence from English."""
    language = draws.pick(grammars.LANGUAGES)
    clause = grammars.draw_clause(draws, language, adjectives=True, past=True)
    answer = grammars.say(clause, language)
    asked = draws.pick(
        (
            f"Translate into {language}: {grammars.english(clause)}.",
            f"Put '{grammars.english(clause)}' into {language}.",
            f"{language}, please: {grammars.english(clause)}.",
        )
    )
    if language in ("Spanish", "Italian", "French") and clause.is_past:
        asked += " Use the simple past (preterite)."
    reason = (
        f"Subject: {grammars.phrase(clause.subject, language)}. Object: "
        f"{grammars.phrase(clause.object, language, is_object=True)}."
    )
    wrong = grammars.say(
        grammars.Clause(clause.subject, clause.verb, clause.object, not clause.is_past), language
    )
    return _task(draws, "translate", asked, reason, answer, wrong)


def back(draws: Draws) -> Task:
    """Translate a sentence into English."""
    language = draws.pick(grammars.LANGUAGES)
    clause = grammars.draw_clause(draws, language, adjectives=True, past=True)
    asked = draws.pick(
        (
            f"Translate this {language} sentence into English: {grammars.say(clause, language)}.",
            f"What does '{grammars.say(clause, language)}' ({language}) mean in English?",
        )
    )
    reason = (
        f"The subject is {grammars.english_phrase(clause.subject)}, the verb means "
        f"'to {clause.verb}'{' in the past' if clause.is_past else ''}."
    )
    wrong = grammars.english(
        grammars.Clause(clause.object, clause.verb, clause.subject, clause.is_past)
    )
    return _task(draws, "back", asked, reason, grammars.english(clause), wrong)


def transform(draws: Draws) -> Task:
    """Change number or tense of a sentence and keep everything else in agreement."""
    language = draws.pick(grammars.LANGUAGES)
    clause = grammars.draw_clause(draws, language, adjectives=True, past=False)
    subject = clause.subject
    other = grammars.Phrase(subject.noun, subject.adjective, not subject.is_plural)
    number = f"the {'singular' if subject.is_plural else 'plural'} of its subject"
    turns = {
        "the past tense": grammars.Clause(subject, clause.verb, clause.object, True),
        number: grammars.Clause(other, clause.verb, clause.object),
        f"the past tense and {number}": grammars.Clause(other, clause.verb, clause.object, True),
    }
    wanted = draws.pick(tuple(turns))
    given, answer = grammars.say(clause, language), grammars.say(turns[wanted], language)
    asked = draws.pick(
        (
            f"Put this {language} sentence into {wanted}: {given}.",
            f"{given}. Rewrite the {language} sentence in {wanted}, the rest unchanged.",
        )
    )
    reason = f"It says: {grammars.english(clause)}. Wanted: {grammars.english(turns[wanted])}."
    return _task(draws, "transform", asked, reason, answer, given)


def morphology(draws: Draws) -> Task:
    """Fill in a morphology table of a verb or an adjective."""
    language = draws.pick(
        [each for each in grammars.LANGUAGES if each not in ("German", "Esperanto")]
    )
    meaning = draws.pick(tuple(grammars.TINTS[language]))
    deed = draws.pick(tuple(grammars.DEEDS[language]))
    forms, verb = grammars.TINTS[language][meaning], grammars.DEEDS[language][deed]
    cells = draws.sample(
        [
            ("masculine singular", forms[0]),
            ("feminine singular", forms[1]),
            ("masculine plural", forms[2]),
            ("feminine plural", forms[3]),
        ],
        3,
    ) + draws.sample(
        [
            ("present singular", verb[0]),
            ("present plural", verb[1]),
            ("past singular", verb[2]),
            ("past plural", verb[3]),
        ],
        2,
    )
    asked = (
        f"Give these {language} forms, separated by commas. Of '{meaning}': "
        + "; ".join(name for name, _ in cells[:3])
        + f". Of 'to {deed}', third person: "
        + "; ".join(name for name, _ in cells[3:])
        + "."
    )
    if language != "Spanish":
        asked += " (Past: the simple past.)"
    answer = ", ".join(form for _, form in cells)
    reason = "; ".join(f"{name}: {form}" for name, form in cells) + "."
    return _task(
        draws,
        "morphology",
        asked,
        reason,
        answer,
        ", ".join(form for _, form in cells[::-1]) + ", -",
    )


def conlang(draws: Draws) -> Task:
    """Translate into or out of a language that its rules define."""
    clause = grammars.draw_clause(draws, "Esperanto", adjectives=True, past=True)
    needed = [
        clause.subject.noun,
        clause.object.noun,
        clause.verb,
        clause.subject.adjective,
        clause.object.adjective,
    ]
    extra = draws.sample(tuple(grammars.NOUNS), 2)
    meanings = list(dict.fromkeys(each for each in (*needed, *extra) if each))
    tongue = grammars.draw_conlang(draws, meanings)
    listed = ", ".join(f"{tongue.words[each]} = {each}" for each in draws.shuffled(meanings))
    english, said = grammars.english(clause), tongue.say(clause)
    is_out = draws.chance(0.4)
    lead = f"{tongue.name} has these words: {listed}. {tongue.rules()}"
    reason = (
        f"The verb is "
        f"{tongue.words[clause.verb]}{' with -' + tongue.past if clause.is_past else ''}, "
        f"the order is {tongue.order}."
    )
    if is_out:
        other = grammars.Clause(clause.object, clause.verb, clause.subject, clause.is_past)
        return _task(
            draws,
            "conlang_out",
            f"{lead} What does '{said}' mean in English?",
            reason,
            english,
            grammars.english(other),
        )
    wrong = " ".join(reversed(said.split()))
    return _task(draws, "conlang_in", f"{lead} Translate: {english}.", reason, said, wrong)


def order(draws: Draws) -> Task:
    """Put the words of a sentence into order."""
    language = draws.pick(
        ("English", *[x for x in grammars.LANGUAGES if x not in ("Esperanto", "German")])
    )
    source = "Spanish" if language == "English" else language
    clause = grammars.draw_clause(draws, source, adjectives=True, past=False)
    other = grammars.Clause(clause.object, clause.verb, clause.subject)
    # The verb tells subject from object only when one is plural; else the hint must.
    said, hint = (
        (grammars.english(clause), clause.subject.noun)
        if language == "English"
        else (grammars.say(clause, language), grammars.WORDS[language][clause.subject.noun][0])
    )
    turned = grammars.english(other) if language == "English" else grammars.say(other, language)
    both = (clause.subject, clause.object)
    if any(each.adjective for each in both) and both[0].adjective != both[1].adjective:
        # adjectives could stand with either noun: say which goes with the subject
        hint += f", which is {both[0].adjective or 'without an adjective'}"
    asked = (
        f"Order these {language} words into a sentence (present tense; its subject is {hint}): "
        f"{', '.join(draws.shuffled(said.split()))}."
    )
    return _task(draws, "order", asked, f"Subject, verb, object: {said}.", said, turned + " -")


LEVELS: base.ByLevel = (
    (plural, vocabulary),
    (agreement, order),
    (translate, back),
    (transform, morphology),
    (conlang,),
)
make = base.of_level(LEVELS)
