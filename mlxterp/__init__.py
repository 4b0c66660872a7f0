"""mlxterp: mechanistic interpretability on MLX.

Names are loaded when they are first used, so that `import mlxterp.autointerpret` does not load mlx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mlxterp._version import __version__

if TYPE_CHECKING:
    from mlxterp.causal.pair import PromptPair as PromptPair
    from mlxterp.core.model import InterpretableModel as InterpretableModel

_WHERE = {
    "InterpretableModel": "mlxterp.core.model",
    "PromptPair": "mlxterp.causal.pair",
}

__all__ = ["InterpretableModel", "PromptPair", "__version__"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'mlxterp' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
