"""Small changes of a source file, each of which some test should notice: what `mutants.py` runs the tests against.

A mutant is one splice of a file, named by the function or class it stands in, its kind, the code before and after, and
its number among equal ones there: so its name survives moved lines. Never changed are docstrings, annotations (but for the
marks that say what is in a key), what an error or a log says, descriptions, `__all__`, and imports.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MARKS = {"InKeyUnlessDefault", "NotInKey"}
"""Marks of a spec field, which stand in annotations; one becomes the other."""
FIELDS = "__import__('raycl.fields', fromlist=['fields'])"
"""The module of the marks, from wherever, and while it is imported."""
WORDS = {"description", "why", "title", "repr", "help", "remedy", "hint"}
"""Keyword arguments that only people read."""
FOR_PEOPLE = {"About", "warn", "debug", "info", "warning", "error", "getLogger", "print"}
"""Calls whose arguments only people read."""
GUARDS = {"strict", "encoding", "maxsize", "init", "frozen", "default_factory"}
"""Keyword arguments that guard against what cannot come, or that are the form of a declaration."""
DECLARED = {"TypeVar", "cast", "ConfigDict", "dataclass", "field", "lru_cache"}
"""Calls that declare."""
COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
SWAPPED = {"min": "max", "max": "min", "ceil": "floor", "floor": "ceil", "any": "all", "all": "any", "round": "int"}
UNWRAPPED = {"detach", "clone", "abs", "float", "double", "sqrt", "norm", "strip", "lower", "mean", "sum", "contiguous"}
"""Methods that are dropped where they are called without arguments: `x.detach()` becomes `x`."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    scope: str
    """Qualified name of the function or class it stands in; empty at module level."""
    kind: str
    before: str
    after: str
    number: int
    """Among equal changes in the same scope, from 1."""
    start: int
    end: int
    """Place in the file's UTF-8 bytes."""
    line: int

    @property
    def name(self) -> str:
        """What it is called in lists of results and of reviewed survivors."""
        number = f" ({self.number})" if self.number > 1 else ""
        return f"{self.file}::{self.scope} | {self.kind} | {_short(self.before)} -> {_short(self.after)}{number}"

    def apply(self, source: str) -> str | None:
        """The file with the change; none if that is no Python, or the same Python."""
        data = source.encode()
        changed = (data[: self.start] + self.after.encode() + data[self.end :]).decode()
        try:
            same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source))
        except SyntaxError:
            return None
        return None if same else changed


def mutants_of(file: str, source: str) -> list[Mutant]:
    """All changes of a file, in the order of the text; some are no Python (see `Mutant.apply`)."""
    lines = [0]
    for line in source.encode().splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    seen: Counter[tuple[str, str, str, str]] = Counter()
    found = []
    for scope, node, kind, after in _walk(ast.parse(source), ""):
        start, end = lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset
        before = ast.unparse(node)
        named = (scope, kind, _short(before), _short(after))
        seen[named] += 1
        found.append(Mutant(file, scope, kind, before, after, seen[named], start, end, node.lineno))
    return sorted(found, key=lambda one: (one.start, one.end, one.name))


def _short(code: str) -> str:
    return code if len(code) <= 90 else f"{code[:60]} ... {code[-25:]}"


def _walk(node: ast.AST, scope: str) -> Iterator[tuple[str, Any, str, str]]:
    """(scope, node to replace, kind, replacement) of everything below `node`."""
    if isinstance(node, ast.expr | ast.stmt):
        yield from ((scope, *change) for change in _changes(node))
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = f"{scope}.{node.name}" if scope else node.name
    for child in _children(node):
        yield from _walk(child, scope)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that may be changed."""
    if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    if isinstance(node, ast.Call) and _called(node) in FOR_PEOPLE | DECLARED | MARKS:
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Assign | ast.AnnAssign) and _targets(node) & {"__all__", "about"}:
        return
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    if isinstance(node, ast.keyword) and node.arg in WORDS | GUARDS:
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            yield from (mark for mark in ast.walk(value) if _is_mark(mark)) if value else ()
        elif name not in ("targets", "decorator_list"):
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, ast.AST))


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    return {ast.unparse(one) for one in (node.targets if isinstance(node, ast.Assign) else [node.target])}


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rsplit(".", 1)[-1]


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _called(node) in MARKS


def _statements(node: ast.stmt) -> Iterator[tuple[ast.AST, str, str]]:
    match node:
        case ast.Expr(value=ast.Call() as call) if _called(call) not in FOR_PEOPLE:
            yield node, "statement", "pass"
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield node, "statement", "pass"
        case ast.AugAssign():
            yield node, "statement", "pass"
        case ast.FunctionDef():
            for one in node.decorator_list:
                if ast.unparse(one).startswith("torch.no_grad"):
                    yield one, "decorator", "(lambda function: function)"


def _changes(node: ast.expr | ast.stmt) -> Iterator[tuple[ast.AST, str, str]]:
    """(node to replace, kind, replacement) for one node."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARE:
            yield node, "compare", ast.unparse(ast.Compare(node.left, [COMPARE[type(op)]()], node.comparators))
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            yield node, "arithmetic", f"({ast.unparse(ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right))})"
        case ast.BoolOp():
            other = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
            yield node, "boolean", f"({ast.unparse(ast.BoolOp(other, node.values))})"
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node, "sign", f"({ast.unparse(node.operand)})"
        case ast.Constant():
            yield from ((node, "constant", after) for after in _constants(node.value))
        case ast.Call():
            yield from _calls(node)
        case ast.Dict() if len(node.keys) > 0:
            yield from _entries(node)
        case ast.If() | ast.IfExp() | ast.While() if isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
            yield node.test, "condition", f"(not {ast.unparse(node.test)})"
        case ast.stmt():
            yield from _statements(node)


def _constants(value: object) -> Iterator[str]:
    if isinstance(value, bool):
        yield str(not value)
    elif isinstance(value, int):
        yield str(value + 1)
    elif isinstance(value, float):
        yield repr(value * 2 if value else 1.0)
    elif isinstance(value, str) and value and " " not in value:
        yield repr(value + "X")


def _calls(node: ast.Call) -> Iterator[tuple[ast.AST, str, str]]:
    called = _called(node)
    if called == "InKeyUnlessDefault":
        yield node, "mark", f"{FIELDS}.NotInKey('')"
    elif called == "NotInKey":
        yield node, "mark", f"{FIELDS}.Meaning(1, None)"
    if called in FOR_PEOPLE | DECLARED | MARKS:
        return
    if called in SWAPPED and len(node.args) > (called in ("min", "max") and not node.keywords):
        yield node.func, "swap", ast.unparse(node.func).removesuffix(called) + SWAPPED[called]
    if called in UNWRAPPED and isinstance(node.func, ast.Attribute) and not node.args and not node.keywords:
        yield node, "unwrap", ast.unparse(node.func.value)
    for keyword in node.keywords:
        if keyword.arg is not None and keyword.arg not in WORDS | GUARDS:
            rest = [one for one in node.keywords if one is not keyword]
            yield node, f"without {keyword.arg}", ast.unparse(ast.Call(node.func, node.args, rest))


def _entries(node: ast.Dict) -> Iterator[tuple[ast.AST, str, str]]:
    for dropped, key in enumerate(node.keys):
        kept = [place for place in range(len(node.keys)) if place != dropped]
        rest = ast.Dict([node.keys[place] for place in kept], [node.values[place] for place in kept])
        yield node, f"entry {ast.unparse(key) if key else '**'}", ast.unparse(rest)
