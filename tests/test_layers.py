"""The directions of the house's imports, held by reading the code: which layer may know which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLAIN = (
    "errors.py",
    "text.py",
    "measurements.py",
    "other_libraries.py",
    "results",
    "plots",
    "reports",
    "_files.py",
    "autointerpret",
    "llm",
)


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


LAYERS = (
    (
        "errors",
        "_blas_at_import",
        "_files",
        "_version",
        "text",
        "measurements",
        "other_libraries",
        "progress",
        "progress",
    ),
    ("component_names", "models", "statistics", "llm"),
    ("results",),
    ("autointerpret",),
    ("plots",),
    ("reports",),
    ("core",),
    ("metrics",),
    ("causal",),
    ("conversation", "datasets", "sae"),
    ("auto_interp", "remeasure", "worlds"),
    ("selftest", "workflows"),
)
"""The rooms of `mlxterp` from the ground up: each imports from its own row and those above it in this table.
"""


def test_no_import_of_the_library_leads_up():
    height = {room: i for i, row in enumerate(LAYERS) for room in row}
    up = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _files(ROOT / "mlxterp")
        if (here := path.relative_to(ROOT / "mlxterp").parts[0].removesuffix(".py")) != "__init__"
        for name in sorted(_imports(path))
        if name.startswith("mlxterp.") and height.get(name.split(".")[1], 0) > height[here]
    ]

    assert up == []


def test_the_library_never_watches_files_or_touches_git_or_knows_the_machinery():
    library = _files(ROOT / "mlxterp")

    assert _offenders(library, ("git", "watchdog", "mlxterp_agent", "typer")) == []


def test_only_the_model_fetcher_in_the_library_starts_a_process():
    library = [path for path in _files(ROOT / "mlxterp") if path.name not in ("bundled.py", "fetch.py")]

    assert _offenders(library, ("subprocess", "multiprocessing")) == []


def test_the_machinery_never_imports_mlx():
    knows_mlx = (
        "mlx",
        "mlx_lm",
        "mlxterp.core",
        "mlxterp.causal",
        "mlxterp.remeasure",
        "mlxterp.selftest",
        "mlxterp.worlds",
        "mlxterp.models.bundled",
        "mlxterp.metrics",
    )

    assert _offenders(_files(ROOT / "agent"), knows_mlx) == []


def test_the_contract_and_the_results_never_import_mlx():
    plain = _files(*(ROOT / "mlxterp" / name for name in PLAIN if (ROOT / "mlxterp" / name).exists()))
    knows_mlx = (
        "mlx",
        "mlx_lm",
        "mlxterp.core",
        "mlxterp.causal",
        "mlxterp.remeasure",
        "mlxterp.selftest",
        "mlxterp.worlds",
        "mlxterp.models.bundled",
        "mlxterp.metrics",
    )

    assert _offenders(plain, knows_mlx) == []


def _defining_file(module: str, name: str) -> Path | None:
    """The file that a name is defined in: where a package only passes it on, the file behind that."""
    base = ROOT.joinpath(*module.split("."))
    for path in (base / f"{name}.py", base / name / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    package = base / "__init__.py"
    if not package.is_file():
        return None
    for node in ast.walk(ast.parse(package.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == name for a in node.names):
            return _defining_file(node.module, name)
    return package


def _uses(path: Path) -> set[Path]:
    """The files of the library that this one's imports lead to, also those inside functions."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mlxterp":
            found |= {f for a in node.names if (f := _defining_file(node.module, a.name)) is not None}
    return found - {path}


def test_no_file_of_results_plots_and_reports_leads_back_to_itself():
    files = _files(*(ROOT / "mlxterp" / name for name in ("results", "plots", "reports")))
    uses = {path: _uses(path) & set(files) for path in files}

    ready: set[Path] = set()
    while new := {path for path in files if path not in ready and uses[path] <= ready}:
        ready |= new

    assert {str(path.relative_to(ROOT)): [p.name for p in uses[path] - ready] for path in files} == {
        str(path.relative_to(ROOT)): [] for path in files
    }


def test_results_import_nothing_that_draws_them():
    files = _files(ROOT / "mlxterp" / "results")

    assert _offenders(files, ("mlxterp.plots", "mlxterp.reports", "matplotlib.pyplot", "jinja2")) == []


def test_figures_and_pages_know_what_there_is_to_see_and_no_kind_of_result():
    drawing = _files(ROOT / "mlxterp" / "plots", ROOT / "mlxterp" / "reports" / "page.py")
    shows = {"mlxterp.results.views", "mlxterp.results.markdown", "mlxterp.results"}
    known = {name for path in drawing for name in _imports(path) if name.startswith("mlxterp.results")}

    assert {n for n in known if n not in shows and not n.startswith("mlxterp.results.views.")} == set()


@pytest.mark.parametrize(
    "module",
    [
        "mlxterp",
        "mlxterp.autointerpret",
        "mlxterp.llm",
        "mlxterp.results",
        "mlxterp.reports",
        "mlxterp_agent.cli",
        "mlxterp_agent.supervisor.loop",
    ],
)
def test_importing_what_needs_no_model_leaves_mlx_and_scipy_unloaded(module):
    heavy = ("mlx", "mlx_lm", "scipy")  # scipy.stats alone is more than the rest of a supervisor: 70 MB
    code = f"import sys, {module}; print(sorted(m for m in sys.modules if m.split('.')[0] in {heavy}))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"


def test_what_a_measurement_imports_leaves_the_slow_parts_of_scipy_alone():
    """Every experiment and every replay is a process of its own; scipy.stats takes as long as the rest."""
    code = "import sys, mlxterp.remeasure.job; print({'scipy.stats', 'scipy.optimize'} & set(sys.modules))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "set()"
