"""The directions of the house's imports, held by reading the code: which layer may know which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLAIN = ("errors.py", "results", "plots", "reports", "_files.py", "autointerpret")


def _files(*roots: Path) -> list[Path]:
    found: list[Path] = []
    for root in roots:
        found += [root] if root.suffix == ".py" else sorted(root.rglob("*.py"))
    return found


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _offenders(files: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in sorted(_imports(path))
        if any(name == bad or name.startswith(bad + ".") for bad in forbidden)
    ]


def test_the_library_never_watches_files_or_touches_git_or_knows_the_machinery():
    library = _files(ROOT / "mlxterp")

    assert _offenders(library, ("git", "watchdog", "mlxterp_agent", "typer")) == []


def test_only_the_model_fetcher_in_the_library_starts_a_process():
    library = [path for path in _files(ROOT / "mlxterp") if path.name not in ("bundled.py", "fetch.py")]

    assert _offenders(library, ("subprocess", "multiprocessing")) == []


def test_the_machinery_never_imports_mlx():
    knows_mlx = ("mlx", "mlx_lm", "mlxterp.core", "mlxterp.causal", "mlxterp.bundled", "mlxterp.metrics")

    assert _offenders(_files(ROOT / "agent"), knows_mlx) == []


def test_the_contract_and_the_results_never_import_mlx():
    plain = _files(*(ROOT / "mlxterp" / name for name in PLAIN if (ROOT / "mlxterp" / name).exists()))
    knows_mlx = ("mlx", "mlx_lm", "mlxterp.core", "mlxterp.causal", "mlxterp.bundled", "mlxterp.metrics")

    assert _offenders(plain, knows_mlx) == []


@pytest.mark.parametrize(
    "module",
    ["mlxterp", "mlxterp.autointerpret", "mlxterp.results", "mlxterp.reports", "mlxterp_agent.cli"],
)
def test_importing_what_needs_no_model_leaves_mlx_unloaded(module):
    code = (
        f"import sys, {module}; print(sorted(m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm')))"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"
