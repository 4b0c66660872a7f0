"""`WorkflowResult`: the results of several analyses of one question, in order, with sentences between.

Lives here: the kind, reading its steps, its account in sentences. Does not live here: which analyses a
workflow runs (`mlxterp.workflows`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mlxterp.errors import ResultError
from mlxterp.results import markdown
from mlxterp.results.base import AnalysisResult
from mlxterp.results.rendering import figure
from mlxterp.results.views import (
    Bars,
    Component,
    Heatmap,
    Network,
    Note,
    Section,
    Show,
    Table,
    cautions,
    drawables,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Step:
    """One analysis of a workflow.

    Attributes:
        name: as `get_step` takes it: "dla", "patch_mlp" …
        result: what the analysis returned, of any kind.
        narrative: what it found, in whole sentences with their numbers.
        cautions: what limits that, one sentence each; empty where nothing does.
    """

    name: str
    result: AnalysisResult
    narrative: str = ""
    cautions: tuple[str, ...] = ()


def _to_steps(steps: Iterable[Step | Mapping[str, Any]]) -> tuple[Step, ...]:
    return tuple(_to_step(step) for step in steps)


def _to_step(step: Step | Mapping[str, Any]) -> Step:
    data = dict(vars(step) if isinstance(step, Step) else step)
    result = data["result"]
    if isinstance(result, Mapping):
        data["result"] = AnalysisResult.from_dict(result)
    elif not isinstance(result, AnalysisResult):
        raise ResultError(
            f"step {data['name']!r} holds a {type(result).__name__}. A step holds an AnalysisResult, or what "
            "its `to_dict()` returns."
        )
    return Step(**data | {"cautions": tuple(map(str, data.get("cautions", ())))})


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkflowResult(AnalysisResult):
    """What a workflow found, step by step.

    Attributes:
        name: of the workflow: "behavior_localization", "circuit_discovery", "feature_investigation".
        question: one sentence: what was asked, of which model, on what.
        steps: the analyses, in the order in which they ran.
        conclusion: what all steps say together.
        cautions: what limits the conclusion and belongs to no single step.
        components_from: the steps whose components are this result's. Their effects are in one unit, so that
            they can be ranked together. Left out: the last step that has components.
    """

    kind: ClassVar[str] = "workflow"
    name: str
    question: str = ""
    steps: tuple[Step, ...] = field(metadata={"convert": _to_steps})
    conclusion: str = ""
    cautions: tuple[str, ...] = ()
    components_from: tuple[str, ...] = ()

    def _check(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) < len(names):
            raise ResultError(f"the steps {names} name one twice. Give each step its own name.")
        for name in self.components_from:
            self.step(name)

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize()

    @property
    def step_names(self) -> tuple[str, ...]:
        """The names of the steps, in the order in which they ran."""
        return tuple(step.name for step in self.steps)

    def step(self, name: str) -> Step:
        """The step of this name, with its sentences; an unknown one raises ResultError, listing the steps."""
        for each in self.steps:
            if each.name == name:
                return each
        there = f"It has: {', '.join(self.step_names)}." if self.steps else "It has no steps."
        raise ResultError(f"{self.name} has no step {name!r}. {there} Use one of these names, or run it too.")

    def get_step(self, name: str) -> Any:
        """The result of a step: an AnalysisResult of that step's kind.

        Raises:
            ResultError: an unknown name, listing the steps that ran.
        """
        return self.step(name).result

    @property
    def narrative(self) -> str:
        """The whole account as plain text, a paragraph per step: numbers, their meaning, their limits."""
        parts = [self.question, *(_account(step) for step in self.steps), self.conclusion]
        parts += [f"Caution: {text}" for text in self.cautions]
        return "\n\n".join(part for part in parts if part)

    def summary(self) -> str:
        """The conclusion, a line per step, and every caution."""
        lines = [f"{self._headline()}: {', '.join(self.step_names) or 'no steps'}."]
        lines += [part for part in (self.conclusion or self.question,) if part]
        lines += [f"{step.name}: {_first_line(step)}" for step in self.steps]
        lines += [f"Caution ({step.name}): {text}" for step in self.steps for text in step.cautions]
        return "\n".join([*lines, *(f"Caution: {text}" for text in self.cautions)])

    def components(self) -> tuple[Component, ...]:
        """The components of the steps in `components_from`, in that order."""
        if self.components_from:
            return tuple(c for name in self.components_from for c in self.step(name).result.components())
        for each in reversed(self.steps):
            found = each.result.components()
            if found:
                return found
        return ()

    def shows(self) -> tuple[Show, ...]:
        """Each step's sentences, then what its result shows, the titles beginning with the step's name."""
        drawn: list[Show] = [self._overview(), *cautions(self.cautions)]
        for step in self.steps:
            drawn += [
                Note(f"{step.name}. {step.narrative or step.result.summary()}"),
                *cautions(step.cautions),
            ]
            drawn += [_titled(step.name, show) for show in _unsaid(step, step.result.shows())]
        return tuple(drawn)

    def plot(self) -> Figure:
        """The first figure of each step, one below the other. A step's own `plot()` has all of them."""
        first = [
            _titled(step.name, each) for step in self.steps for each in drawables(step.result.shows())[:1]
        ]
        return figure(first, title=self.title)

    def section(self) -> Section:
        """As a page sets it: question and conclusion, the steps in a table, then a section per step."""
        text = "\n\n".join(part for part in (self.question, self.conclusion) if part)
        return Section(
            self.title,
            text or self.summary(),
            (self._overview(), *cautions(self.cautions)),
            self.measured_on,
            tuple(self._section_of(step) for step in self.steps),
        )

    def _section_of(self, step: Step) -> Section:
        """A step's own section under its narrative; what all steps were measured on is stated once."""
        own = step.result.section()
        text = "\n\n".join(part for part in (step.narrative, own.text) if part)
        shows = (*cautions(step.cautions), *_unsaid(step, own.shows))
        return Section(f"{step.name}: {own.title}", text, shows, self._only_of(step), own.sections)

    def _only_of(self, step: Step) -> dict[str, Any]:
        """What a step was measured on beyond what all were."""
        on = step.result.measured_on
        return {key: value for key, value in on.items() if self.measured_on.get(key) != value}

    def panels(self) -> tuple[Heatmap, ...]:
        """Those of each step, the titles beginning with the step's name."""
        return tuple(_titled(step.name, each) for step in self.steps for each in step.result.panels())

    def _overview(self) -> Table:
        return Table(
            title="Steps",
            columns=("step", "analysis", "what it found"),
            rows=tuple((step.name, step.result.title, _first_line(step)) for step in self.steps),
        )

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain Python values; each step's result as its own `to_dict` gives it."""
        steps = [
            {
                "name": step.name,
                "result": step.result.to_dict(),
                "narrative": step.narrative,
                "cautions": list(step.cautions),
            }
            for step in self.steps
        ]
        return super().to_dict() | {"steps": steps}

    def to_markdown(self) -> str:
        """The narrative, then each step as a section with its tables. What all steps share is stated once."""
        parts = [f"## {markdown.escape(self.title)}"]
        parts += [markdown.paragraphs(text) for text in (self.question, self.conclusion)]
        parts += map(markdown.show, cautions(self.cautions))
        for step in self.steps:
            parts.append(f"### {markdown.escape(step.name)}: {markdown.escape(step.result.title)}")
            parts.append(markdown.paragraphs(step.narrative))
            parts += map(markdown.show, cautions(step.cautions))
            parts.append(markdown.paragraphs(step.result.summary()))
            parts += map(markdown.show, _unsaid(step, step.result.shows()))
            parts.append(markdown.measured_on(self._only_of(step)))
        parts += ["### Measured on", markdown.measured_on(self.measured_on)] if self.measured_on else []
        return "\n\n".join(part for part in parts if part) + "\n"


def _account(step: Step) -> str:
    text = f"{step.name}: {step.narrative or step.result.summary()}"
    return "\n".join([text, *(f"Caution: {each}" for each in step.cautions)])


def _first_line(step: Step) -> str:
    """The first sentence of what a step says: as far as the first full stop that ends a word."""
    text = step.narrative or step.result.summary()
    line = text.strip().partition("\n")[0]
    end = line.find(". ")
    return line if end < 0 else line[: end + 1]


def _unsaid(step: Step, shows: Iterable[Show]) -> list[Show]:
    """Those of `shows` that are no notes, or notes that the step's own sentences do not hold already."""
    return [
        show
        for show in shows
        if not (isinstance(show, Note) and (show.text in step.cautions or show.text in step.narrative))
    ]


def _titled(name: str, show: Any) -> Any:
    if isinstance(show, (Bars, Heatmap, Network, Table)):
        return replace(show, title=f"{name}: {show.title}")
    return show
