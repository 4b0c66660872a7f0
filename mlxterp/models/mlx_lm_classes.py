"""The model classes of mlx-lm without what else `import mlx_lm` brings along.

`import mlx_lm` loads generation, conversion and `transformers`: more than a second, where the definition of a
llama takes 15 ms. Here the package `mlx_lm` is entered with its own `__init__` not run yet; it runs when a
name is asked of the package that is not there (`mlx_lm.load`, `from mlx_lm import generate`, `dir(mlx_lm)`).
The package and its submodules are the same objects before and after, so classes are never there twice.

Not here: which architectures there are, and loading weights.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType

_PACKAGE = "mlx_lm"


class _Unrun(ModuleType):
    """The package before its `__init__` has run; afterwards an ordinary module."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name not in ("__version__", "__all__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        _run(self, name)
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        _run(self, "__dir__")
        return dir(self)


_lock = threading.RLock()
_running: list[ModuleType] = []


def model_module(name: str) -> ModuleType:
    """The module `mlx_lm.models.<name>`.

    Raises:
        ModuleNotFoundError: mlx-lm has no such architecture.
    """
    if _PACKAGE not in sys.modules:
        _enter()
    return importlib.import_module(f"{_PACKAGE}.models.{name}")


def _enter() -> None:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("No module named 'mlx_lm': install mlx-lm.", name=_PACKAGE)
    package = importlib.util.module_from_spec(spec)
    _become(package, _Unrun)
    sys.modules[_PACKAGE] = package


def _run(package: ModuleType, wanted: str) -> None:
    """Run the package's own `__init__` in its own namespace, once; other threads wait for it."""
    with _lock:
        if type(package) is not _Unrun:  # another thread was first
            return
        if package in _running:  # an import inside `__init__` asks for what is not there yet
            raise AttributeError(f"module {package.__name__!r} has no attribute {wanted!r} yet")
        spec = package.__spec__
        if spec is None or spec.loader is None:
            raise ImportError(f"{package.__name__} has lost its loader", name=package.__name__)
        _running.append(package)
        try:
            spec.loader.exec_module(package)
        finally:
            _running.remove(package)
        _become(package, ModuleType)


def _become(package: ModuleType, kind: type[ModuleType]) -> None:
    package.__class__ = kind
