"""What happens before a supervised run: its directory, the files of its repository, the model it needs."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mlxterp._files import user_path
from mlxterp.autointerpret.contract import CONFIG, FILES, FINDINGS, PRIVATE, STATE, STEER, load_project
from mlxterp.autointerpret.scaffold import (
    OWN_PROMPTS,
    init_autointerpret,
    refuse_existing,
    scaffold_defaults,
)
from mlxterp.errors import ModelNotFound, PromptFileError, ScaffoldError
from mlxterp.models.fetch import MODEL_FILES, NAMES, Step, fetch, is_cached
from mlxterp_agent.events import Emit, Progress
from mlxterp_agent.exit_codes import SandboxUnavailable
from mlxterp_agent.judge.held_out import HeldOut, divide
from mlxterp_agent.platform import Signals
from mlxterp_agent.sandbox.jail import Isolation, caches, protection
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.text import duration, one_line

if TYPE_CHECKING:
    from mlxterp.autointerpret.prompt_file import PromptCheck

DEFAULT_DIRECTORY = "investigation"
DEFAULT_SCAFFOLD = "factual_recall"

_SAY_EVERY = 20.0

Say: TypeAlias = Callable[[str], None]
"""Shows one line of what is done now."""

_MORE = (".gitignore", f"{FINDINGS}/.gitkeep", ".mcp.json")


def target_of(directory: Path | None) -> Path:
    """The directory of `start`: the one that is named, else the current one, else ./investigation."""
    if directory is not None:
        return directory
    return Path() if Path(CONFIG).is_file() else Path(DEFAULT_DIRECTORY)


def default_scaffold(model: str | None, prompts: Path | None = None) -> str:
    """What a new investigation is made from where no scaffold is named."""
    if prompts is not None:
        return OWN_PROMPTS
    return "induction" if model is not None and model.startswith("toy-") else DEFAULT_SCAFFOLD


@dataclass(frozen=True)
class NewProject:
    """What a new investigation is made from; all of it is looked at before a directory is made.

    Attributes:
        prompts: a file of the person's own pairs.
        budget: `max_experiments` and `time_per_experiment`, where they were given.
    """

    scaffold: str
    model: str | None
    question: str | None
    prompts: Path | None = None
    budget: Mapping[str, Any] = field(default_factory=dict)


class Evidence(NamedTuple):
    """What can be decided with a setup.py, in a sentence; `usable` is False where it cannot be imported."""

    text: str
    usable: bool = True


class Made(NamedTuple):
    """A new investigation; with a person's own prompts their table, and what can be decided with them."""

    path: Path
    prompts: PromptCheck | None = None
    evidence: Evidence | None = None


def make(directory: Path, new: NewProject, say: Say, *, fetches: bool = False) -> Made:
    """A new investigation, in a git repository of its own. Nothing is left behind if something is wrong.

    Args:
        say: gets a line for each thing that takes long.
        fetches: a model of the hub is fetched before anything is made, so that a name that is not there
            leaves nothing behind. One that prompts are checked with is fetched in any case.

    Raises:
        ModelNotFound: there is no such model.
        PromptFileError: the prompts cannot be used.
    """
    model = new.model or str(scaffold_defaults(new.scaffold)["model"])
    require_known_model(model)
    check, evidence = None, None
    if new.prompts is not None:
        if new.scaffold != OWN_PROMPTS:
            raise ScaffoldError(
                f"--prompts brings prompts of your own, and the scaffold {new.scaffold!r} brings others. "
                f"Leave --scaffold out, or name {OWN_PROMPTS!r}."
            )
        refuse_existing(directory)
        check, evidence = _check(model, new.prompts, say)
    elif fetches and is_missing_from_hub_cache(model):
        refuse_existing(directory)
        _load_from_hub(model, say)
    made = init_autointerpret(
        directory,
        model_name=model,
        research_question=new.question,
        scaffold=new.scaffold,
        prompts=check,
        **new.budget,
    )
    Committer(made).ensure_repo(initial_files(made))
    return Made(made, check, evidence)


