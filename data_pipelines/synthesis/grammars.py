"""Small grammars of five natural languages and of languages that do not exist.

Only words whose forms are listed here are used, so every sentence is right by the tables: articles
agree in gender and number, verbs in person, adjectives where the language wants it.
"""

from dataclasses import dataclass

from data_pipelines.synthesis.draws import Draws

# meaning: English singular, plural
NOUNS = {
    "cat": "cats",
    "dog": "dogs",
    "house": "houses",
    "book": "books",
    "tree": "trees",
    "bird": "birds",
    "door": "doors",
    "table": "tables",
    "flower": "flowers",
    "child": "children",
    "woman": "women",
    "man": "men",
    "city": "cities",
    "river": "rivers",
    "letter": "letters",
    "star": "stars",
}
VERBS = {
    "see": ("sees", "see", "saw"),
    "have": ("has", "have", "had"),
    "seek": ("seeks", "seek", "sought"),
    "love": ("loves", "love", "loved"),
    "find": ("finds", "find", "found"),
    "paint": ("paints", "paint", "painted"),
}

# language -> meaning -> (singular, plural, gender)
WORDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Spanish": {
        "cat": ("gato", "gatos", "m"),
        "dog": ("perro", "perros", "m"),
        "house": ("casa", "casas", "f"),
        "book": ("libro", "libros", "m"),
        "tree": ("árbol", "árboles", "m"),
        "bird": ("pájaro", "pájaros", "m"),
        "door": ("puerta", "puertas", "f"),
        "table": ("mesa", "mesas", "f"),
        "flower": ("flor", "flores", "f"),
        "child": ("niño", "niños", "m"),
        "woman": ("mujer", "mujeres", "f"),
        "man": ("hombre", "hombres", "m"),
        "city": ("ciudad", "ciudades", "f"),
        "river": ("río", "ríos", "m"),
        "letter": ("carta", "cartas", "f"),
        "star": ("estrella", "estrellas", "f"),
    },
    "Italian": {
        "cat": ("gatto", "gatti", "m"),
        "dog": ("cane", "cani", "m"),
        "house": ("casa", "case", "f"),
        "book": ("libro", "libri", "m"),
        "door": ("porta", "porte", "f"),
        "table": ("tavolo", "tavoli", "m"),
        "flower": ("fiore", "fiori", "m"),
        "woman": ("donna", "donne", "f"),
        "city": ("città", "città", "f"),
        "river": ("fiume", "fiumi", "m"),
        "letter": ("lettera", "lettere", "f"),
        "star": ("stella", "stelle", "f"),
        "child": ("bambino", "bambini", "m"),
    },
    "French": {
        "cat": ("chat", "chats", "m"),
        "dog": ("chien", "chiens", "m"),
        "house": ("maison", "maisons", "f"),
        "book": ("livre", "livres", "m"),
        "door": ("porte", "portes", "f"),
        "table": ("table", "tables", "f"),
        "flower": ("fleur", "fleurs", "f"),
        "woman": ("femme", "femmes", "f"),
        "city": ("ville", "villes", "f"),
        "river": ("fleuve", "fleuves", "m"),
        "letter": ("lettre", "lettres", "f"),
    },
    "German": {
        "cat": ("Katze", "Katzen", "f"),
        "dog": ("Hund", "Hunde", "m"),
        "house": ("Haus", "Häuser", "n"),
        "book": ("Buch", "Bücher", "n"),
        "tree": ("Baum", "Bäume", "m"),
        "bird": ("Vogel", "Vögel", "m"),
        "door": ("Tür", "Türen", "f"),
        "table": ("Tisch", "Tische", "m"),
        "flower": ("Blume", "Blumen", "f"),
        "child": ("Kind", "Kinder", "n"),
        "woman": ("Frau", "Frauen", "f"),
        "man": ("Mann", "Männer", "m"),
        "city": ("Stadt", "Städte", "f"),
        "river": ("Fluss", "Flüsse", "m"),
        "letter": ("Brief", "Briefe", "m"),
        "star": ("Stern", "Sterne", "m"),
    },
    "Esperanto": {
        meaning: (root + "o", root + "oj", "n")
        for meaning, root in {
            "cat": "kat",
            "dog": "hund",
            "house": "dom",
            "book": "libr",
            "tree": "arb",
            "bird": "bird",
            "door": "pord",
            "table": "tabl",
            "flower": "flor",
            "child": "infan",
            "woman": "virin",
            "man": "vir",
            "city": "urb",
            "river": "river",
            "letter": "leter",
            "star": "stel",
        }.items()
    },
}
# meaning -> (masculine, feminine, masculine plural, feminine plural); German and Esperanto: stems
TINTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Spanish": {
        "small": ("pequeño", "pequeña", "pequeños", "pequeñas"),
        "big": ("grande", "grande", "grandes", "grandes"),
        "old": ("viejo", "vieja", "viejos", "viejas"),
        "new": ("nuevo", "nueva", "nuevos", "nuevas"),
        "white": ("blanco", "blanca", "blancos", "blancas"),
        "red": ("rojo", "roja", "rojos", "rojas"),
        "beautiful": ("hermoso", "hermosa", "hermosos", "hermosas"),
        "black": ("negro", "negra", "negros", "negras"),
    },
    "Italian": {
        "small": ("piccolo", "piccola", "piccoli", "piccole"),
        "big": ("grande", "grande", "grandi", "grandi"),
        "old": ("vecchio", "vecchia", "vecchi", "vecchie"),
        "new": ("nuovo", "nuova", "nuovi", "nuove"),
        "white": ("bianco", "bianca", "bianchi", "bianche"),
        "red": ("rosso", "rossa", "rossi", "rosse"),
        "black": ("nero", "nera", "neri", "nere"),
    },
    "French": {
        "white": ("blanc", "blanche", "blancs", "blanches"),
        "red": ("rouge", "rouge", "rouges", "rouges"),
        "black": ("noir", "noire", "noirs", "noires"),
    },
    "German": {
        "small": ("klein",),
        "big": ("groß",),
        "old": ("alt",),
        "new": ("neu",),
        "white": ("weiß",),
        "red": ("rot",),
        "beautiful": ("schön",),
        "black": ("schwarz",),
    },
    "Esperanto": {
        "small": ("malgrand",),
        "big": ("grand",),
        "old": ("malnov",),
        "new": ("nov",),
        "white": ("blank",),
        "red": ("ruĝ",),
        "beautiful": ("bel",),
        "black": ("nigr",),
    },
}
# meaning -> (singular, plural, past singular, past plural), third person
DEEDS: dict[str, dict[str, tuple[str, str, str, str]]] = {
    "Spanish": {
        "see": ("ve", "ven", "vio", "vieron"),
        "have": ("tiene", "tienen", "tuvo", "tuvieron"),
        "seek": ("busca", "buscan", "buscó", "buscaron"),
        "paint": ("pinta", "pintan", "pintó", "pintaron"),
        "find": ("encuentra", "encuentran", "encontró", "encontraron"),
    },
    "Italian": {
        "see": ("vede", "vedono", "vide", "videro"),
        "have": ("ha", "hanno", "ebbe", "ebbero"),
        "seek": ("cerca", "cercano", "cercò", "cercarono"),
        "love": ("ama", "amano", "amò", "amarono"),
        "find": ("trova", "trovano", "trovò", "trovarono"),
    },
    "French": {
        "see": ("voit", "voient", "vit", "virent"),
        "seek": ("cherche", "cherchent", "chercha", "cherchèrent"),
        "find": ("trouve", "trouvent", "trouva", "trouvèrent"),
        "paint": ("peint", "peignent", "peignit", "peignirent"),
    },
    "German": {
        "see": ("sieht", "sehen", "sah", "sahen"),
        "seek": ("sucht", "suchen", "suchte", "suchten"),
        "love": ("liebt", "lieben", "liebte", "liebten"),
        "find": ("findet", "finden", "fand", "fanden"),
        "paint": ("malt", "malen", "malte", "malten"),
    },
    "Esperanto": {
        "see": ("vidas", "vidas", "vidis", "vidis"),
        "have": ("havas", "havas", "havis", "havis"),
        "seek": ("serĉas", "serĉas", "serĉis", "serĉis"),
        "love": ("amas", "amas", "amis", "amis"),
        "find": ("trovas", "trovas", "trovis", "trovis"),
        "paint": ("pentras", "pentras", "pentris", "pentris"),
    },
}
ARTICLES = {
    "Spanish": {"ms": "el", "fs": "la", "mp": "los", "fp": "las"},
    "Italian": {"ms": "il", "fs": "la", "mp": "i", "fp": "le"},
    "French": {"ms": "le", "fs": "la", "mp": "les", "fp": "les"},
    "German": {"ms": "der", "fs": "die", "ns": "das", "mp": "die", "fp": "die", "np": "die"},
    "German object": {"ms": "den", "fs": "die", "ns": "das", "mp": "die", "fp": "die", "np": "die"},
}
LANGUAGES = tuple(WORDS)
PEOPLE = ("child", "woman", "man")  # as objects they would need "a" in Spanish


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase: "the old cats"."""

    noun: str
    adjective: str = ""
    is_plural: bool = False


@dataclass(frozen=True, slots=True)
class Clause:
    """A subject, a verb and an object, now or in the past."""

    subject: Phrase
    verb: str
    object: Phrase
    is_past: bool = False


def draw_phrase(draws: Draws, language: str, *, adjectives: bool) -> Phrase:
    """Return a phrase that the language has the words for."""
    tint = draws.pick(tuple(TINTS[language])) if adjectives and draws.chance(0.7) else ""
    return Phrase(draws.pick(tuple(WORDS[language])), tint, draws.chance(0.45))


def draw_clause(draws: Draws, language: str, *, adjectives: bool, past: bool) -> Clause:
    """Return a clause that the language has the words for; subject and object differ."""
    subject = draw_phrase(draws, language, adjectives=adjectives)
    while True:
        other = draw_phrase(draws, language, adjectives=adjectives)
        if other.noun != subject.noun and not (language == "Spanish" and other.noun in PEOPLE):
            break
    verb = draws.pick(tuple(DEEDS[language]))
    return Clause(subject, verb, other, past and draws.chance(0.5))


def english(clause: Clause) -> str:
    """Return the clause in English."""
    now, plural, past = VERBS[clause.verb]
    verb = past if clause.is_past else plural if clause.subject.is_plural else now
    return f"{english_phrase(clause.subject)} {verb} {english_phrase(clause.object)}"


def english_phrase(phrase: Phrase) -> str:
    """Return "the old cats"."""
    noun = NOUNS[phrase.noun] if phrase.is_plural else phrase.noun
    return " ".join(filter(None, ("the", phrase.adjective, noun)))


def say(clause: Clause, language: str) -> str:
    """Return the clause in a language."""
    forms = DEEDS[language][clause.verb]
    verb = forms[2 * clause.is_past + clause.subject.is_plural]
    done = phrase(clause.object, language, is_object=True)
    return f"{phrase(clause.subject, language)} {verb} {done}"


def phrase(given: Phrase, language: str, *, is_object: bool = False) -> str:
    """Return a noun phrase with its article, in agreement."""
    noun = WORDS[language][given.noun][given.is_plural]
    gender = WORDS[language][given.noun][2]
    tint = TINTS[language].get(given.adjective)
    if language == "Esperanto":
        ending = ("j" if given.is_plural else "") + ("n" if is_object else "")
        adjective = f"{tint[0]}a{ending} " if tint else ""
        return f"la {adjective}{noun}{'n' if is_object else ''}"
    key = gender + "sp"[given.is_plural]
    if language == "German":
        article = ARTICLES["German object" if is_object else "German"][key]
        is_weak_n = given.is_plural or (is_object and gender == "m")
        adjective = f"{tint[0]}{'en' if is_weak_n else 'e'} " if tint else ""
        return f"{article} {adjective}{noun}"
    article = ARTICLES[language][key]
    if language in ("French", "Spanish", "Italian"):
        after = f" {tint[2 * given.is_plural + (gender == 'f')]}" if tint else ""
        return f"{article} {noun}{after}"
    raise ValueError(f"expected one of {', '.join(LANGUAGES)}, got {language}")


@dataclass(frozen=True, slots=True)
class Conlang:
    """A language that does not exist, with regular rules.

    Attributes:
        name: what it is called.
        words: meaning to stem, nouns and verbs and adjectives.
        plural, past, accusative: endings.
        order: of S, V and O.
        adjective_first: whether adjectives stand before their nouns.
        article: before nouns; "" for none.
    """

    name: str
    words: dict[str, str]
    plural: str
    past: str
    accusative: str
    order: str
    adjective_first: bool
    article: str

    def say(self, clause: Clause) -> str:
        """Return the clause in this language."""
        verb = self.words[clause.verb] + (self.past if clause.is_past else "")
        parts = {
            "S": self._phrase(clause.subject, ""),
            "V": verb,
            "O": self._phrase(clause.object, self.accusative),
        }
        return " ".join(parts[each] for each in self.order)

    def _phrase(self, given: Phrase, ending: str) -> str:
        noun = self.words[given.noun] + (self.plural if given.is_plural else "") + ending
        adjective = self.words[given.adjective] if given.adjective else ""
        parts = [adjective, noun] if self.adjective_first else [noun, adjective]
        return " ".join(filter(None, [self.article, *parts]))

    def rules(self) -> str:
        """Return its grammar in English."""
        order = {"S": "subject", "V": "verb", "O": "object"}
        lines = [
            f"The order is {', '.join(order[each] for each in self.order)}.",
            f"The plural ends in -{self.plural}, the past tense in -{self.past}.",
            f"An object takes -{self.accusative} after the plural ending.",
            f"Adjectives stand {'before' if self.adjective_first else 'after'} their noun "
            f"and do not change.",
            f"Every noun phrase begins with '{self.article}'."
            if self.article
            else "There is no article.",
        ]
        return " ".join(lines)


def draw_conlang(draws: Draws, meanings: list[str]) -> Conlang:
    """Return a language with words for the meanings."""
    taken: dict[str, str] = {}
    for meaning in meanings:
        stem = _stem(draws)
        while stem in taken.values():
            stem = _stem(draws)
        taken[meaning] = stem
    plural, past, accusative = draws.sample(
        ("ne", "ri", "tu", "ka", "lo", "mes", "vin", "sha", "po", "gal", "em", "ith"), 3
    )
    name = _stem(draws) + draws.pick(("ian", "ese", "ish", "ic"))
    return Conlang(
        name[0].upper() + name[1:],
        taken,
        plural,
        past,
        accusative,
        draws.pick(("SOV", "SVO", "VSO", "OVS", "VOS")),
        draws.chance(0.5),
        draws.pick(("", "", "lu", "ba", "en")),
    )


def _stem(draws: Draws) -> str:
    parts = draws.between(1, 2)
    body = "".join(draws.pick("bdfghklmnprstvz") + draws.pick("aeiou") for _ in range(parts + 1))
    return body + draws.pick(("", "", "n", "r", "l", "s"))
