"""The command `autointerp`: reads the command line, calls one function, prints what came out, ends with one
number.

Everything heavy is imported by the command that needs it, so that `--help` answers at once. What a run does
is in `supervisor.py`; this is not `mlxterp.auto_interp` (an LLM labels SAE features) nor
`mlxterp.autointerpret` (the files and rules of an investigation).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlxterp_agent import exits
from mlxterp_agent.text import one_line, plain

if TYPE_CHECKING:
    from mlxterp_agent.drivers import Driver
    from mlxterp_agent.live import Event
    from mlxterp_agent.options import Options

app = typer.Typer(
    name="autointerp",
    help="Investigates a language model: a researcher writes experiments; a supervisor runs them, "
    "judges them and keeps what counts.",
    epilog=exits.epilog(),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEFAULT_DIRECTORY = "investigation"
DEFAULT_SCAFFOLD = "factual_recall"

Here = Annotated[Path, typer.Argument(metavar="[DIR]", help="The directory of the investigation.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
MaxExperiments = Annotated[int | None, typer.Option(help="Experiments of the whole investigation.")]
Hours = Annotated[float | None, typer.Option(help="Hours under supervision, over all starts.")]
Until = Annotated[str | None, typer.Option(metavar="HH:MM", help="The time of day at which to stop.")]
MaxUsd = Annotated[float | None, typer.Option(help="Dollars that the researcher may cost.")]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens that the researcher may use.")]
TimeBox = Annotated[float | None, typer.Option(metavar="SECONDS", help="Time box of one experiment.")]
Reseal = Annotated[
    bool, typer.Option("--reseal", help="Take the setup.py that is there now as the sealed one.")
]
Scaffold = Annotated[str | None, typer.Option(help="What a new investigation is made from.")]
ModelName = Annotated[str | None, typer.Option(help="Model of a new investigation.")]
Question = Annotated[str | None, typer.Option(help="Question of a new investigation.")]
Agent = Literal["auto", "scripted", "claude", "api", "none"]


def _version(value: bool) -> None:
    if value:
        from mlxterp._version import __version__

        print(f"autointerp {__version__}")
        raise typer.Exit


@app.callback()
def autointerp(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that does not exist yet.")],
    scaffold: Scaffold = None,
    model: ModelName = None,
    question: Question = None,
    max_experiments: MaxExperiments = None,
    time_per_experiment: TimeBox = None,
) -> None:
    """Makes the files of a new investigation, in a git repository of their own."""
    made = _make(
        directory,
        scaffold=scaffold or "generic",
        model=model,
        question=question,
        max_experiments=max_experiments,
        time_per_experiment=time_per_experiment,
    )
    _say(f"made {made}\nRead program.md and setup.py there, then: autointerp start {made}")


@app.command()
def start(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help=f"Made if it does not exist. Default: ./{DEFAULT_DIRECTORY}"),
    ] = None,
    agent: Annotated[Agent, typer.Option(help="Who investigates.")] = "auto",
    max_experiments: MaxExperiments = None,
    hours: Hours = None,
    until: Until = None,
    max_usd: MaxUsd = None,
    max_tokens: MaxTokens = None,
    time_per_experiment: TimeBox = None,
    scaffold: Scaffold = None,
    model: ModelName = None,
    question: Question = None,
    reseal: Reseal = False,
    as_json: AsJson = False,
) -> None:
    """Runs an investigation, or goes on with one, until a budget is used up or the question is answered."""
    from mlxterp_agent.options import merge

    driver, who = _researcher(agent)
    asked: dict[str, Any] = {
        "max_experiments": max_experiments,
        "time_per_experiment": time_per_experiment,
    }
    target = _target(directory)
    new = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if new:
        target = _make(target, scaffold=scaffold or DEFAULT_SCAFFOLD, model=model, question=question, **asked)
    elif scaffold or model or question:
        raise _usage(
            f"--scaffold, --model and --question make a new investigation, and {target} is there already"
        )
    options = merge(
        _config(target),
        now=datetime.now().astimezone(),
        hours=hours,
        until=until,
        max_usd=max_usd,
        max_tokens=max_tokens,
        streak=None if driver.model is None else _streak(),
        reseal=reseal,
        **asked,
    )
    if not as_json:
        _say(f"{'made' if new else 'going on with'} {target}")
    _supervise(target, driver, options, who, as_json=as_json)


@app.command()
def watch(
    directory: Here = Path("."),
    max_experiments: MaxExperiments = None,
    hours: Hours = None,
    until: Until = None,
    time_per_experiment: TimeBox = None,
    reseal: Reseal = False,
    as_json: AsJson = False,
) -> None:
    """Runs every new experiment.py while somebody else edits it: you, or an agent opened in the directory."""
    from mlxterp_agent.drivers.external import External
    from mlxterp_agent.options import merge

    options = merge(
        _config(directory),
        now=datetime.now().astimezone(),
        max_experiments=max_experiments,
        hours=hours,
        until=until,
        time_per_experiment=time_per_experiment,
        reseal=reseal,
    )
    _supervise(directory, External(), options, "whoever edits experiment.py", as_json=as_json)


@app.command()
def run(
    directory: Here = Path("."),
    time_per_experiment: TimeBox = None,
    reseal: Reseal = False,
    as_json: AsJson = False,
) -> None:
    """Runs experiment.py once, as it is now, and prints the verdict. Beside a supervisor: waits for its
    verdict."""
    from mlxterp_agent.once import run_once
    from mlxterp_agent.options import merge

    options = merge(
        _config(directory),
        now=datetime.now().astimezone(),
        time_per_experiment=time_per_experiment,
        reseal=reseal,
    )
    answer = run_once(directory, options)
    if as_json:
        for entry in answer.entries:
            _json({**entry.to_dict()})
        if not answer.entries:
            _json({"not_run": plain(answer.text)})
    else:
        _say(answer.text)
    raise typer.Exit(answer.exit_code)


@app.command()
def status(directory: Here = Path("."), as_json: AsJson = False) -> None:
    """What the investigation is about, how it stands, and what is left: one screen."""
    from mlxterp_agent.closing import status_fields, status_text
    from mlxterp_agent.overview import look

    seen = look(directory)
    if as_json:
        _json(status_fields(seen))
    else:
        _say(status_text(seen))


@app.command()
def log(
    directory: Here = Path("."),
    last: Annotated[
        int, typer.Option("--last", "-n", min=1, help="How many lines, from the end.")
    ] = 1_000_000,
    kept: Annotated[bool, typer.Option("--kept", help="Only what was kept.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every experiment with its verdict, oldest first."""
    from mlxterp_agent.closing import log_lines
    from mlxterp_agent.ledger import is_kept
    from mlxterp_agent.overview import look

    entries = [entry for entry in look(directory).entries if is_kept(entry) or not kept][-last:]
    if as_json:
        for entry in entries:
            _json(entry.to_dict())
    else:
        _say("\n".join(log_lines(entries)) or "no experiment yet")


