"""What makes a directory an investigation, and where it keeps what an experiment must not reach."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mlxterp.autointerpret import ProjectConfig, load_project
from mlxterp.autointerpret.contract import FILES, digest, read_config, state_dir, write_config
from mlxterp.errors import ProjectError


@pytest.fixture
def project(tmp_path):
    for name in ("setup.py", "experiment.py", "program.md"):
        (tmp_path / name).write_text("# " + name)
    return tmp_path


def test_importing_the_contract_loads_nothing_heavy():
    code = (
        "import sys, mlxterp.autointerpret\n"
        "heavy = ('mlx', 'mlx_lm', 'numpy', 'jinja2', 'pydantic', 'platformdirs', 'matplotlib')\n"
        "print([m for m in sys.modules if m.split('.')[0] in heavy])"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"


def test_the_three_files_are_required_and_the_others_are_not():
    assert [name for name, each in FILES.items() if each.required] == [
        "setup.py",
        "experiment.py",
        "program.md",
    ]


def test_a_project_is_loaded_with_its_configuration(project):
    config = ProjectConfig(
        max_experiments=7,
        time_per_experiment=2.5,
        scaffold="generic",
        model="toy-induction",
        question="How?",
        created="2026-11-22T00:00:00+00:00",
        extra={"agent": "scripted"},
    )

    path = write_config(project, config)

    assert load_project(project).config == config
    assert json.loads(path.read_text())["schema"] == "autointerp-config/1"
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_a_clone_without_the_private_directory_has_the_defaults(project):
    loaded = load_project(project)

    assert loaded.config == ProjectConfig()
    assert loaded.log_path == project / "results.jsonl"


def test_missing_files_are_named_with_the_command_that_makes_them(project):
    (project / "setup.py").unlink()
    (project / "program.md").unlink()

    with pytest.raises(ProjectError) as refused:
        load_project(project)

    assert "setup.py and program.md are missing (found: experiment.py)" in str(refused.value)
    assert "`autointerp init" in str(refused.value)


@pytest.mark.parametrize("there", [True, False])
def test_a_place_that_is_no_directory_is_refused(tmp_path, there):
    place = tmp_path / "here"
    if there:
        place.write_text("a file")

    with pytest.raises(ProjectError, match="it is a file" if there else "it does not exist"):
        load_project(place)


def test_a_link_in_place_of_setup_is_refused(project):
    (project / "setup.py").rename(project / "real.py")
    (project / "setup.py").symlink_to(project / "real.py")

    with pytest.raises(ProjectError, match=r"setup\.py in .* must be a regular file"):
        load_project(project)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "it is not JSON"),
        (
            '{"schema": "autointerp-config/1", "max_experiments": "5 experiments"}',
            "'5 experiments'. Give a whole",
        ),
        ('{"schema": "autointerp-config/1", "max_experiments": true}', "max_experiments is True"),
        ('{"schema": "autointerp-config/1", "max_experiments": 0}', "max_experiments is 0"),
        ('{"schema": "autointerp-config/1", "time_per_experiment": -1}', "time_per_experiment is -1"),
        ('{"schema": "autointerp-config/1", "time_per_experiment": NaN}', "bare NaN"),
        ('{"schema": "autointerp-config/1", "question": 5}', "question is 5. Give a text"),
        ('{"schema": "other"}', "is not of schema 'autointerp-config/1'"),
    ],
)
def test_a_configuration_that_cannot_be_used_names_its_file(project, content, says):
    (project / ".autointerp").mkdir()
    (project / ".autointerp" / "config.json").write_text(content)

    with pytest.raises(ProjectError) as refused:
        load_project(project)

    assert "config.json" in str(refused.value)
    assert says in str(refused.value)


def test_a_crash_while_writing_the_configuration_leaves_the_old_one(project, monkeypatch):
    write_config(project, ProjectConfig(max_experiments=5))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlxterp._files.os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_config(project, ProjectConfig(max_experiments=6))

    assert read_config(project).max_experiments == 5
    assert [p.name for p in (project / ".autointerp").iterdir()] == ["config.json"]


def test_another_project_at_the_same_path_has_another_state_directory(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    before = state_dir(project)

    project.rename(tmp_path / "moved")
    project.mkdir()

    assert state_dir(project) != before


def test_the_state_directory_is_the_same_by_whatever_name_the_project_is_reached(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project, other = tmp_path / "project", tmp_path / "other"
    project.mkdir()
    other.mkdir()
    (tmp_path / "link").symlink_to(project)
    monkeypatch.chdir(project)

    places = {
        str(state_dir(path))
        for path in (project, tmp_path / "link", ".", tmp_path / "other" / ".." / "project")
    }

    assert len(places) == 1
    assert state_dir(other) not in places
    assert state_dir(project).parent == tmp_path / "state"
    assert not state_dir(project).exists()


def test_without_the_variable_the_state_is_in_the_users_own_place(project, monkeypatch, tmp_path):
    monkeypatch.delenv("AUTOINTERP_STATE_DIR", raising=False)
    monkeypatch.setattr("platformdirs.user_state_path", lambda app: tmp_path / "users" / app)

    assert state_dir(project).parent == tmp_path / "users" / "autointerp"


def test_a_digest_is_of_bytes():
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
