"""Gives MLX its fast BLAS when it is loaded, whoever loads it after `import mlxterp`.

`import mlxterp` leaves mlx unloaded, so that the contract and the command stay light. `mlxterp.core`
installs the BLAS (`core/linux_blas`), but a notebook that imports mlxterp and multiplies matrices with
`mlx.core` never comes past it. So a finder waits for `mlx.core` on the import path, and imports
`mlxterp.core` behind it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MLX = "mlx.core"


def install_with_mlx() -> None:
    """On Linux: at once if MLX is loaded, else when it is. Does nothing the second time."""
    if sys.platform != "linux" or any(isinstance(finder, _Waits) for finder in sys.meta_path):
        return
    if MLX in sys.modules:
        _install()
    else:
        sys.meta_path.insert(0, _Waits())


def _install() -> None:
    importlib.import_module("mlxterp.core")


class _Waits(MetaPathFinder):
    """Finds `mlx.core` as everybody else does, once, and has the BLAS installed behind it."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the import system gives both by name
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname != MLX:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenInstalls(spec.loader)
        return spec


class _ThenInstalls(Loader):
    """The loader that was found; afterwards the module has it back."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        _install()
