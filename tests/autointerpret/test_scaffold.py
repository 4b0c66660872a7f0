"""A new investigation is made whole or not at all, whatever the question holds."""

# ruff: noqa: T201 - the guide's examples print

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxterp._files import locate
from mlxterp.autointerpret import ExperimentLog, init_autointerpret, load_project, read_hypothesis, scaffolds
from mlxterp.autointerpret.hypothesis import DIRECTIONS, MORE_THAN, ROLES, SESOI_GRID
from mlxterp.autointerpret.scaffold import quoted
from mlxterp.errors import ScaffoldError

ROOT = Path(__file__).resolve().parents[2]


def test_the_guides_example_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    # Generate the project structure
    path = init_autointerpret(
        output_dir="my_investigation",
        model_name="mlx-community/Llama-3.2-1B-Instruct-4bit",
        research_question="How does this model recall factual associations?",
        max_experiments=100,
    )

    print(f"Project created at: {path}")

    assert capsys.readouterr().out == "Project created at: my_investigation\n"
    assert {p.name for p in path.iterdir()} == {
        ".claude",
        ".mcp.json",
        "setup.py",
        "experiment.py",
        "program.md",
        "CLAUDE.md",
        "AGENTS.md",
        "results.jsonl",
        "findings",
        ".gitignore",
        ".autointerp",
    }
    assert "How does this model recall factual associations?" in (path / "program.md").read_text()
    assert "MODEL_NAME = 'mlx-community/Llama-3.2-1B-Instruct-4bit'" in (path / "setup.py").read_text()
    assert "@program.md" in (path / "CLAUDE.md").read_text()
    assert (path / "results.jsonl").read_bytes() == b""
    assert [p.name for p in (path / "findings").iterdir()] == [".gitkeep"]
    assert ExperimentLog(path / "results.jsonl").entries() == []


def test_the_configuration_says_what_was_asked_for(tmp_path):
    now = datetime(2026, 11, 22, tzinfo=timezone.utc)

    path = init_autointerpret(
        tmp_path / "p", "toy-induction", "How?", 7, time_per_experiment=2.5, now=lambda: now
    )

    config = load_project(path).config
    assert (config.model, config.question, config.scaffold) == ("toy-induction", "How?", "generic")
    assert (config.max_experiments, config.time_per_experiment) == (7, 2.5)
    assert config.created == "2026-11-22T00:00:00+00:00"
    assert "7 experiments of at most 2.5 seconds" in (path / "program.md").read_text()


@pytest.mark.parametrize("name", scaffolds())
def test_every_scaffold_renders_to_a_loadable_project_of_parsable_python(tmp_path, name):
    path = init_autointerpret(tmp_path / name, scaffold=name)

    project = load_project(path)
    assert project.config.scaffold == name
    for source in path.rglob("*.py"):
        ast.parse(source.read_bytes())
    read_hypothesis((path / "experiment.py").read_bytes())
    assert not [p for p in path.rglob("*") if p.name.startswith("_") or p.suffix == ".j2"]
    assert not [line for p in path.glob("*.md") for line in p.read_text().splitlines() if "{{" in line]


@pytest.mark.parametrize("instructions", ["CLAUDE.md", "AGENTS.md"])
def test_the_instructions_name_whatever_may_be_declared(tmp_path, instructions):
    text = (init_autointerpret(tmp_path / "p") / instructions).read_text()

    allowed = [*DIRECTIONS, *MORE_THAN, *ROLES, *map(str, SESOI_GRID)]
    assert [each for each in allowed if each not in text] == []


@pytest.mark.parametrize(("scaffold", "explored"), [("features", "pairs"), ("induction", "dataset")])
def test_the_instructions_explore_where_the_scaffold_has_its_pairs(tmp_path, scaffold, explored):
    text = (init_autointerpret(tmp_path / "p", scaffold=scaffold) / "CLAUDE.md").read_text()

    assert f"`setup.{explored}` is for exploring" in text
    assert f'activation_patching(model, {explored}, component="z"' in text
    assert f"import {', '.join(sorted([explored, 'model']))}" in text


@pytest.mark.parametrize(
    "hostile",
    [
        'He said "why?"',
        "it's",
        '"""',
        "'''\nimport os\n'''",
        "{{ 7 * 7 }} {% raw %} {# #}",
        "back\\slash\\",
        "line one\r\nline two\u2028line three",
        "# heading\n```\ncode",
        "naïve 問い 🔍",
    ],
)
def test_a_question_is_data_and_never_code(tmp_path, hostile):
    path = init_autointerpret(tmp_path / "p", model_name=hostile, research_question=hostile)

    assert _constants(path / "setup.py") == {"MODEL_NAME": hostile, "QUESTION": hostile}
    for line in hostile.splitlines():
        assert f"> {line}".rstrip() in (path / "program.md").read_text()


TEXT = st.text(min_size=1, max_size=60).filter(lambda text: text.strip())
NAME = TEXT.filter(lambda text: not Path(os.path.expanduser(text)).exists())
"""Names of no file: of one that is there, setup.py holds the whole path."""


@settings(max_examples=40, deadline=None)
@given(question=TEXT, model=NAME)
def test_whatever_the_question_is_the_rendered_setup_holds_it(tmp_path_factory, question, model):
    path = init_autointerpret(
        tmp_path_factory.mktemp("s") / "p", model_name=model, research_question=question
    )

    assert _constants(path / "setup.py") == {"MODEL_NAME": model, "QUESTION": question}


