"""Which questions the scripted researcher takes: those that its plan can answer, said before a run."""

from __future__ import annotations

import pytest

from mlxterp.autointerpret import init_autointerpret, load_project, scaffolds
from mlxterp.autointerpret.contract import SETUP
from mlxterp.autointerpret.scaffold import scaffold_defaults
from mlxterp_agent.exit_codes import RESEARCHER, ResearcherUnavailable
from mlxterp_agent.researchers.external import External
from mlxterp_agent.researchers.scripted import ScriptedResearcher
from mlxterp_agent.researchers.scripted.questions import why_not_answered
from mlxterp_agent.researchers.select import Choice


@pytest.mark.parametrize("scaffold", scaffolds())
def test_a_scaffolds_own_question_is_taken_whether_it_is_given_or_left_out(scaffold):
    assert why_not_answered(scaffold, None) is None
    assert why_not_answered(scaffold, scaffold_defaults(scaffold)["question"]) is None


@pytest.mark.parametrize(
    ("scaffold", "question"),
    [
        ("induction", "How does the model copy REPEATED words?"),
        ("induction", "What are the induction heads?"),
        ("factual_recall", "Where does it store the cities of landmarks?"),
        ("generic", "How are facts recalled?"),
        ("features", "What do this SAE's latents mean?"),
    ],
)
def test_near_paraphrases_are_taken(scaffold, question):
    assert why_not_answered(scaffold, question) is None


@pytest.mark.parametrize("scaffold", scaffolds())
@pytest.mark.parametrize("question", ["gender bias?", "Why?", "Does it lie about its beliefs?"])
def test_a_question_about_something_else_is_refused_with_what_is_answered_instead(scaffold, question):
    why = why_not_answered(scaffold, question)

    assert why is not None
    assert question in why
    assert scaffold_defaults(scaffold)["question"] in why
    assert "--question out" in why
    assert "--agent claude" in why


def test_a_setup_that_a_person_changed_takes_the_persons_question(tmp_path):
    project = init_autointerpret(tmp_path / "p", scaffold="induction", research_question="gender bias?")
    question = load_project(project).config.question
    before = why_not_answered("induction", question, project)

    (project / SETUP).write_text((project / SETUP).read_text() + "\ndataset = dataset[:8]\n")

    assert before is not None
    assert why_not_answered("induction", question, project) is None


def test_only_a_researcher_that_does_not_read_the_question_refuses_one():
    Choice(External(), "a person").require_answerable("induction", "gender bias?")

    with pytest.raises(ResearcherUnavailable, match="cannot answer 'gender bias\\?'") as refused:
        Choice(ScriptedResearcher(), "asked for").require_answerable("induction", "gender bias?")

    assert refused.value.exit_code == RESEARCHER
