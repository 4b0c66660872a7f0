"""Writes experiment.py when a turn begins, from a template; the outcome is read from the log.

See `study.py` for the choice of the next experiment.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2

from mlxterp._files import locate
from mlxterp.autointerpret.contract import EXPERIMENT
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.text import percent
from mlxterp_agent.researchers.base import (
    IDLE,
    Done,
    ExperimentOutcome,
    Failed,
    ResearcherState,
    Situation,
)
from mlxterp_agent.researchers.scripted.features import FEATURES
from mlxterp_agent.researchers.scripted.heads import HEADS
from mlxterp_agent.researchers.scripted.heads_log import label
from mlxterp_agent.researchers.scripted.study import (
    Concluded,
    Experiment,
    GiveUp,
    Next,
    Study,
    listed,
    next_experiment,
    read,
)
from mlxterp_agent.storage.project_files import write_in_project

MARGIN = 1.5
"""An experiment is expected to take at most this many times as long as the longest so far."""


class ScriptedResearcher:
    """Writes the next experiment when a turn begins, and is idle at once; done with the conclusion."""

    name = "scripted"
    model: str | None = None
    session: str | None = None
    answered = True

    def __init__(self) -> None:
        self._state: ResearcherState = IDLE
        self._refused: str | None = None

    def begin_turn(self, situation: Situation) -> None:
        """Writes experiment.py, or ends: with the answer, or because there is nothing to investigate."""
        if self._refused is not None:
            self._state = Failed(f"the experiment was not run: {self._refused}")
            return
        match decide(situation.entries, experiments_left(situation), study_of(situation)):
            case Experiment() as experiment:
                situation.charge(0.0, 0)  # a cost of 0, not an unknown cost
                write_in_project(situation.project, EXPERIMENT, render(experiment).encode())
            case Concluded(reason):
                self._state = Done(reason)
            case GiveUp(reason):
                self._state = Failed(reason)

    def poll(self) -> ResearcherState:
        return self._state

    def tell(self, outcome: ExperimentOutcome) -> None:
        """The log has the outcome, unless the file was not run; then writing it again would not help."""
        self._refused = outcome.text if outcome.run is None else None

    def close(self) -> None:
        """Nothing was started."""


def decide(entries: Sequence[ExperimentEntry], left: int | None, study: Study = HEADS) -> Next:
    """The next step after these entries, when `left` more experiments may run."""
    return next_experiment(read(entries, study), left, study)


def study_of(situation: Situation) -> Study:
    """The study for setup.py: of features if it has a sparse autoencoder, else of heads."""
    return FEATURES if situation.facts.get("sae") else HEADS


def experiments_left(situation: Situation) -> int | None:
    """How many more experiments the budget and the time that is left allow; None without any limit."""
    limits = [] if situation.budget.experiments_left is None else [situation.budget.experiments_left]
    seconds = [s for s in (situation.budget.seconds_left, situation.deadline_left) if s is not None]
    durations = [entry.duration_seconds for entry in situation.entries if entry.duration_seconds]
    if seconds and durations:
        limits.append(int(min(seconds) // (MARGIN * max(durations))))
    return min(limits) if limits else None


def render(experiment: Experiment) -> str:
    """The experiment.py of an experiment."""
    return _templates().get_template(f"{experiment.template}.py.j2").render(experiment.values)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(locate("templates") / "experiments")),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # these are Python files: texts pass the filter `text`, other values `py`
    )
    environment.filters.update(
        py=_source,
        text=_text,
        prose=lambda text, indent: _text(" ".join(text.split()), indent),
        percent=percent,
        listed=listed,
        heads=lambda heads: listed(map(label, heads)),
    )
    return environment


def _source(value: Any) -> str:
    """A value as Python source, with the double quotes that people write."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | dict) else repr(value)


def _text(text: str, indent: int) -> str:
    """A text as Python source: one literal for each line of it, the later ones indented."""
    lines = textwrap.wrap(text, 102 - indent, drop_whitespace=False, break_on_hyphens=False) or [""]
    return f"\n{' ' * indent}".join(map(_source, lines))
