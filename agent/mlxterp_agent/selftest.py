"""`autointerp selftest`: how often this installation keeps something false, in worlds with known truth.

A process of its own measures and judges by lookup (`mlxterp.selftest`); then ten claims go through everything
that a night's claims go through: `autointerp run`, the jail, the judge's processes, the log. The result is
kept in the user's state directory under the configuration that it was made with, so that a report can quote
it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlxterp._files import write_atomically
from mlxterp._version import __version__
from mlxterp.autointerpret.contract import STATE_DIR_ENV, digest
from mlxterp.autointerpret.keep_rule import RULE
from mlxterp_agent.exit_codes import AgentError
from mlxterp_agent.text import duration, one_line

Progress = Callable[[str, int, int], None]

SECTIONS = {"null": "kept", "planted": "supported", "true_null": "ruled_out", "adversarial": "kept"}
"""Each section of the result, and what is counted in it."""


class SelftestFailed(AgentError):
    """The selftest's process ended without a result."""


@dataclass(frozen=True)
class RealClaim:
    """A claim that goes through the real processes.

    Attributes:
        world: a key of `SETUPS`.
        site, op, direction: what is declared.
        verdict, kept: how it must end.
        reason: what its first reason must hold.
    """

    name: str
    world: str
    site: str
    verdict: str
    kept: bool
    op: str = 'InterventionClaim("patch", source="clean")'
    direction: str = "increase"
    reason: str = ""


_SETUP = '''"""A world with known truth."""

from mlxterp.autointerpret import MetricRegistry
from mlxterp.metrics import logit_diff
from mlxterp.worlds import {world}

world = {world}({arguments})
model, dataset, candidates = world.model, {dataset}, world.candidates
metrics = MetricRegistry()
metrics.register("logit_diff", logit_diff)
QUESTION = "Which heads carry the answer?"
'''
_MIRRORED = """[
    mirrored
    for pair in world.pairs
    for mirrored in (
        pair,
        type(pair)(pair.corrupted, pair.clean, answer=pair.foil, foil=pair.answer, cluster=pair.cluster),
    )
]"""
SETUPS = {
    "toy": _SETUP.format(world="toy_induction", arguments="48", dataset="list(world.pairs)"),
    "few": _SETUP.format(world="toy_induction", arguments="8", dataset="list(world.pairs)"),
    "mirrored": _SETUP.format(world="toy_induction", arguments="48", dataset=_MIRRORED),
    "random": _SETUP.format(
        world="llama_with_preferred_answers", arguments="0, 48", dataset="list(world.pairs)"
    ),
}
_NOISING = 'InterventionClaim("patch", source="corrupted")'
REAL_CLAIMS = (
    RealClaim("the head that copies", "toy", "L1.H1", "supported", kept=True),
    RealClaim("the previous-token head", "toy", "L0.H2", "supported", kept=True),
    RealClaim("an inert head", "toy", "L1.H0", "ruled_out", kept=True),
    RealClaim("an inert head, downwards", "toy", "L1.H3", "ruled_out", kept=True, direction="decrease"),
    RealClaim("no effect where there is none", "toy", "L1.H2", "supported", kept=True, direction="none"),
    RealClaim(
        "the same claim in other words", "toy", "L1.z.h1", "supported", kept=False, reason="was judged in run"
    ),
    RealClaim("denoising on mirrored pairs", "mirrored", "L1.H1", "supported", kept=True),
    RealClaim(
        "noising on the same pairs",
        "mirrored",
        "L1.H1",
        "supported",
        kept=False,
        op=_NOISING,
        direction="decrease",
        reason="was judged in run",
    ),
    RealClaim("eight clusters", "few", "L1.H1", "inconclusive", kept=False, reason="independent clusters"),
    RealClaim(
        "first tokens of a random network",
        "random",
        "L0.H3",
        "invalid:instrument",
        kept=False,
        reason="no behaviour to explain",
    ),
)

