"""What a module assigns to a name at its top level, read without running it.

Lives here: finding the one assignment, reading literals, refusing with the line and what to write. Used for
HYPOTHESIS (`hypothesis.py`) and PREDICTION (`prediction.py`).
"""

from __future__ import annotations

import ast
import warnings
from typing import Any, NamedTuple, NoReturn

from mlxterp.errors import DeclarationError


class Assignment(NamedTuple):
    """The line of an assignment, and what stands on its right."""

    line: int
    value: ast.expr


def parse_module(source: bytes) -> ast.Module:
    """The syntax tree of an experiment.py."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the researcher's escapes and comparisons, not about us
            return ast.parse(source)
    except SyntaxError as problem:
        refuse(problem.lineno or 1, f"experiment.py does not parse: {problem.msg}. Correct the line.")
    except (ValueError, RecursionError, MemoryError) as problem:
        refuse(
            1, f"experiment.py does not parse: {problem or type(problem).__name__}. Write plain UTF-8 Python."
        )


def assigned(module: ast.Module, name: str, example: str) -> Assignment | None:
    """The one assignment to this name at the top level; None if there is none, or None is assigned.

    Args:
        example: how it is written, as in `HYPOTHESIS = Hypothesis(…)`.

    Raises:
        DeclarationError: the name is bound elsewhere too, or twice.
    """
    found: list[tuple[int, ast.expr | None]] = []
    proper: set[int] = set()
    for statement in module.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target: ast.expr = statement.targets[0]
        elif isinstance(statement, ast.AnnAssign):
            target = statement.target
        else:
            continue
        if isinstance(target, ast.Name) and target.id == name:
            found.append((statement.lineno, statement.value))
            proper.add(id(target))
    for node in ast.walk(module):
        line = _binds(node, name)
        if line and id(node) not in proper:
            refuse(line, f"{name} is bound here. Write it once, as `{example}` at the top level.")
    if not found:
        return None
    if len(found) > 1:
        refuse(found[1][0], f"{name} is declared a second time; line {found[0][0]} did so. Keep one of them.")
    line, value = found[0]
    if value is None or (isinstance(value, ast.Constant) and value.value is None):
        return None
    return Assignment(line, value)


def _binds(node: ast.AST, name: str) -> int:
    """The line on which this node gives the name a value or takes it away; 0 if it does not."""
    if isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load):
        return node.lineno
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == name:
        return node.lineno
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return node.lineno if any((alias.asname or alias.name) == name for alias in node.names) else 0
    if isinstance(node, (ast.Global, ast.Nonlocal)) and name in node.names:
        return node.lineno
    return 0


def read_literal(node: ast.expr, name: str) -> Any:
    """The value of a literal; DeclarationError for what would have to be run."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        refuse(
            node.lineno,
            f"{name} is {excerpt(node)}, which would have to be run. Write the value itself: a text, a "
            "number, or a list or dict of these.",
        )


def excerpt(node: ast.expr) -> str:
    """The source of an expression, shortened."""
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):
        text = type(node).__name__
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def refuse(line: int, what: str) -> NoReturn:
    """Raises DeclarationError for a line of experiment.py."""
    raise DeclarationError(f"experiment.py, line {line}: {what}")
