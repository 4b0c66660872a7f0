"""Reads `HYPOTHESIS = Hypothesis(...)` out of the bytes of experiment.py, without running anything.

Only literals are understood, so that what was declared is what is written, whatever the program does later.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import fields
from typing import Any, NoReturn

from mlxterp.autointerpret.hypothesis import Hypothesis, InterventionClaim, problems
from mlxterp.errors import DeclarationError

NAME = "HYPOTHESIS"
_FIELDS = tuple(each.name for each in fields(Hypothesis))
_OPTIONAL = ("slices", "builds_on", "replicates")


def read_hypothesis(source: bytes) -> Hypothesis | None:
    """The hypothesis that this module declares; None if it declares none (a plain experiment).

    Raises:
        DeclarationError: naming the line, what stands there and what to write.
    """
    call = _declaration(_parsed(source))
    if call is None:
        return None
    where: dict[str, int] = {}
    values: dict[str, Any] = {}
    for keyword in _keywords(call, "Hypothesis", _FIELDS):
        name, node = str(keyword.arg), keyword.value
        where[name] = node.lineno
        values[name] = _intervention(node) if name == "intervention" else _literal(node, name)
    missing = [name for name in _FIELDS if name not in values and name not in _OPTIONAL]
    if missing:
        _refuse(
            call.lineno,
            f"the hypothesis does not say {', '.join(missing)}. Add {missing[0]}=… to Hypothesis(…).",
        )
    for name, problem in problems(values).items():
        _refuse(where[name], problem)
    return Hypothesis(**values)


def _parsed(source: bytes) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the researcher's escapes and comparisons, not about us
            return ast.parse(source)
    except SyntaxError as problem:
        _refuse(problem.lineno or 1, f"experiment.py does not parse: {problem.msg}. Correct the line.")
    except (ValueError, RecursionError, MemoryError) as problem:
        _refuse(
            1, f"experiment.py does not parse: {problem or type(problem).__name__}. Write plain UTF-8 Python."
        )


def _declaration(module: ast.Module) -> ast.Call | None:
    """The call on the right of the one module-level assignment to HYPOTHESIS."""
    found: list[tuple[int, ast.expr | None]] = []
    proper: set[int] = set()
    for statement in module.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target: ast.expr = statement.targets[0]
        elif isinstance(statement, ast.AnnAssign):
            target = statement.target
        else:
            continue
        if isinstance(target, ast.Name) and target.id == NAME:
            found.append((statement.lineno, statement.value))
            proper.add(id(target))
    for node in ast.walk(module):
        line = _binds(node)
        if line and id(node) not in proper:
            _refuse(
                line, f"{NAME} is bound here. Write it once, as `{NAME} = Hypothesis(…)` at the top level."
            )
    if not found:
        return None
    if len(found) > 1:
        _refuse(
            found[1][0], f"{NAME} is declared a second time; line {found[0][0]} did so. Keep one of them."
        )
    line, value = found[0]
    if value is None or (isinstance(value, ast.Constant) and value.value is None):
        return None
    if not isinstance(value, ast.Call) or _called(value) != "Hypothesis":
        _refuse(line, f"{NAME} is {_shown(value)}. Write {NAME} = Hypothesis(id='H001', claim='…', …).")
    return value


def _binds(node: ast.AST) -> int:
    """The line on which this node gives HYPOTHESIS a value or takes it away; 0 if it does not."""
    if isinstance(node, ast.Name) and node.id == NAME and not isinstance(node.ctx, ast.Load):
        return node.lineno
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == NAME:
        return node.lineno
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return node.lineno if any((alias.asname or alias.name) == NAME for alias in node.names) else 0
    if isinstance(node, (ast.Global, ast.Nonlocal)) and NAME in node.names:
        return node.lineno
    return 0


def _intervention(node: ast.expr) -> InterventionClaim:
    names = tuple(each.name for each in fields(InterventionClaim))
    if not isinstance(node, ast.Call) or _called(node) != "InterventionClaim":
        _refuse(
            node.lineno, f"intervention is {_shown(node)}. Write InterventionClaim('patch', source='clean')."
        )
    values: dict[str, Any] = {}
    if node.args:
        values["op"] = _literal(node.args[0], "op")
    for keyword in _keywords(node, "InterventionClaim", names, positional=1):
        if keyword.arg in values:
            _refuse(node.lineno, f"{keyword.arg} of InterventionClaim is given twice. Give it once.")
        values[str(keyword.arg)] = _literal(keyword.value, str(keyword.arg))
    if "op" not in values:
        _refuse(node.lineno, "InterventionClaim does not say what is done. Write InterventionClaim('patch').")
    try:
        return InterventionClaim(**values)
    except DeclarationError as problem:
        _refuse(node.lineno, str(problem))


def _keywords(call: ast.Call, name: str, known: tuple[str, ...], *, positional: int = 0) -> list[ast.keyword]:
    if len(call.args) > positional:
        _refuse(
            call.lineno, f"{name} is given {_shown(call.args[positional])} without a name. Write field=value."
        )
    seen: set[str] = set()
    for keyword in call.keywords:
        if keyword.arg is None:
            _refuse(
                keyword.value.lineno,
                f"{name} is given **{_shown(keyword.value)}. Write each field=value out.",
            )
        if keyword.arg not in known:
            _refuse(
                keyword.value.lineno,
                f"{name} has no field {keyword.arg!r}. Its fields are: {', '.join(known)}.",
            )
        if keyword.arg in seen:
            _refuse(keyword.value.lineno, f"{keyword.arg} of {name} is given twice. Give it once.")
        seen.add(keyword.arg)
    return call.keywords


def _literal(node: ast.expr, name: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        _refuse(
            node.lineno,
            f"{name} is {_shown(node)}, which would have to be run. Write the value itself: a text, a "
            "number, or a list or dict of these.",
        )


def _called(call: ast.Call) -> str:
    """The last part of the name that is called: `autointerpret.Hypothesis(…)` is a Hypothesis."""
    if isinstance(call.func, ast.Name):
        return call.func.id
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _shown(node: ast.expr) -> str:
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):
        text = type(node).__name__
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def _refuse(line: int, what: str) -> NoReturn:
    raise DeclarationError(f"experiment.py, line {line}: {what}")
