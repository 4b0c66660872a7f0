"""Help on the library, read from its source: signature, documentation, an executed example.

For a language model and for `autointerp api`. Nothing is imported, so the supervisor stays free of mlx, and
nothing is written twice, so it cannot go stale. The examples are in `templates/prompts/examples/`; a test
executes each on the toy model.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mlxterp
from mlxterp._files import locate
from mlxterp_agent.exit_codes import AgentError
from mlxterp_agent.text import cut

LIMIT = 8_000
"""Bytes of one answer."""

ESSENTIALS_LIMIT = 24_000

_ROOT = Path(mlxterp.__file__).resolve().parent
_ENTRANCE = "mlxterp"
_MODULES_WITHOUT_A_LIST = ("conversation", "metrics", "core.interventions")
"""Modules whose public names are all that they define; packages list theirs in `__all__`."""

_FIRST = ("mlxterp", "mlxterp.workflows", "mlxterp.causal", "mlxterp.core.interventions", "mlxterp.datasets")
"""What an experiment begins with: the prompt has their signatures, and the names of the rest."""

Definition = ast.FunctionDef | ast.ClassDef


class NotFound(AgentError):
    """The library has nothing of this name."""


@dataclass(frozen=True)
class Public:
    """One name of the library: where it is imported from, and its definition."""

    name: str
    module: str
    definition: Definition

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.definition) or ""

    @property
    def line(self) -> str:
        """Signature and the first sentence."""
        return f"{signature(self.definition)}\n    {_first(self.doc)}"


def library_help(name: str | None = None) -> str:
    """Everything about one name ("activation_patching", "InterpretableModel.trace"); without one, the list.

    Raises:
        NotFound: with similar names.
    """
    if name is None:
        return cut(listing(), LIMIT)
    wanted = name.strip().removesuffix("()")
    known = _names()
    for each in (wanted, wanted.rpartition(".")[2]):
        if each in known:
            return cut(_page(known[each]), LIMIT)
    owner, _, member = wanted.rpartition(".")
    whole = known.get(owner.rpartition(".")[2])
    if whole is not None:
        return cut(_method(whole, member), LIMIT)
    close = difflib.get_close_matches(wanted.rpartition(".")[2], known, n=5, cutoff=0.4)
    hint = f"Similar: {', '.join(close)}. " if close else ""
    raise NotFound(
        f"mlxterp has no public {name[:80]!r}. {hint}Without a name, everything there is is listed."
    )


def listing() -> str:
    """Every public name by its module, with its first sentence."""
    lines: list[str] = []
    module = ""
    for public in _names().values():
        if public.module != module:
            module = public.module
            lines += ["", f"from {module} import …"]
        lines.append(f"  {public.name}: {_first(public.doc)}")
    return "\n".join(lines).strip()


def essentials() -> str:
    """The stable overview for a prompt: signatures of what an experiment begins with, names of the rest."""
    lines: list[str] = []
    for module in _FIRST:
        there = [public for public in _names().values() if public.module == module]
        if there:
            lines += [f"from {module} import …", *(public.line for public in there), ""]
    rest: dict[str, list[str]] = {}
    for public in _names().values():
        if public.module not in _FIRST:
            rest.setdefault(public.module, []).append(public.name)
    lines += [f"from {module} import {', '.join(names)}" for module, names in rest.items()]
    return cut("\n".join(lines), ESSENTIALS_LIMIT)


_INTRODUCED = (
    *("ExperimentEntry", "Hypothesis", "InterventionClaim", "declare", "PromptPair", "behaviour"),
    *("activation_patching", "attribution_patching", "ablate", "path_patching", "causal_tracing"),
    *("direct_logit_attribution", "logit_lens", "attention_scores", "acdc", "faithfulness"),
)


def signatures() -> str:
    """How the most used names are called, one line each with the module: a few kB for a prompt."""
    known = _names()
    lines = ["Signatures:"]
    for name in _INTRODUCED:
        public = known[name]
        called = signature(public.definition).partition(" -> ")[0]
        lines.append(f"- {public.module}.{called}")
    return "\n".join(lines)


def public_names() -> tuple[Public, ...]:
    """Everything public, module by module."""
    return tuple(_names().values())


def methods_of(public: Public) -> str:
    """The methods of a class, one line each; nothing for a function."""
    if not isinstance(public.definition, ast.ClassDef):
        return ""
    methods = [
        f"  .{each.name if _is_property(each) else signature(each)}: {_first(ast.get_docstring(each) or '')}"
        for each in _public_methods(public.definition)
    ]
    return "\n".join(["It has:", *methods]) if methods else ""


def signature(definition: Definition) -> str:
    """How it is called, as written in the source."""
    if isinstance(definition, ast.ClassDef):
        made = next(
            (each for each in _functions(definition.body) if each.name == "__init__"),
            None,
        )
        if made is not None:
            return f"{definition.name}({_arguments(made, method=True)})"
        return f"{definition.name}({', '.join(_fields(definition))})"
    returns = "" if definition.returns is None else f" -> {ast.unparse(definition.returns)}"
    return f"{definition.name}({_arguments(definition)}){returns}"


def examples() -> dict[str, str]:
    """The executed examples, each under the name of the function that it shows."""
    folder = locate("templates") / "prompts" / "examples"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


def _page(public: Public) -> str:
    parts = [f"from {public.module} import {public.name}", signature(public.definition), public.doc]
    methods = methods_of(public)
    parts += [methods] if methods else []
    example = examples().get(public.name)
    parts += [f"Example, with what it printed:\n\n{example}"] if example else []
    return "\n\n".join(part for part in parts if part)


def _method(public: Public, member: str) -> str:
    methods = _public_methods(public.definition) if isinstance(public.definition, ast.ClassDef) else []
    for each in methods:
        if each.name == member:
            return f"{public.name}.{signature(each)}\n\n{ast.get_docstring(each) or ''}"
    there = ", ".join(each.name for each in methods) or "no methods"
    raise NotFound(f"{public.name} has no {member[:80]!r}; it has {there}.")


@cache
def _names() -> dict[str, Public]:
    found: dict[str, Public] = {}
    for module, name in _exported():
        definition = _definition(module, name)
        if definition is not None:
            found.setdefault(name, Public(name, module, definition))
    return found


def _exported() -> Iterator[tuple[str, str]]:
    yield _ENTRANCE, "InterpretableModel"
    packages = sorted(path.parent.name for path in _ROOT.glob("*/__init__.py"))
    first = [name for name in ("causal",) if name in packages]
    for package in [*first, *(each for each in packages if each not in first)]:
        for name in _all(_ROOT / package / "__init__.py"):
            yield f"{_ENTRANCE}.{package}", name
    for module in _MODULES_WITHOUT_A_LIST:
        path = _ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if path.is_file():
            for each in _tree(path).body:
                if isinstance(each, Definition) and not each.name.startswith("_") and ast.get_docstring(each):
                    yield f"{_ENTRANCE}.{module}", each.name


def _definition(module: str, name: str, depth: int = 4) -> Definition | None:
    """The definition behind a name, through the files that only pass it on. None for a constant."""
    path = _source(module)
    if path is None or depth == 0:
        return None
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(_ENTRANCE):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module, alias.name, depth - 1)
    for node in _tree(path).body:
        if isinstance(node, Definition) and node.name == name:
            return node
    return None


def _source(module: str) -> Path | None:
    path = _ROOT.joinpath(*module.split(".")[1:])
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def _all(path: Path) -> list[str]:
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _functions(body: Sequence[ast.stmt]) -> list[ast.FunctionDef]:
    return [each for each in body if isinstance(each, ast.FunctionDef)]


def _public_methods(definition: ast.ClassDef) -> list[ast.FunctionDef]:
    return [
        each
        for each in _functions(definition.body)
        if not each.name.startswith("_") and ast.get_docstring(each)
    ]


def _is_property(function: ast.FunctionDef) -> bool:
    return any(isinstance(each, ast.Name) and "property" in each.id for each in function.decorator_list)


def _arguments(function: ast.FunctionDef, *, method: bool = False) -> str:
    text = ast.unparse(function.args).replace("lambda :", "lambda:")  # Python 3.10 writes a space
    first = function.args.args[0].arg if function.args.args else ""
    if method or first in ("self", "cls"):
        text = text.removeprefix(first).removeprefix(", ")
    return text


def _fields(definition: ast.ClassDef) -> list[str]:
    return [
        f"{each.target.id}: {ast.unparse(each.annotation)}"
        + (
            f" = {ast.unparse(each.value)}"
            if each.value is not None and len(ast.unparse(each.value)) < 30
            else ""
        )
        for each in definition.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and not each.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(each.annotation)
    ]


def _first(doc: str) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join(doc.partition("\n\n")[0].split())
