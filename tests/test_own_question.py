"""The page "a question of your own", executed: from a CSV file to a decided claim and a report, by its own
commands, and again in a notebook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlxterp.autointerpret import ExperimentLog

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "own_question.md"
BLOCK = re.compile(r"^```(python|bash|text|py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def blocks(*kinds: str) -> list[tuple[str, str]]:
    found = [(m[1], m[2]) for m in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]
    return [(kind, text) for kind, text in found if kind in kinds]


def environment_of(folder: Path) -> dict[str, str]:
    """A person's shell with this environment's programs first, and a state directory of its own."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AUTOINTERP_STATE_DIR": str(folder / "state"),
    }


def verdicts(project: Path) -> list[str]:
    log = ExperimentLog(project / "results.jsonl")
    return [str((entry.record or {}).get("verdict")) for entry in log.entries()]


def test_the_commands_of_the_page_lead_to_a_decided_claim_and_a_report(tmp_path):
    said, environment = "", environment_of(tmp_path)
    for kind, text in blocks("python", "bash", "text"):
        if kind == "text":
            assert [line for line in text.splitlines() if line not in said] == [], said[-3000:]
            continue
        program = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euc", text]
        ended = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-2000:]
        said = said + ended.stdout if kind == "bash" else said

    report = (tmp_path / "opposites" / "report.md").read_text(encoding="utf-8")
    assert verdicts(tmp_path / "opposites")[0] == "supported"
    assert "closing" in verdicts(tmp_path / "opposites")
    assert re.search(r"Held-out effect 0\.[67]\d*, interval 0\.[56]\d* to 0\.[78]\d*", report)
    assert (tmp_path / "opposites" / "report.html").stat().st_size > 10_000
    assert verdicts(tmp_path / "few") == []


def test_the_notebook_of_the_page_leads_to_a_decided_claim(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    (_, writes_the_pairs), *_ = blocks("python")
    subprocess.run([sys.executable, "-c", writes_the_pairs], cwd=tmp_path, check=True)
    (declares,) = (text for _, text in blocks("bash") if "cat > six_layers.py" in text)
    subprocess.run(["bash", "-euc", declares.partition("cp six_layers.py")[0]], cwd=tmp_path, check=True)
    for name, value in environment_of(tmp_path).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(text) for _, text in blocks("py")]

    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()

    printed = ["".join(str(out.get("text", "")) for out in cell.outputs) for cell in notebook.cells]
    assert "62 used" in printed[0]
    assert printed[3].startswith("0001 supported ")