_EXPERIMENT = """from mlxterp.autointerpret import Hypothesis, InterventionClaim

HYPOTHESIS = Hypothesis(
    id="H{number}",
    claim="{name}",
    site=["{site}"],
    intervention={op},
    metric="logit_diff",
    direction="{direction}",
    sesoi=0.1,
    forecast={{"supported": 0.5, "refuted": 0.1, "ruled_out": 0.4}},
    rivals=["Any head does."],
    falsified_if="the effect on held-out pairs is below 0.1",
)
"""


def run_selftest(seed: int, progress: Progress, *, quick: bool = False) -> dict[str, Any]:
    """Runs all of it and keeps the result; `quick` leaves out SmolLM2 and the real processes.

    Raises:
        SelftestFailed: a process ended without a result.
    """
    began = time.monotonic()
    result = _measured(seed, progress, quick=quick)
    real = [] if quick else list(judge_real_claims(REAL_CLAIMS, progress))
    result["real_processes"] = real
    result["failures"] += [
        f"{each['name']}, through the real processes: ended as {each['found']!r} and not as "
        f"{each['expected']!r}"
        for each in real
        if not each["holds"]
    ]
    result |= {
        "seconds": round(time.monotonic() - began, 1),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "key": configuration_key(),
    }
    _keep(result)
    return result


def configuration_key() -> str:
    """One name for rule, defaults and library version: what a stored result is looked up by."""
    from mlxterp.statistics.configuration import rule_defaults

    what = {"rule": RULE, "version": __version__, "defaults": rule_defaults()}
    return digest(json.dumps(what, sort_keys=True).encode())[:16]


def latest_selftest() -> dict[str, Any] | None:
    """The newest full selftest that was made under this configuration; None if none was.

    The fields of `as_json`, and `failures` (sentences; empty if every bound holds), `finished` (ISO time),
    `rule`, `version`, `seed`, `model`; each section has `interval`, the exact 95 % interval of its rate.
    """
    found = [each for path in _folder().glob(f"{configuration_key()}-*.json") if (each := _read(path))]
    full = [each for each in found if not each["quick"]]
    return max(full, key=lambda each: str(each["finished"]), default=None)


def selftest_sentence() -> str:
    """The newest full selftest under this configuration, for a report; "" if there is none."""
    found = latest_selftest()
    if found is None:
        return ""
    parts = [
        f"{found['null']['kept']} of {found['null']['n']} claims about nothing were kept as an effect",
        f"{found['planted']['supported']} of {found['planted']['n']} planted effects were supported",
        f"{found['true_null']['ruled_out']} of {found['true_null']['n']} true nulls were ruled out",
    ]
    failed = " Some of its bounds did not hold." if found["failures"] else ""
    return f"Selftest of {str(found['finished'])[:10]} on this machine: {', '.join(parts)}.{failed}"


def as_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """What `--json` prints; the stored result holds the rest."""
    counts = {
        name: {"n": result[name]["n"], counted: result[name][counted]} for name, counted in SECTIONS.items()
    }
    return {**counts, "seconds": result["seconds"]}


def as_text(result: Mapping[str, Any]) -> str:
    """The result as a table for people."""
    titles = {
        "null": ("claims about nothing", "kept as an effect", "<= 1 %"),
        "planted": ("planted effects", "supported", ">= 95 %"),
        "true_null": ("true nulls", "ruled out", ">= 90 %"),
        "adversarial": ("claims of adversaries", "kept as an effect", "<= 1 a world"),
    }
    lines = [f"selftest of {result['rule']}, mlxterp {result['version']}, seed {result['seed']}"]
    lines.append(f"residuals of: {one_line(str(result['model']))}")
    for name, (title, what, bound) in titles.items():
        section = result[name]
        n, count = section["n"], section[SECTIONS[name]]
        low, high = section["interval"] or (float("nan"), float("nan"))
        rate = f"{100 * count / n:.2f} % [{100 * low:.2f} %, {100 * high:.2f} %]" if n else "-"
        lines.append(f"  {title:22} {n:>6}   {what:18} {count:>5}   {rate:28} {bound}")
    lines.append(f"  most that one adversary kept in one world: {result['adversarial']['most_in_one_world']}")
    for title, name in (("named reasons", "named"), ("real processes", "real_processes")):
        held = sum(each["holds"] for each in result[name])
        lines.append(f"  {title:22} {held} of {len(result[name])} as expected")
    lines += [f"FAILED  {one_line(each, 300)}" for each in result["failures"]]
    lines.append(f"{'failed' if result['failures'] else 'passed'} in {duration(result['seconds'])}")
    if result["quick"]:
        lines.append("quick: without SmolLM2 and the real processes; reports quote the full selftest only")
    return "\n".join(lines)


