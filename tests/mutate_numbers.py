"""Changes the statistics or the causal estimators in one place at a time, and counts what tests notice.

`python -m tests.mutate_numbers statistics --minutes 30`, or `causal`, or a module as `causal.circuits.acdc`.
A mutant is one operator, comparison, constant or call of a module exchanged (`_variants`); texts, docstrings
and annotations stay. They come in a random order that the seed fixes, so that what a limited time reaches is
a fair sample. Each runs in a child process: the module's own tests first, then the other test files of its
package that name it or a function of it (all of its folder, for a module without its own). Survivors are
printed.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "statistics": ("statistics",),
    "causal": ("causal/gradients", "causal/patching", "causal/circuits", "causal/direct_logit_attribution"),
}
"""Folders or modules below `mlxterp` whose numbers are held by tests of the same place below `tests`."""
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
    """One change of a module: of which node, in which way."""

    module: str
    place: int
    variant: int

    def source(self) -> tuple[str, int, str]:
        """The module with the change, its line, and what it is."""
        tree = ast.parse(_path(self.module).read_text(encoding="utf-8"))
        node = list(_changed_nodes(tree))[self.place]
        before = ast.unparse(node)
        _variants(node)[self.variant]()
        return ast.unparse(tree), node.lineno, f"{before}  ->  {ast.unparse(node)}"


def _path(module: str) -> Path:
    return ROOT / "mlxterp" / f"{module.replace('.', '/')}.py"


def _modules(name: str) -> list[str]:
    """The modules of a package, or the one of this name."""
    below, found = ROOT / "mlxterp", []
    for place in PACKAGES.get(name, (name.replace(".", "/"),)):
        folder = below / place
        paths = sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        found += [path.relative_to(below).with_suffix("") for path in paths if path.stem != "__init__"]
    return [".".join(each.parts) for each in found]


def _mutants(module: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    for place, node in enumerate(_changed_nodes(ast.parse(_path(module).read_text(encoding="utf-8")))):
        yield from (Mutant(module, place, variant) for variant in range(len(_variants(node))))


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
    """Imports one module from a mutant's source."""

    def __init__(self, module: str, source: str) -> None:
        self._name, self._source = f"mlxterp.{module}", source

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        del path, target
        return importlib.util.spec_from_loader(name, self) if name == self._name else None

    def exec_module(self, module) -> None:  # type: ignore[no-untyped-def]
        exec(compile(self._source, f"<mutant of {self._name}>", "exec"), vars(module))


def _is_noticed(module: str, source: str) -> bool:
    """Whether a test fails on a changed module, or does not end."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(_run_tests(module, source))
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


def _run_tests(module: str, source: str) -> int:
    """0 if all tests pass."""
    import pytest

    sys.meta_path.insert(0, _Importer(module, source))
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header"]
    for some in filter(None, _tests_of(module)):
        if pytest.main([*options, *map(str, some)]) != 0:
            return 1
    return 0


def _tests_of(module: str) -> tuple[list[Path], list[Path]]:
    """The module's own test file if it has one; the others of its package that name it, nearest first."""
    *folders, name = module.split(".")
    tests = ROOT / "tests"
    own = tests.joinpath(*folders, f"test_{name}.py")
    defined = ast.parse(_path(module).read_text(encoding="utf-8")).body
    public = {
        node.name
        for node in defined
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    }
    alone = not own.exists()
    names = re.compile(rf"\b({'|'.join(sorted(public | {name}))})\b")
    rest = [
        path
        for path in sorted((tests / folders[0]).rglob("test_*.py"), key=lambda p: (p.parent != own.parent, p))
        if path != own
        and (names.search(path.read_text(encoding="utf-8")) or (alone and path.parent == own.parent))
    ]
    return [] if alone else [own], rest


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Runs as many mutants as there is time for, and prints the survivors and the share noticed."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("names", nargs="+", help=f"{', '.join(PACKAGES)}, or names of modules below mlxterp")
    asked.add_argument("--minutes", type=float, default=1e9)
    asked.add_argument("--most", type=int, default=10**9, help="mutants")
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    import numpy
    import pytest
    import scipy.stats

    del numpy, pytest, scipy  # for the children, which then start fast; mlx may not be forked
    every = [module for name in given.names for module in _modules(name)]
    mutants = [mutant for module in every for mutant in _mutants(module)]
    random.Random(given.seed).shuffle(mutants)
    until = time.monotonic() + 60 * given.minutes
    counts: dict[str, list[int]] = {module: [0, 0] for module in every}
    for mutant in mutants[: given.most]:
        if time.monotonic() > until:
            break
        source, line, what = mutant.source()
        noticed = _is_noticed(mutant.module, source)
        counts[mutant.module][0] += 1
        counts[mutant.module][1] += noticed
        if (ran := sum(each[0] for each in counts.values())) % 25 == 0:
            _say(f"{ran} mutants, {sum(each[1] for each in counts.values())} noticed")
        if not noticed:
            _say(f"survived: {mutant.module}:{line}  {what}")
    for module, (ran, noticed) in counts.items():
        _say(f"{module}: {noticed} of {ran}")
    ran, noticed = (sum(each[i] for each in counts.values()) for i in (0, 1))
    _say(f"noticed: {noticed} of {ran} mutants ({noticed / max(ran, 1):.1%}), of {len(mutants)} in all")


if __name__ == "__main__":
    main()