def require_known_model(model: str) -> None:
    """Refuses what is neither a bundled model, nor a file or directory, nor a name of the hub.

    Raises:
        ModelNotFound: with what there is.
    """
    if model in NAMES or user_path(model).exists():
        return
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None and not model.startswith((".", "~")):
        return
    near = difflib.get_close_matches(model, NAMES, 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise ModelNotFound(
        f"--model {model!r} is no bundled model ({', '.join(NAMES)}), no file or directory here, and no name "
        f"of the hub ('owner/name').{meant} Name one of these."
    )


_CHECK = """
import json, sys
from mlxterp import InterpretableModel
from mlxterp.causal.prompts.pair import list_pairs
from mlxterp.errors import MlxterpError
from mlxterp.workflows.prompt_check import check_prompts, pairs_of
def tell(**value):
    print(json.dumps(value), flush=True)
try:
    model = InterpretableModel(sys.argv[1])
    found = check_prompts(model, sys.argv[2], progress=lambda text: tell(progress=text))
except MlxterpError as problem:
    tell(problem=str(problem), kind=type(problem).__name__)
else:
    tell(check=found.to_dict(), pairs=list_pairs(model, pairs_of(found)))
"""
"""Checks prompts with a model, a JSON object a line: the supervisor never loads mlx."""


def _check(model: str, prompts: Path, say: Say) -> tuple[PromptCheck, Evidence]:
    """What the model does on each pair of a file, and what can be decided with them."""
    from mlxterp.autointerpret.prompt_file import PromptCheck, read_prompt_file

    read = read_prompt_file(prompts)  # its mistakes are said before a model is loaded
    _bring(model, say)
    say(f"checking {len(read.items)} pairs of {read.name} with {model} …")
    command = [sys.executable, "-B", "-c", _CHECK, model, str(prompts)]
    last: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            last = json.loads(line)
            if "progress" in last:
                say(f"  {last['progress']}")
        process.wait()
        errors.seek(0)
        said = errors.read().strip()
    if "problem" in last:
        raise (ModelNotFound if last["kind"] == "ModelNotFound" else PromptFileError)(last["problem"])
    if "check" not in last:
        why = one_line(said.splitlines()[-1], 300) if said else f"exit code {process.returncode}"
        raise PromptFileError(
            f"{read.name} could not be checked with {model}: {why}. Try the model by itself."
        )
    facts = {"pairs": last["pairs"], "confirm_pairs": False}
    return PromptCheck.from_dict(last["check"]), Evidence(divide(facts, None, salt="").describe())


def _load_from_hub(model: str, say: Say) -> None:
    """Loads a model of the hub once in a process of its own; ModelNotFound with what that said."""
    say(f"fetching {model} from the hub (once) …")
    null = subprocess.DEVNULL
    done = subprocess.run(
        _loading(model, "--json"), stdin=null, stdout=null, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"loading it ended with {done.returncode}"]
        raise ModelNotFound(one_line(said[-1].removeprefix("ModelNotFound: "), 400))


def _bring(model: str, say: Say) -> None:
    """Fetches a model that is not on this machine yet."""
    if is_missing_from_hub_cache(model):
        say(f"fetching {model} from the hub (once) …")
    elif model in MODEL_FILES and not is_cached(model):
        say(f"fetching {model} (once, {MODEL_FILES[model].download_size / 1e6:.0f} MB) …")
        shown = 0.0

        def show(step: Step) -> None:
            nonlocal shown
            if step.done / step.total >= shown + 0.1:
                shown = step.done / step.total
                say(f"  {shown:.0%}")

        fetch(model, show)


def initial_files(project: Path) -> list[str]:
    """What the first commit of an investigation's own repository holds: the contract's files that are
    there."""
    names = [name for name in FILES if name not in (STATE, FINDINGS, PRIVATE, STEER)]
    settings = sorted(
        path.relative_to(project).as_posix() for path in (project / ".claude").rglob("*") if path.is_file()
    )
    return [name for name in (*names, *_MORE, *settings) if (project / name).is_file()]


ALLOW_UNSANDBOXED_ENV = "AUTOINTERP_ALLOW_UNSANDBOXED"
"""Set to 1, it says what --allow-unsandboxed says."""


def choose_isolation(*, allow_unsandboxed: bool) -> Isolation:
    """The jail that experiments run in: the one that this machine offers, or none if that is allowed.

    Raises:
        SandboxUnavailable: this machine offers none.
    """
    if allow_unsandboxed or os.environ.get(ALLOW_UNSANDBOXED_ENV) == "1":
        return "none"
    offered = protection()
    if offered.kind == "none":
        raise no_jail(offered.reason)
    return offered.kind


def no_jail(reason: str) -> SandboxUnavailable:
    """The error for a jail that is not there or does not hold."""
    return SandboxUnavailable(
        f"experiments are to run in a jail, and there is none: {one_line(reason, 300)}; use another machine "
        "or a container, or accept that they have all your rights with --allow-unsandboxed"
    )


_PAIRS = """
import json, setup
from mlxterp.causal.prompts.pair import list_pairs
found = {"pairs": list_pairs(setup.model, setup.dataset)}
found["confirm_pairs"] = callable(getattr(setup, "confirm_pairs", None))
print(json.dumps(found))
"""
"""What a judge must know of a setup.py, as the last line of its output: the supervisor never loads mlx."""


def evidence_of(project: Path, say: Say) -> Evidence:
    """How many independent clusters a new investigation's setup.py makes, and what can be decided with them.

    Imports it in a child process, which loads the model; where the model is not on this machine yet, it says
    that `start` will tell.
    """
    config = load_project(project).config
    model = config.model
    if scaffold_defaults(config.scaffold).get("pairs") == "drawn":
        return Evidence(HeldOut(source="confirm_pairs", members={}).describe())
    if is_missing_from_hub_cache(model) or (model in MODEL_FILES and not is_cached(model)):
        return Evidence(
            f"{model} is not on this machine yet; `start` fetches it, and says what can be decided"
        )
    say(f"importing setup.py, which loads {model}, to count its pairs …")
    command = [sys.executable, "-B", "-c", _PAIRS]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Evidence(f"setup.py cannot be imported as it is: {one_line(said[-1], 300)}", usable=False)
    return Evidence(divide(json.loads(done.stdout.splitlines()[-1]), None, salt="").describe())


class _Interrupted(BaseException):
    """Ends a download; it does not leave this module."""


def fetch_model(model: str, setup: bytes, emit: Emit, signals: Signals) -> None:
    """Downloads `model` into the user's cache, showing the progress, if setup.py names it and it is not
    there: in the jail there is no network.

    Raises:
        ModelNotFound: one of the models that are fetched once could not be fetched. For one of the hub, the
            import of setup.py says so.
    """
    if model.encode() not in setup:
        return
    if is_missing_from_hub_cache(model):
        _fetch_from_hub(model, emit, signals)
    if model not in MODEL_FILES or is_cached(model):
        return
    emit(Progress(f"fetching {model} (once, {MODEL_FILES[model].download_size / 1e6:.0f} MB) …"))
    shown = -1.0

    def show(step: Step) -> None:
        nonlocal shown
        if signals.received:
            raise _Interrupted
        if step.done / step.total >= shown + 0.01:
            shown = step.done / step.total
            emit(Progress(f"fetching {model}", step.done, step.total))

    try:
        fetch(model, show)
    except _Interrupted:
        return
    emit(Progress(f"fetched {model}"))


def is_missing_from_hub_cache(model: str) -> bool:
    """Whether this is the name of a model on Hugging Face's hub, and nothing of it is in the hub's cache."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) is None or user_path(model).exists():
        return False
    return not any((each / f"models--{model.replace('/', '--')}").is_dir() for each in caches())


def _fetch_from_hub(model: str, emit: Emit, signals: Signals) -> None:
    """Loads the model once in a process that has a network and runs nothing of the investigation."""
    emit(Progress(f"fetching {model} from the hub (once) …"))
    null, began = subprocess.DEVNULL, time.monotonic()
    process, said = subprocess.Popen(_loading(model, "--json"), stdin=null, stdout=null, stderr=null), began
    while process.poll() is None:
        if signals.received:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        if time.monotonic() >= said + _SAY_EVERY:
            said = time.monotonic()
            emit(Progress(f"fetching {model} from the hub ({duration(said - began)} so far)"))
    if not process.returncode:
        emit(Progress(f"fetched {model}"))


def _loading(model: str, *options: str) -> list[str]:
    # `--` because a model's name may begin with a dash.
    return [sys.executable, "-m", "mlxterp.core.capabilities", *options, "--", model]


def check_model(name: str, *, as_json: bool) -> int:
    """Prints which hook points and parts a model has, and gives the exit code.

    Loads the model in a child process, which may download it: the supervisor's side never loads mlx.
    """
    options = ["--json"] if as_json else []
    return subprocess.run(_loading(name, *options), check=False).returncode