def judge_real_claims(claims: tuple[RealClaim, ...], progress: Progress) -> Iterator[dict[str, Any]]:
    """Each claim by `autointerp run` in an investigation of its world, away from the user's own state."""
    with tempfile.TemporaryDirectory(prefix="autointerp-selftest-") as place:
        root = Path(place)
        for number, claim in enumerate(claims, 1):
            progress("claims through the real processes", number - 1, len(claims))
            project = root / claim.world
            if not project.exists():
                _make_project(project, SETUPS[claim.world])
            yield _judge_one(project, claim, number, root / "state")
        progress("claims through the real processes", len(claims), len(claims))


def _make_project(project: Path, setup: str) -> None:
    from mlxterp_agent.supervisor.prepare import NewProject, make

    made_from = NewProject("generic", "toy-induction", "Which heads carry the answer?")
    make(project, made_from, lambda _: None)
    (project / "setup.py").write_text(setup, encoding="utf-8")


def _judge_one(project: Path, claim: RealClaim, number: int, state: Path) -> dict[str, Any]:
    source = _EXPERIMENT.format(
        number=number, name=claim.name, site=claim.site, op=claim.op, direction=claim.direction
    )
    (project / "experiment.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "mlxterp_agent.cli", "run", str(project), "--json"]
    ended = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, STATE_DIR_ENV: str(state)},
    )
    expected = _ending(claim.verdict, kept=claim.kept)
    found = _found(ended.stdout, claim) or one_line(ended.stderr or ended.stdout or "no output", 200)
    return {"name": claim.name, "expected": expected, "found": found, "holds": found == expected}


def _found(printed: str, claim: RealClaim) -> str | None:
    """How the claim ended; None if no entry was printed."""
    for line in printed.splitlines():
        entry = json.loads(line)
        record = entry.get("record")
        if record:
            first = " ".join(record["reasons"][:1])
            said = "" if claim.reason in first else f", because {one_line(first, 150)}"
            return _ending(str(record["verdict"]), kept=bool(entry["informative"])) + said
    return None


def _ending(verdict: str, *, kept: bool) -> str:
    return f"{verdict}, {'kept' if kept else 'not kept'}"


def _measured(seed: int, progress: Progress, *, quick: bool) -> dict[str, Any]:
    """The result of the process that measures the worlds and judges by lookup."""
    command = [sys.executable, "-I", "-m", "mlxterp.selftest", "--seed", str(seed)]
    command += ["--quick"] if quick else []
    result: dict[str, Any] | None = None
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                told = json.loads(line)
                if "result" in told:
                    result = told["result"]
                else:
                    progress(*told["progress"])
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if result is None or code:
        last = one_line(said[-1], 300) if said else "it printed nothing"
        raise SelftestFailed(
            f"the selftest's process ended with exit code {code} and without a result: {last}. Run "
            f"{' '.join(command)} to see all of it."
        )
    return result


def _folder() -> Path:
    import platformdirs

    root = os.environ.get(STATE_DIR_ENV)
    return (Path(root) if root else platformdirs.user_state_path("autointerp")) / "selftest"


def _keep(result: Mapping[str, Any]) -> None:
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    kind = "quick" if result["quick"] else "full"
    path = folder / f"{result['key']}-{kind}-{result['seed']}.json"
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())


def _read(path: Path) -> dict[str, Any] | None:
    """A stored result; None for what cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        complete = {"quick", "finished", "failures", "seconds", *SECTIONS} <= set(found)
    except (OSError, ValueError, TypeError):
        return None
    return found if complete else None
