"""Small changes to a Python program, each of which good tests should notice.

The classes are those of mutation testing: comparisons, arithmetic, logic, constants off by one,
conditions turned round, returns replaced, statements dropped (Offutt et al., "An experimental
determination of sufficient mutant operators", ACM TOSEM 5(2), 1996, and its followers). Some
mutants mean the same as the original; no tests can notice those.
"""

import ast
import copy
from collections.abc import Iterator

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


def mutants(code: str, limit: int) -> list[tuple[str, str]]:
    """Return up to `limit` changed programs, spread evenly, each with what was changed.

    Raises:
        SyntaxError, ValueError, RecursionError: the code cannot be parsed.
    """
    tree = ast.parse(code)
    original = ast.unparse(tree)
    spots = list(_spots(tree))
    found: dict[str, str] = {}
    # The spots in an order that stays spread however early it ends: by bit-reversed position.
    for spot in sorted(range(len(spots)), key=_bits_reversed):
        if len(found) == limit:
            break
        where, what, line = spots[spot]
        changed = copy.deepcopy(tree)
        _change(list(ast.walk(changed))[where], what)
        text = ast.unparse(ast.fix_missing_locations(changed))
        if text != original:
            found.setdefault(text, f"line {line}: {what}")
    return list(found.items())


def _bits_reversed(number: int) -> str:
    return f"{number:032b}"[::-1]


def _spots(tree: ast.Module) -> Iterator[tuple[int, str, int]]:
    """Yield (position in ast.walk, change, line) of every change that can be made."""
    skipped = _skipped(tree)
    for where, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        for what in _changes(node):
            yield where, what, getattr(node, "lineno", 0)


def _skipped(tree: ast.Module) -> set[int]:
    """Return the nodes whose change means nothing: docstrings, annotations, main blocks."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            roots.append(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            roots += [node.returns] if node.returns else []
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            roots.append(node.annotation)
        if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
            roots.append(node)
    return {id(below) for root in roots for below in ast.walk(root)}


def _changes(node: ast.AST) -> Iterator[str]:
    """Yield the names of the changes that a node allows."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
            yield "comparison"
        case ast.BinOp() | ast.AugAssign() if type(node.op) in _OPERATORS:
            if not _is_text(node):
                yield "operator"
        case ast.BoolOp():
            yield "and_or"
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield "without_sign"
        case ast.Constant(value=bool()):
            yield "constant_negated"
        case ast.Constant(value=int() | float()):
            yield "constant_plus_one"
        case ast.Constant(value=str() as text) if text:
            yield "text_emptied"
        case ast.If() | ast.While() | ast.IfExp():
            yield "condition_negated"
        case ast.Return(value=ast.expr() as value):
            if not (isinstance(value, ast.Constant) and value.value is None):
                yield "return_none"
        case ast.Break():
            yield "break_continue"
        case ast.Continue():
            yield "continue_break"
    if isinstance(node, ast.Assign | ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "statement_dropped"


def _is_text(node: ast.BinOp | ast.AugAssign) -> bool:
    """Tell whether a number's operator is used on text: changing it only raises."""
    parts = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    return any(
        isinstance(part, ast.JoinedStr)
        or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in parts
    )


def _change(node: ast.AST, what: str) -> None:
    """Change a node in place."""
    match what, node:
        case "comparison", ast.Compare():
            node.ops = [_COMPARISONS[type(node.ops[0])]()]
        case "operator", ast.BinOp() | ast.AugAssign():
            node.op = _OPERATORS[type(node.op)]()
        case "and_or", ast.BoolOp():
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case "without_sign", ast.UnaryOp():
            node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
            if isinstance(node.op, ast.Not):
                node.operand = ast.UnaryOp(ast.Not(), node.operand)
        case "constant_negated", ast.Constant():
            node.value = not node.value
        case "constant_plus_one", ast.Constant(value=int() | float() as value):
            node.value = value + 1
        case "text_emptied", ast.Constant():
            node.value = ""
        case "condition_negated", ast.If() | ast.While() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case "return_none", ast.Return():
            node.value = ast.Constant(None)
        case "break_continue" | "continue_break" | "statement_dropped", ast.stmt():
            _replace_statement(node, what)
        case _:
            raise AssertionError(f"{what} does not fit {node}")


def _replace_statement(node: ast.stmt, what: str) -> None:
    """Turn a statement into another one, in place."""
    kinds = {"break_continue": ast.Continue, "continue_break": ast.Break}
    node.__class__ = kinds.get(what, ast.Pass)
    for name in ("targets", "target", "value", "op"):
        if hasattr(node, name):
            delattr(node, name)