@app.command()
def report(directory: Here = Path("."), as_json: AsJson = False) -> None:
    """Writes report.md and report.html from the log."""
    from mlxterp_agent.reporting import write_report

    markdown, html = write_report(directory)
    if as_json:
        _json({"markdown": str(markdown), "html": str(html)})
    else:
        _say(f"{markdown}\n{html}")


@app.command()
def verify(directory: Here = Path("."), as_json: AsJson = False) -> None:
    """Checks seals, digests, journal and commits against the log. Ends with 4 if something does not agree."""
    from mlxterp.autointerpret.contract import load_project, state_dir
    from mlxterp_agent.state import State
    from mlxterp_agent.verify import verify as every_check

    project = load_project(directory).path
    checks = every_check(project, State(state_dir(project)))
    for check in checks:
        if as_json:
            _json({"check": check.name, "result": check.result, "words": plain(check.words)})
        else:
            _say(f"{check.result:9}  {check.name:11}  {one_line(check.words, 300)}")
    if any(check.result == "problem" for check in checks):
        raise typer.Exit(exits.CONTRACT)


def main() -> None:
    """The console script: every way to end, with its number and without a traceback."""
    from mlxterp_agent.endings import end_of

    sys.exit(end_of(app))


def _supervise(directory: Path, driver: Driver, options: Options, who: str, *, as_json: bool) -> None:
    from mlxterp_agent.closing import closing_text
    from mlxterp_agent.overview import look
    from mlxterp_agent.reporting import refresh_report
    from mlxterp_agent.supervisor import run as supervise

    screen = _screen(as_json=as_json)
    try:
        ended = supervise(directory, driver, options, screen, researcher=who)
    finally:
        screen.close()
    quick = ended.exit_code == exits.INTERRUPTED
    failed = refresh_report(directory, wait=not quick)
    if as_json:
        _json(
            {"event": "ended", "reason": ended.reason, "exit_code": ended.exit_code, "report": failed is None}
        )
    else:
        _close(
            lambda width: closing_text(
                look(directory), ended, report_failed=failed, report_soon=quick, width=width
            )
        )
    raise typer.Exit(ended.exit_code)


