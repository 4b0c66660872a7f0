"""mlxterp: mechanistic interpretability on MLX.

Names are loaded when they are first used, so that `import mlxterp.autointerpret` does not load mlx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mlxterp._blas_at_import import install_with_mlx
from mlxterp._version import __version__

if TYPE_CHECKING:
    from mlxterp.causal.prompts.pair import PromptPair as PromptPair
    from mlxterp.conversation import Turn as Turn
    from mlxterp.conversation import chat as chat
    from mlxterp.conversation import generation_result as generation_result
    from mlxterp.conversation import turn_patching as turn_patching
    from mlxterp.conversation import turns as turns
    from mlxterp.core.model import InterpretableModel as InterpretableModel

_WHERE = {
    "InterpretableModel": "mlxterp.core.model",
    "PromptPair": "mlxterp.causal.prompts.pair",
    "Turn": "mlxterp.conversation",
    "chat": "mlxterp.conversation",
    "generation_result": "mlxterp.conversation",
    "turn_patching": "mlxterp.conversation",
    "turns": "mlxterp.conversation",
}

__all__ = [
    "InterpretableModel",
    "PromptPair",
    "Turn",
    "__version__",
    "chat",
    "generation_result",
    "turn_patching",
    "turns",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        other_libraries = importlib.import_module("mlxterp.other_libraries")  # `from` would ask here again
        known = other_libraries.instead(other_libraries.PACKAGE, "mlxterp", name)
        raise AttributeError(
            known or f"module 'mlxterp' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


install_with_mlx()
