"""`init_autointerpret`: a new investigation from a scaffold, whole or not at all.

Lives here: rendering `scaffolds/<name>/` and what every investigation shares (`scaffolds/_common/`). Does not
live here: the repository around it (the `autointerp` command makes that).

A scaffold is a directory of `.j2` files, rendered to their names without `.j2` (those that start with `_` are
only included by others; one of the same name in the scaffold replaces a shared one), and a `scaffold.json`
with its defaults: `{"about": "…", "model": "…", "question": "…", "topics": ["…"], "max_experiments": 100,
"time_per_experiment": 120}`. Topics are beginnings of words: a question that its prompts can answer has one
of them. `"pairs": "drawn"` says that its dataset holds no prompt pairs, and that `confirm_pairs` draws them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxterp._files import locate, sync_directory, user_path
from mlxterp._version import __version__
from mlxterp.autointerpret.contract import (
    EXAMPLE_SETUP,
    EXPERIMENT,
    FINDINGS,
    LOG,
    SCAFFOLD_EXPERIMENT,
    SETUP,
    ProjectConfig,
    digest,
    write_config,
)
from mlxterp.autointerpret.encoding import is_utf8
from mlxterp.errors import ProjectError, ScaffoldError

if TYPE_CHECKING:
    from jinja2 import Environment

    from mlxterp.autointerpret.prompt_file import PromptCheck

COMMON = "_common"
DEFAULTS = "scaffold.json"
OWN_PROMPTS = "generic"
"""The scaffold whose setup.py can hold a person's own pairs."""


def scaffolds() -> tuple[str, ...]:
    """The names `init_autointerpret(scaffold=…)` accepts."""
    return tuple(sorted(path.parent.name for path in locate("scaffolds").glob(f"*/{DEFAULTS}")))


def scaffold_defaults(name: str) -> dict[str, Any]:
    """What a scaffold asks of which model by default; ScaffoldError lists the known names."""
    if name not in scaffolds():
        raise ScaffoldError(f"no scaffold {name!r}. There are: {', '.join(scaffolds())}. Choose one of them.")
    return dict(json.loads((locate("scaffolds") / name / DEFAULTS).read_text(encoding="utf-8")))


