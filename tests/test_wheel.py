"""The wheel holds what the checkout holds: templates, scaffolds, the toy's weights, the command."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_every_template_and_scaffold_of_the_checkout_is_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())

    wanted = {
        f"mlxterp/_data/{path.relative_to(ROOT)}"
        for folder in ("templates", "scaffolds")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.name != ".gitkeep"
    }

    assert wanted - packed == set()
    assert any(name.endswith("toy_induction.safetensors") for name in packed)


@pytest.mark.slow
def test_an_investigation_starts_from_the_installed_wheel_alone(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
    )
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import mlxterp;"
        f"assert {str(site)!r} in mlxterp.__file__;"
        "from mlxterp.autointerpret import init_autointerpret;"
        "init_autointerpret('made', model_name='toy-induction', research_question='?', max_experiments=3)"
    )

    subprocess.run([sys.executable, "-S", "-c", _with_site_packages(code)], check=True, cwd=tmp_path)

    assert (tmp_path / "made" / "setup.py").read_text(encoding="utf-8").count("toy-induction") == 1


def _with_site_packages(code: str) -> str:
    """Dependencies from this environment, without the .pth that would put the checkout first."""
    paths = [path for path in sys.path if "site-packages" in path]
    return f"import sys; sys.path += {paths!r}; " + code
