"""Changes `mlxterp/statistics` in one place at a time and counts how many changes its tests notice.

`python -m tests.mutate_statistics --minutes 30`, optionally with names of modules. A mutant is one operator,
comparison, constant or call of a module exchanged (`_mutants`); texts, docstrings and annotations stay. They
come in a random order that the seed fixes, so that what a limited time reaches is a fair sample. Each runs in
a child process: the module's own tests first, then the other files of `tests/statistics` that import it.
Survivors are printed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "mlxterp" / "statistics"
TESTS = ROOT / "tests" / "statistics"
OWN = {"arrays": "ratio", "outcome": "decisions"}
"""Modules without a test file of their own name: whose tests come first."""
SECONDS = 900
"""After so long a mutant counts as noticed: it does not end."""

_COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.MatMult: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_CALLED = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "maximum": "minimum",
    "minimum": "maximum",
    "ceil": "floor",
    "floor": "ceil",
    "sum": "mean",
    "mean": "sum",
}


class Mutant(NamedTuple):
    """A module's source with one change, and where and what that is."""

    module: str
    line: int
    what: str
    source: str


def _mutants(module: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse((MODULES / f"{module}.py").read_text(encoding="utf-8"))
    nodes = list(_changed_nodes(tree))
    for place in range(len(nodes)):
        for variant in range(len(_variants(nodes[place]))):
            whole = copy.deepcopy(tree)
            node = list(_changed_nodes(whole))[place]
            before = ast.unparse(node)
            _variants(node)[variant]()
            yield Mutant(module, node.lineno, f"{before}  ->  {ast.unparse(node)}", ast.unparse(whole))


def _changed_nodes(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions of a module that can be changed, without annotations and decorators."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                if isinstance(child, ast.expr) and _variants(child):
                    yield child
                yield from _changed_nodes(child)


def _variants(node: ast.AST) -> list:  # type: ignore[type-arg]
    """Functions that change this node, one way each."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        return [lambda: node.ops.__setitem__(0, _COMPARED[type(node.ops[0])]())]
    if isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED:
        return [lambda: setattr(node, "op", _COMPUTED[type(node.op)]())]
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return [lambda: setattr(node, "op", other)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return [lambda: setattr(node, "op", ast.UAdd())]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return [lambda: setattr(node, "value", not node.value)]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return [lambda: setattr(node, "value", node.value + 1)]
    if isinstance(node, ast.Call):
        name = node.func
        if isinstance(name, ast.Name) and name.id in _CALLED:
            return [lambda: setattr(name, "id", _CALLED[name.id])]
        if isinstance(name, ast.Attribute) and name.attr in _CALLED:
            return [lambda: setattr(name, "attr", _CALLED[name.attr])]
    return []


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the statistics from a mutant's source."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._name = f"mlxterp.statistics.{mutant.module}"

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        del path, target
        return importlib.util.spec_from_loader(name, self) if name == self._name else None

    def exec_module(self, module) -> None:  # type: ignore[no-untyped-def]
        exec(compile(self._mutant.source, f"<mutant of {self._mutant.module}>", "exec"), vars(module))


def _is_noticed(mutant: Mutant) -> bool:
    """Whether a test fails on the mutant, or does not end."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(_run_tests(mutant))
    until = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.02)


def _run_tests(mutant: Mutant) -> int:
    """0 if all tests pass."""
    import pytest

    sys.meta_path.insert(0, _Importer(mutant))
    own = TESTS / f"test_{OWN.get(mutant.module, mutant.module)}.py"
    named = f"mlxterp.statistics.{mutant.module} ", f"statistics import {mutant.module}"
    rest = sorted(
        path
        for path in TESTS.glob("test_*.py")
        if path != own and any(name in path.read_text(encoding="utf-8") for name in named)
    )
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header"]
    for some in filter(None, ([own], rest)):
        if pytest.main([*options, *map(str, some)]) != 0:
            return 1
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Runs as many mutants as there is time for, and prints the survivors and the share noticed."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("modules", nargs="*", help="names of modules; by default all")
    asked.add_argument("--minutes", type=float, default=1e9)
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    import numpy
    import pytest
    import scipy.stats

    del numpy, pytest, scipy  # for the children, which then start fast
    every = given.modules or sorted(p.stem for p in MODULES.glob("*.py") if p.stem != "__init__")
    mutants = [mutant for module in every for mutant in _mutants(module)]
    random.Random(given.seed).shuffle(mutants)
    until = time.monotonic() + 60 * given.minutes
    counts: dict[str, list[int]] = {module: [0, 0] for module in every}
    for mutant in mutants:
        if time.monotonic() > until:
            break
        noticed = _is_noticed(mutant)
        counts[mutant.module][0] += 1
        counts[mutant.module][1] += noticed
        if (ran := sum(each[0] for each in counts.values())) % 25 == 0:
            _say(f"{ran} mutants, {sum(each[1] for each in counts.values())} noticed")
        if not noticed:
            _say(f"survived: {mutant.module}.py:{mutant.line}  {mutant.what}")
    for module, (ran, noticed) in counts.items():
        _say(f"{module}: {noticed} of {ran}")
    ran, noticed = (sum(each[i] for each in counts.values()) for i in (0, 1))
    _say(f"noticed: {noticed} of {ran} mutants ({noticed / max(ran, 1):.1%}), of {len(mutants)} in all")


if __name__ == "__main__":
    main()
