"""Proof libraries to pairs of statement and proof: Coq (.v), Lean (.lean), Agda (.agda).

Declarations are found by their words, not by a parser of the language: comments are blanked out
first, a proof ends where its language says so or where the next declaration begins. What is left
open (Admitted, sorry, a hole) is kept out. A file without any is one text.
"""

import re
from collections.abc import Callable
from collections.abc import Iterator

from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.jsonl import BadLine

COQ = re.compile(
    r"(?m)^[ \t]*(?:(?:Local|Global|Polymorphic|#\[[^\]\n]{0,100}\])[ \t]+)?"
    r"(?:Theorem|Lemma|Corollary|Proposition|Fact|Remark)[ \t]+([\w']+)"
)
COQ_END = re.compile(r"\b(Qed|Defined|Admitted|Abort)\s*\.")
LEAN = re.compile(
    r"(?m)^(?:@\[[^\]\n]{0,200}\][ \t]*\n?)?(?:(?:private|protected|nonrec)[ \t]+)*"
    r"(?:theorem|lemma)[ \t]+([^\s:({\[]+)"
)
LEAN_NEXT = re.compile(r"(?m)^(?:@\[|[a-z#]\w*|/-)")
AGDA = re.compile(r"(?m)^([^\s:;(){}@\"]+)[ \t]+:(?=\s)")
AGDA_KEYWORDS = frozenset({"record", "data", "module", "open", "import", "postulate", "field"})

Piece = tuple[int, str, str, str]  # offset, name, statement, proof


def read_proofs(leaf: Leaf) -> Items:
    """Yield a prompt (statement) and completion (proof) for each proven declaration."""
    system, cut = SYSTEMS[leaf.suffix]
    source = leaf.source_text()
    blank = _blanked(source, leaf.suffix)
    pieces = ((f"{leaf.name}#{source.count(chr(10), 0, p[0]) + 1}", p) for p in cut(source, blank))
    found = False

    def make(where: str, piece: Piece) -> Document:
        _, name, statement, proof = piece
        line = where.rpartition("#")[2]
        if not proof:
            raise BadLine("unfinished_proof", f"line {line}: {name} has no proof that ends")
        if re.search(r"\b(?:Admitted|Abort|sorry|admit)\b|\{!|=\s*\?\s*$", proof):
            raise BadLine("unproven", f"line {line}: {name} is left open")
        return leaves.pair(where, statement, proof, title=name, system=system)

    for item in leaves.each(pieces, make):
        found = True
        yield item
    if not found:
        yield leaves.document(leaf.name, source, system=system)


def _coq(source: str, blank: str) -> Iterator[Piece]:
    starts = list(COQ.finditer(blank))
    for number, start in enumerate(starts):
        border = starts[number + 1].start() if number + 1 < len(starts) else len(blank)
        stated = re.compile(r"\.(?=\s)").search(blank, start.end(), border)
        ended = COQ_END.search(blank, stated.end(), border) if stated else None
        statement = source[start.start() : stated.end() if stated else border].strip()
        proof = source[stated.end() : ended.end()].strip() if stated and ended else ""
        yield start.start(1), start[1], statement, proof


def _lean(source: str, blank: str) -> Iterator[Piece]:
    for start in LEAN.finditer(blank):
        following = LEAN_NEXT.search(blank, start.end())
        border = following.start() if following else len(blank)
        defined = blank.find(":=", start.end(), border)
        equations = re.compile(r"\n[ \t]+\|").search(blank, start.end(), border)
        if defined < 0 and equations:
            defined = equations.start()
        is_by = blank.startswith(":=", defined) if defined >= 0 else False
        cut = defined + (2 if is_by else 0)
        proof = source[cut:border].strip() if defined >= 0 else ""
        statement = source[start.start() : cut if defined >= 0 else border].strip()
        yield start.start(1), start[1], statement, proof


def _agda(source: str, blank: str) -> Iterator[Piece]:
    starts = [each for each in AGDA.finditer(blank) if each[1] not in AGDA_KEYWORDS]
    for number, start in enumerate(starts):
        border = starts[number + 1].start() if number + 1 < len(starts) else len(blank)
        clause = re.compile(rf"(?m)^{re.escape(start[1])}(?=\s)").search(blank, start.end(), border)
        if clause is None and "=" not in blank[start.end() : border]:
            clause_at, proof = border, ""
        else:  # operators name themselves in the middle of their clauses
            first = clause or re.compile(r"(?m)^\S.*=").search(blank, start.end(), border)
            clause_at = first.start() if first else border
            proof = source[clause_at:border].strip()
        yield start.start(1), start[1], source[start.start() : clause_at].strip(), proof


SYSTEMS: dict[str, tuple[str, Callable[[str, str], Iterator[Piece]]]] = {
    ".v": ("coq", _coq),
    ".lean": ("lean", _lean),
    ".agda": ("agda", _agda),
}
BRACKETS = {".v": ("(*", "*)", ""), ".lean": ("/-", "-/", "--")}


def _blanked(source: str, suffix: str) -> str:
    """Return the source with comments as spaces, line by line of the same length."""
    opening, closing, line = BRACKETS.get(suffix, ("{-", "-}", "--"))
    tokens = re.compile("|".join(map(re.escape, filter(None, (opening, closing, line)))))
    parts, depth, at = [], 0, 0
    for token in tokens.finditer(source):
        if token.start() < at:
            continue
        kept = source[at : token.start()]
        parts.append(kept if not depth else _spaces(kept))
        at = token.start()
        if token[0] == opening:
            depth += 1
        elif token[0] == closing and depth:
            depth -= 1
            parts.append("  ")
            at = token.end()
        elif token[0] == line and not depth and suffix != ".v":
            stop = source.find("\n", at)
            stop = len(source) if stop < 0 else stop
            parts.append(" " * (stop - at))
            at = stop
    rest = source[at:]
    return "".join([*parts, rest if not depth else _spaces(rest)])


def _spaces(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)
