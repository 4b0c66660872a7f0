"""Model classes of mlx-lm come without the rest of it, and the rest still comes when it is asked for.

Each test is a process of its own: importing is what is tested. Most use a small package of that shape.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = {
    "__init__.py": """
        import time
        time.sleep(0.05)
        if (__import__("os").environ.get("BREAK")):
            import no_such_dependency
        from ._version import __version__
        from .generate import generate
        from .utils import load
        __all__ = ["__version__", "generate", "load"]
    """,
    "_version.py": "__version__ = '7.0'",
    "generate.py": "from . import utils\ndef generate(): pass",
    "utils.py": "from mlx_lm.models import llama\ndef load(): return llama.Model",
    "models/__init__.py": "",
    "models/llama.py": "from .base import Base\nclass Model(Base): pass",
    "models/base.py": "class Base: pass",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a package `mlx_lm` of the same shape as the real one."""
    root = tmp_path_factory.mktemp("path")
    for name, text in PACKAGE.items():
        file = root / "mlx_lm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(line.removeprefix(" " * 8) for line in text.splitlines()))
    return root


def run(code: str, path: Path | None = None, **environment: str) -> str:
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_model_class_comes_without_transformers():
    code = """
import sys
from mlxterp.models.mlx_lm_classes import model_module
model_module("llama").Model
print("transformers" in sys.modules, "mlx_lm.generate" in sys.modules)
"""
    assert run(code) == "False False"


@pytest.mark.slow
def test_the_real_package_is_whole_when_it_is_used_later():
    code = """
import sys
from mlxterp.models.mlx_lm_classes import model_module
llama = model_module("llama")
from mlx_lm import load, stream_generate
import mlx_lm, mlx_lm.models.llama
from mlx_lm.utils import _get_classes
assert mlx_lm.load is load is mlx_lm.utils.load
assert mlx_lm.models.llama is llama is sys.modules["mlx_lm.models.llama"] is model_module("llama")
assert _get_classes({"model_type": "llama"})[0] is llama.Model
print(mlx_lm.__version__ == mlx_lm._version.__version__, type(mlx_lm).__name__)
"""
    assert run(code) == "True module"


@pytest.mark.parametrize(
    "later",
    [
        "import mlx_lm; mlx_lm.load",
        "from mlx_lm import load, generate",
        "from mlx_lm import *; load",
        "import mlx_lm; assert {'load', '__version__'} <= set(dir(mlx_lm))",
        "import mlx_lm.utils; mlx_lm.utils.load; import mlx_lm; mlx_lm.load",
        "import mlx_lm; assert mlx_lm.__version__ == '7.0'",
    ],
)
def test_any_way_of_using_the_package_later_gives_all_of_it(small: Path, later: str):
    code = f"""
import sys
from mlxterp.models.mlx_lm_classes import model_module
llama = model_module("llama")
before = sys.modules["mlx_lm"]
assert "load" not in vars(before)
{later}
import mlx_lm
assert mlx_lm is before is sys.modules["mlx_lm"]
assert mlx_lm.load() is llama.Model
assert mlx_lm.models.llama is llama is model_module("llama")
print(type(mlx_lm).__name__)
"""
    assert run(code, small) == "module"


def test_a_name_that_the_package_does_not_have_is_still_an_attribute_error(small: Path):
    code = """
from mlxterp.models.mlx_lm_classes import model_module
model_module("llama")
import mlx_lm
for attempt in range(2):
    try:
        mlx_lm.no_such_name
    except AttributeError as error:
        print(error)
"""
    assert run(code, small).splitlines() == ["module 'mlx_lm' has no attribute 'no_such_name'"] * 2


def test_when_the_package_is_already_there_it_is_used_as_it_is(small: Path):
    code = """
import mlx_lm
from mlxterp.models.mlx_lm_classes import model_module
print(type(mlx_lm).__name__, model_module("llama") is mlx_lm.models.llama)
"""
    assert run(code, small) == "module True"


def test_several_threads_get_the_whole_package(small: Path):
    code = """
import threading
from mlxterp.models.mlx_lm_classes import model_module
model_module("llama")
import mlx_lm
got = []
threads = [threading.Thread(target=lambda: got.append(mlx_lm.load)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(got == [mlx_lm.load] * 4)
"""
    assert run(code, small) == "True"


def test_an_error_in_the_package_is_raised_each_time_rather_than_hidden(small: Path):
    code = """
from mlxterp.models.mlx_lm_classes import model_module
model_module("llama")
import mlx_lm
for attempt in range(2):
    try:
        mlx_lm.load
    except ImportError as error:
        print(error.name)
"""
    assert run(code, small, BREAK="1").splitlines() == ["no_such_dependency"] * 2


def test_an_architecture_that_mlx_lm_does_not_have_is_an_import_error():
    code = """
from mlxterp.models.mlx_lm_classes import model_module
try:
    model_module("no_such_family")
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(code) == "mlx_lm.models.no_such_family"