def _close(words: Callable[[int], str]) -> None:
    """The last word: in a frame on a terminal."""
    if not sys.stdout.isatty():
        _say(f"\n{words(120)}")
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console()
    console.print(Panel(Text(plain(words(console.width - 4)))))


class _Screen:
    """Any of the three printers, guarded: a terminal that is gone ends no investigation."""

    def __init__(self, printer: Callable[[Event], None], close: Callable[[], None]) -> None:
        self._printer = printer
        self._close = close

    def __call__(self, event: Event) -> None:
        try:
            self._printer(event)
        except OSError:
            self._printer = _silent

    def close(self) -> None:
        try:
            self._close()
        except OSError:
            self._printer = _silent


def _silent(_: Event) -> None:
    """Nobody can read it any more."""


def _screen(*, as_json: bool) -> _Screen:
    from mlxterp_agent.live import JsonLines, PlainLines

    if as_json or not sys.stdout.isatty():
        lines = JsonLines() if as_json else PlainLines()
        return _Screen(lines, lines.close)
    from mlxterp_agent.screen import LiveScreen

    screen = LiveScreen()
    return _Screen(screen, screen.close)


def _researcher(agent: Agent) -> tuple[Driver, str]:
    """Who investigates, and why it is the one."""
    from mlxterp_agent.drivers.external import External
    from mlxterp_agent.errors import ResearcherUnavailable

    if agent in ("claude", "api"):
        raise ResearcherUnavailable(
            f"--agent {agent} is not yet available in this version. Use --agent scripted, which needs no "
            "key, or `autointerp watch` beside the agent of your choice."
        )
    if agent == "none":
        return External(), "nobody in particular: experiment.py is run whenever it changes"
    from mlxterp_agent.drivers.scripted import ScriptedResearcher

    why = (
        "asked for" if agent == "scripted" else "the only one in this version; needs no key and no model hub"
    )
    return ScriptedResearcher(), f"scripted ({why})"


def _streak() -> int:
    from mlxterp_agent.options import AGENT_STREAK

    return AGENT_STREAK


def _target(directory: Path | None) -> Path:
    """The directory of `start`: the one that is named, the one we are in, or ./investigation."""
    from mlxterp.autointerpret.contract import CONFIG

    if directory is not None:
        return directory
    return Path() if Path(CONFIG).is_file() else Path(DEFAULT_DIRECTORY)


def _make(directory: Path, *, scaffold: str, model: str | None, question: str | None, **budget: Any) -> Path:
    from mlxterp.autointerpret.scaffold import init_autointerpret
    from mlxterp_agent.committer import Committer
    from mlxterp_agent.project_files import initial_files

    made = init_autointerpret(
        directory, model_name=model, research_question=question, scaffold=scaffold, **budget
    )
    Committer(made).ensure_repo(initial_files(made))
    return made


def _config(directory: Path) -> Any:
    from mlxterp.autointerpret.contract import load_project

    return load_project(directory).config


def _usage(words: str) -> Exception:
    from mlxterp_agent.options import UsageError

    return UsageError(words)


def _say(text: str) -> None:
    print(plain(text), flush=True)


def _json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=True, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