def init_autointerpret(
    output_dir: str | Path,
    model_name: str | None = None,
    research_question: str | None = None,
    max_experiments: int | None = None,
    scaffold: str = "generic",
    time_per_experiment: float | None = None,
    *,
    prompts: PromptCheck | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> Path:
    """Makes the directory of a new investigation and returns its path.

    Args:
        output_dir: a directory that does not exist yet, or is empty.
        model_name: a bundled model, a model id or a path, seen from the current directory. What is left out
            has the scaffold's default.
        research_question: what program.md asks.
        max_experiments: the budget.
        scaffold: one of `scaffolds()`.
        time_per_experiment: the time box of an experiment, in seconds.
        prompts: your own pairs, as `mlxterp.workflows.check_prompts(model, "pairs.csv")` checked them with
            this model: setup.py is written from them, and holds them. Left out, setup.py holds the
            scaffold's example. Only for the scaffold "generic".

    Raises:
        ScaffoldError: the directory holds something, the scaffold is unknown, or a value cannot be used.
            Nothing is left behind.
    """
    target = Path(output_dir)
    if prompts is not None:
        _require_check(prompts, scaffold)
        model_name = model_name or prompts.model
    config = _config(
        scaffold,
        model=model_name,
        question=research_question,
        max_experiments=max_experiments,
        time_per_experiment=time_per_experiment,
        created=now().isoformat(timespec="seconds"),
    )
    refuse_existing(target)
    resolved = target.resolve()
    new_parents = [parent for parent in resolved.parents if not parent.exists()]
    beside = resolved.parent / f".{resolved.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        resolved.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        _fill(beside, scaffold, config, prompts)
        _move_into_place(beside, resolved)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in new_parents:
            parent.rmdir()
        raise
    sync_directory(resolved.parent)
    return target


def _config(scaffold: str, **given: Any) -> ProjectConfig:
    defaults = scaffold_defaults(scaffold)
    chosen = {name: defaults.get(name) if value is None else value for name, value in given.items()}
    values: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    for name, argument in (("model", "model_name"), ("question", "research_question")):
        text = values.get(name)
        if not isinstance(text, str) or not text.strip():
            raise ScaffoldError(f"{argument} is {text!r}. Give a text.")
        if not is_utf8(text):
            raise ScaffoldError(f"{argument} is {text!r}, which no UTF-8 file can hold. Give ordinary text.")
    values["model"] = _where_it_is(values["model"])
    try:
        return ProjectConfig(scaffold=scaffold, **values)
    except ProjectError as problem:
        raise ScaffoldError(str(problem)) from None


def _where_it_is(model: str) -> str:
    """A model's name; of a file or directory the whole path, because setup.py runs elsewhere."""
    from mlxterp.models.fetch import NAMES

    path = user_path(model)
    try:
        there = model not in NAMES and path.exists()
    except OSError:  # a name that no path can be
        return model
    return str(path.resolve()) if there else model


def refuse_existing(target: Path) -> None:
    """ScaffoldError for a file, or a directory that holds something."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise ScaffoldError(
            f"cannot make {str(target)!r}: it exists and is no directory. Choose another name."
        )
    there = sorted(path.name for path in target.iterdir())
    if there:
        shown = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
        raise ScaffoldError(
            f"cannot make an investigation in {str(target)!r}: it holds {shown}. Nothing is overwritten; "
            f"choose a new directory, or continue the one that is there with `autointerp start {target}`."
        )


def _require_check(prompts: object, scaffold: str) -> None:
    from mlxterp.autointerpret.prompt_file import PromptCheck  # it knows numpy, and `--help` does without

    if not isinstance(prompts, PromptCheck):
        raise ScaffoldError(
            f"prompts={prompts!r} is not checked with the model. Pass "
            'mlxterp.workflows.check_prompts(model, "pairs.csv").'
        )
    if scaffold != OWN_PROMPTS:
        raise ScaffoldError(
            f"prompts of your own are given, and the scaffold {scaffold!r} brings others. Leave the scaffold "
            f"out, or name {OWN_PROMPTS!r}."
        )


def _fill(directory: Path, scaffold: str, config: ProjectConfig, prompts: PromptCheck | None = None) -> None:
    sources = _sources(scaffold)
    jinja, variables = _environment(sources), {**_variables(scaffold, config), "prompts": prompts}
    names = {path.relative_to(root).as_posix() for root in sources for path in root.rglob("[!_]*.j2")}
    for name in sorted(names):
        path = directory / name.removesuffix(".j2")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jinja.get_template(name).render(variables).encode())
    (directory / LOG).touch()
    (directory / FINDINGS).mkdir()
    (directory / FINDINGS / ".gitkeep").touch()
    brought = {SCAFFOLD_EXPERIMENT: digest((directory / EXPERIMENT).read_bytes())}
    if prompts is None:
        brought[EXAMPLE_SETUP] = digest((directory / SETUP).read_bytes())
    write_config(directory, replace(config, extra={**config.extra, **brought}))


def names_topic(scaffold: str, question: str, model: str = "") -> bool:
    """Whether a question names one of the topics that a scaffold's example can answer.

    Args:
        model: the example of "generic" for a toy is that of the scaffold "induction".
    """
    of = "induction" if scaffold == OWN_PROMPTS and model.startswith("toy-") else scaffold
    words = re.findall(r"\w+", question.casefold())
    return any(word.startswith(topic) for word in words for topic in scaffold_defaults(of)["topics"])


def example_caution(project: Path, config: ProjectConfig) -> str:
    """What to say where setup.py holds its scaffold's example and the question is about something else; ""
    where it holds prompts of the question."""
    known, scaffold = config.extra.get(EXAMPLE_SETUP), config.scaffold
    setup = project / SETUP
    if known is None or scaffold not in scaffolds() or not setup.is_file():
        return ""
    if digest(setup.read_bytes()) != known or names_topic(scaffold, config.question, config.model):
        return ""
    return (
        f"setup.py holds the example of the scaffold {scaffold!r}, not prompts of this question: whatever is "
        "found on it does not answer the question"
    )


def program() -> str:
    """The command `autointerp` by the path of this installation, so that it is found without an activated
    environment; its name alone where it lies elsewhere than beside Python."""
    beside = Path(sys.executable).parent / "autointerp"
    return str(beside) if os.access(beside, os.X_OK) else "autointerp"


def is_as_rendered(path: Path, config: ProjectConfig) -> bool:
    """Whether a file is what `init_autointerpret` made of this version's scaffold."""
    template = _environment(_sources(config.scaffold)).get_template(f"{path.name}.j2")
    rendered = template.render(_variables(config.scaffold, config)).encode()
    return path.is_file() and path.read_bytes() == rendered


def _sources(scaffold: str) -> list[Path]:
    return [locate("scaffolds") / name for name in (COMMON, scaffold)]


def _variables(scaffold: str, config: ProjectConfig) -> dict[str, Any]:
    return {
        "prompts": None,
        "model_name": config.model,
        "research_question": config.question,
        "max_experiments": config.max_experiments,
        "time_per_experiment": config.time_per_experiment,
        "scaffold": scaffold,
        "explore": scaffold_defaults(scaffold).get("explore", "dataset"),
        "program": program(),
        "python": sys.executable,
        "version": __version__,
    }


def _environment(sources: list[Path]) -> Environment:
    import jinja2

    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(path) for path in reversed(sources)]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # the files are Python and Markdown; the filters below write values into them
    )
    filters: Mapping[str, Callable[[Any], str]] = {
        "py": python_literal,
        "quoted": quoted,
        "sh": shlex.quote,
        "json": json.dumps,
    }
    jinja.filters.update(filters)
    return jinja


def python_literal(value: Any) -> str:
    """The value as it is written in Python source: the only way a text may enter a rendered `.py` file."""
    return repr(value)


def quoted(text: Any) -> str:
    """A Markdown block quote: each line of a text stays inside it."""
    return "\n".join(f"> {line}".rstrip() for line in str(text).splitlines()) or ">"


def _move_into_place(source: Path, target: Path) -> None:
    """One rename; into an empty directory one for each file, so that a shell inside it stays there."""
    if not target.exists():
        os.rename(source, target)
        return
    moved: list[Path] = []
    try:
        for path in sorted(source.iterdir()):
            os.rename(path, target / path.name)
            moved.append(target / path.name)
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    source.rmdir()
