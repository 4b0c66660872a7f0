"""Help on the library: read from its source, complete, with examples that run."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mlxterp_agent import prompts
from mlxterp_agent.api_help import (
    ESSENTIALS_LIMIT,
    LIMIT,
    NotFound,
    essentials,
    examples,
    library_help,
    listing,
)


def test_a_function_has_its_import_its_signature_its_documentation_and_an_example():
    text = library_help("activation_patching")

    assert text.startswith("from mlxterp.causal import activation_patching")
    assert "component: str='resid_pre'" in text
    assert "-> PatchingResult" in text
    assert "Returns:" in text
    assert ">>> result.effects.shape" in text


def test_a_name_is_found_however_it_is_written():
    assert library_help("mlxterp.causal.ablate") == library_help("ablate()") == library_help(" ablate ")


def test_a_class_lists_what_it_has_and_each_method_can_be_asked_for():
    assert ".trace(prompt" in library_help("InterpretableModel")
    assert "capture: Capture=()" in library_help("InterpretableModel.trace")
    with pytest.raises(NotFound, match="it has"):
        library_help("InterpretableModel.teleport")


def test_an_unknown_name_is_told_what_looks_like_it():
    with pytest.raises(NotFound, match=r"Similar: .*activation_patching"):
        library_help("activation_patchng")


def test_everything_that_a_package_exports_can_be_asked_for():
    import mlxterp.autointerpret
    import mlxterp.causal
    import mlxterp.results

    there = listing()
    for package in (mlxterp.causal, mlxterp.results, mlxterp.autointerpret):
        for name in package.__all__:
            if inspect.isclass(value := getattr(package, name)) or inspect.isfunction(value):
                assert f"  {name}: " in there, name
                assert len(library_help(name).encode()) <= LIMIT


def test_the_signatures_are_those_of_the_running_code():
    from mlxterp import causal

    for name in causal.__all__:
        value = getattr(causal, name)
        if inspect.isfunction(value):
            text = library_help(name)
            for parameter in inspect.signature(value).parameters:
                assert f"{parameter}: " in text.split("\n\n")[1], (name, parameter)


@pytest.mark.parametrize("name", sorted(examples()))
def test_an_example_prints_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said: list[str] = []

    test = doctest.DocTestParser().get_doctest(examples()[name], {}, name, name, 0)
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)

    assert not said, "".join(said)
    assert examples()[name] in library_help(name)


def test_help_needs_neither_mlx_nor_the_service():
    code = (
        "import sys; from mlxterp_agent.api_help import library_help; library_help('ablate'); "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'mlx', 'mlx_lm', 'anthropic', 'numpy'}))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_command_prints_it_and_an_unknown_name_is_a_mistake_of_usage():
    from mlxterp_agent.cli import app
    from mlxterp_agent.exit_codes import UsageError

    known = CliRunner().invoke(app, ["api", "ablate"])
    unknown = CliRunner().invoke(app, ["api", "abalone"])

    assert known.exit_code == 0
    assert "from mlxterp.causal import ablate" in known.output
    assert isinstance(unknown.exception, UsageError)
    assert CliRunner().invoke(app, ["api"]).output.count("from mlxterp") >= 4


def test_the_prompt_holds_the_contract_the_facts_and_the_signatures(project):
    facts = {"model": "toy-induction", "dataset": 16, "question": None}

    text = prompts.system_text(project, facts)

    assert "What is the mean?" in text
    assert 'QUESTION = "What is the mean?"' in text
    assert "dataset: 16; model: toy-induction." in text
    assert "None" not in text.partition("# The library")[0].partition("It was imported.")[2]
    assert essentials() in text
    assert len(essentials().encode()) <= ESSENTIALS_LIMIT
    assert text == prompts.system_text(project, dict(reversed(facts.items())))


def test_the_overview_names_every_module_and_nothing_of_it_is_cut_off():
    import re

    modules = re.findall(r"^from (\S+) import", listing(), re.MULTILINE)

    assert "mlxterp.workflows" in modules
    assert [module for module in modules if f"from {module} import" not in essentials()] == []


def test_a_huge_setup_does_not_make_a_huge_prompt(project):
    (project / "setup.py").write_text("x = 1\n" * 100_000)

    assert len(prompts.system_text(project, {}).encode()) < 45_000
