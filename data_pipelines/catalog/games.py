"""Chess games of PGN: tags and moves, with comments and variations left out.

A game is checked as text: every move is one by its spelling, and the game ends as its tag says.
Whether moves are legal is not looked at. Specification: PGN, 1994-03-12.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field

from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.jsonl import BadLine

TAG = re.compile(r'^\[(\w{1,60})\s+"((?:[^"\\]|\\.){0,500})"\]\s*$')
MOVE = re.compile(
    r"(?:[KQRBN]?[a-h]?[1-8]?x?[a-h][1-8](?:=?[QRBN])?|O-O(?:-O)?|0-0(?:-0)?|--)[+#]?[!?]{0,2}"
)
NUMBER = re.compile(r"\d{1,4}\.+")
RESULTS = ("1-0", "0-1", "1/2-1/2", "*")
SHOWN = ("Event", "White", "Black", "WhiteElo", "BlackElo", "Date", "Opening", "Result")
MAX_GAME_LINES = 5000


@dataclass(slots=True)
class Game:
    """The lines of one game, and where it begins."""

    line: int
    tags: dict[str, str] = field(default_factory=dict)
    moves: list[str] = field(default_factory=list)
    bad_tag: int = 0


def read_games(leaf: Leaf) -> Items:
    """Yield a text for each game: its tags, then its moves."""
    yield from leaves.each(_games(leaf), _game)


def _games(leaf: Leaf) -> Iterator[tuple[str, Game | Reject]]:
    game: Game | None = None
    number = 0
    while data := leaf.stream.readline(leaf.limits.line_bytes + 1):
        number += 1
        if len(data) > leaf.limits.line_bytes:
            raise BadLine("line_too_long", f"line {number}: over {leaf.limits.line_bytes} bytes")
        line = data.decode("latin-1" if _is_latin(data) else "utf-8").strip().removeprefix("\ufeff")
        if line.startswith("%") or not line:
            continue
        is_tag = line.startswith("[") and (game is None or not _in_comment(game))
        if is_tag and game is not None and game.moves:
            yield f"{leaf.name}#{game.line}", game
            game = None
        game = game or Game(number)
        if is_tag:
            tag = TAG.match(line)
            game.bad_tag = game.bad_tag or (0 if tag else number)
            if tag:
                game.tags[tag[1]] = tag[2]
        elif len(game.moves) < MAX_GAME_LINES:
            game.moves.append(line)
    if game is not None:
        yield f"{leaf.name}#{game.line}", game
    elif not number:
        yield leaf.name, Reject(leaf.name, "empty", "holds no games")


def _is_latin(data: bytes) -> bool:
    """Return whether a line is in ISO 8859-1, the standard's own character set."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _in_comment(game: Game) -> bool:
    last = game.moves[-1] if game.moves else ""
    return last.rfind("{") > last.rfind("}")


def _game(where: str, game: Game) -> Document:
    if game.bad_tag:
        raise BadLine("bad_pgn", f'line {game.bad_tag}: expected a tag as [Name "value"]')
    said = _main_line("\n".join(game.moves), game.line).split()
    result = said.pop() if said and said[-1] in RESULTS else ""
    moves = [token for raw in said if (token := NUMBER.sub("", raw)) and token[0] != "$"]
    wrong = next((token for token in moves if not MOVE.fullmatch(token)), None)
    if wrong is not None:
        raise BadLine("bad_pgn", f"game at line {game.line}: {wrong[:40]!r} is no move")
    if not result or game.tags.get("Result", result) != result:
        told = f"game at line {game.line}: the moves end with {result or 'no result'}"
        raise BadLine("bad_pgn", f"{told}, the tag says {game.tags.get('Result', 'nothing')}")
    if not moves:
        raise BadLine("empty", f"game at line {game.line}: no moves")
    numbered = (
        f"{index // 2 + 1}. {move}" if index % 2 == 0 else move for index, move in enumerate(moves)
    )
    tags = "\n".join(f'[{name} "{game.tags[name]}"]' for name in SHOWN if name in game.tags)
    return leaves.document(
        where,
        f"{tags}\n\n{' '.join(numbered)} {result}".strip(),
        title=" - ".join(filter(None, (game.tags.get("White"), game.tags.get("Black")))),
        result=result,
        num_moves=len(moves),
        date=game.tags.get("Date"),
        opening=game.tags.get("ECO") or game.tags.get("Opening"),
        url=game.tags.get("Site"),
    )


def _main_line(text: str, line: int) -> str:
    """Return the moves without {comments}, ; comments and (variations).

    Raises:
        BadLine: a comment or a variation is never closed.
    """
    parts, depth, at = [], 0, 0
    for token in re.finditer(r"[{;()]", text):
        if token.start() < at:
            continue
        if not depth:
            parts.append(text[at : token.start()])
        at = token.end()
        if token[0] in "{;":
            end = text.find("}" if token[0] == "{" else "\n", at)
            if end < 0 and token[0] == "{":
                raise BadLine("bad_pgn", f"game at line {line}: a comment is never closed")
            at = len(text) if end < 0 else end + 1
        else:
            depth += 1 if token[0] == "(" else -1
            if depth < 0:
                raise BadLine("bad_pgn", f"game at line {line}: ')' without '('")
    if depth:
        raise BadLine("bad_pgn", f"game at line {line}: a variation is never closed")
    return " ".join([*parts, text[at:]])
