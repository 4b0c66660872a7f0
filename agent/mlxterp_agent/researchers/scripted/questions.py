"""Whether a question is one that the scripted researcher's plan can answer.

The plan does not read the question: it studies what setup.py holds. So a question about something else would
end "answered" without an answer. The rule: with a setup.py that is as its scaffold wrote it, the question
must name one of the scaffold's topics (`scaffold.json`), as its own question and near paraphrases do. A
setup.py that a person has changed holds what that person asks about.
"""

from __future__ import annotations

from pathlib import Path

from mlxterp.autointerpret.contract import SETUP, load_project
from mlxterp.autointerpret.scaffold import is_as_rendered, names_topic, scaffold_defaults, scaffolds


def why_not_answered(
    scaffold: str, question: str | None, project: Path | None = None, model: str = ""
) -> str | None:
    """Why the plan for a scaffold's setup.py does not answer this question; None if it does.

    Args:
        question: None is the scaffold's own.
        project: an investigation that is there: one whose setup.py was changed takes any question.
        model: of the investigation; the example for a toy is another.
    """
    if question is None or scaffold not in scaffolds():
        return None
    if project is not None and not is_as_rendered(project / SETUP, load_project(project).config):
        return None
    defaults = scaffold_defaults(scaffold)
    if names_topic(scaffold, question, model):
        return None
    shown = question if len(question) <= 120 else f"{question[:119]}…"
    return (
        f"the scripted researcher cannot answer {shown!r}: its plan for the scaffold {scaffold!r} answers "
        f"{defaults['question']!r} ({defaults['about']}). Leave --question out to ask that; for another "
        "question bring your own prompt pairs, `autointerp init DIR --question Q --prompts FILE`, or choose "
        "a researcher that reads it (--agent claude, --agent api)"
    )