@pytest.mark.parametrize("name", ["~nobody-of-this-name", "~nobody-of-this-name/model"])
def test_a_model_named_like_the_home_of_no_user_keeps_its_name(tmp_path, name):
    path = init_autointerpret(tmp_path / "p", model_name=name, research_question="What?")

    assert _constants(path / "setup.py")["MODEL_NAME"] == name


def test_each_line_of_a_question_stays_inside_the_quote():
    assert quoted("one\n\n# two\r\nthree") == "> one\n>\n> # two\n> three"


@pytest.mark.parametrize("there", ["a file in it", "a file of this name", "a dangling link"])
def test_what_exists_is_never_overwritten(tmp_path, there):
    target = tmp_path / "p"
    if there == "a file in it":
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    elif there == "a file of this name":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(ScaffoldError, match=r"notes\.txt.*Nothing is overwritten|exists and is no directory"):
        init_autointerpret(target)

    assert sorted(tmp_path.rglob("*")) == before


def test_an_investigation_cannot_be_made_twice(tmp_path):
    path = init_autointerpret(tmp_path / "p")
    before = (path / "setup.py").read_bytes()

    with pytest.raises(ScaffoldError, match="continue the one that is there with `autointerp start"):
        init_autointerpret(path, "another-model")

    assert (path / "setup.py").read_bytes() == before


def test_an_empty_directory_is_filled_in_place(tmp_path, monkeypatch):
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path / "p")
    inode = os.stat(".").st_ino

    init_autointerpret(".")

    assert os.stat(".").st_ino == inode
    assert load_project(".").config.scaffold == "generic"
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("step", ["write_config", "_move_into_place", "os.rename"])
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, step, existing):
    target = tmp_path / "a" / "b" / "p"
    if existing:
        target.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    calls: list[object] = []
    rename = os.rename

    def fail(*arguments: object) -> None:
        calls.append(arguments)
        if step == "os.rename" and existing and len(calls) < 3:
            rename(*arguments)  # type: ignore[arg-type]
            return
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"mlxterp.autointerpret.scaffold.{step}", fail)
    with pytest.raises(OSError, match="No space left"):
        init_autointerpret(target)

    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_scaffold_lists_the_known_ones(tmp_path):
    with pytest.raises(ScaffoldError, match=r"no scaffold 'sae'. There are: .*generic"):
        init_autointerpret(tmp_path / "p", scaffold="sae")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_name": ""}, "model_name is ''. Give a text"),
        ({"research_question": "  "}, "research_question is '  '"),
        ({"research_question": "\ud800"}, "no UTF-8 file can hold"),
        ({"max_experiments": 0}, "max_experiments is 0. Give a whole number"),
        ({"max_experiments": 2.5}, "max_experiments is 2.5"),
        ({"time_per_experiment": float("nan")}, "time_per_experiment is nan"),
    ],
)
def test_values_that_cannot_be_used_are_refused(tmp_path, values, says):
    with pytest.raises(ScaffoldError, match=says.replace("(", "\\(")):
        init_autointerpret(tmp_path / "p", **values)

    assert list(tmp_path.iterdir()) == []


def test_every_scaffold_file_is_a_template_or_the_defaults():
    root = locate("scaffolds")

    odd = [
        p
        for p in root.rglob("*")
        if p.is_file() and p.suffix != ".j2" and p.name not in ("scaffold.json", ".gitkeep")
    ]

    assert odd == []
    for name in scaffolds():
        defaults = json.loads((root / name / "scaffold.json").read_text())
        assert {"about", "model", "question"} <= set(defaults)


SETUP_WITH_A_TINY_MODEL = """
from mlxterp import InterpretableModel, PromptPair
from tests.tiny_models import ByteTokenizer, tiny_module

QUESTION = "How?"
model = InterpretableModel(tiny_module("llama"), ByteTokenizer())
dataset = [
    PromptPair([1, 2, 3, 4], [1, 9, 3, 4], answer=5, foil=6),
    PromptPair([7, 2, 3, 4], [8, 2, 3, 4], answer=5, foil=6),
]
"""


@pytest.mark.parametrize("scaffold", ["generic", "induction"])
def test_the_first_experiment_runs_by_hand(tmp_path, scaffold):
    path = init_autointerpret(tmp_path / "p", scaffold=scaffold)
    if scaffold == "generic":  # its own model is a download
        (path / "setup.py").write_text(SETUP_WITH_A_TINY_MODEL)

    ran = subprocess.run(
        [sys.executable, "experiment.py"],
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stderr
    (entry,) = ExperimentLog(path / "results.jsonl").entries()
    assert entry.result["analysis"]["kind"] == "patching"
    assert next(iter(entry.result["numbers"])) in entry.conclusion


def test_the_wheel_places_are_tried_before_the_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site" / "mlxterp"
    shutil.copytree(locate("scaffolds"), package / "_data" / "scaffolds")
    monkeypatch.setattr("mlxterp._files.__file__", str(package / "_files.py"))

    assert locate("scaffolds") == package / "_data" / "scaffolds"
    assert "generic" in scaffolds()


def _constants(path: Path) -> dict[str, object]:
    found = {}
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("MODEL_NAME", "QUESTION"):
                found[name] = ast.literal_eval(node.value)
    return found
