"""Requests to a language model behind an API, their replies and their cost.

Contains: `Completer`, the protocol of such a model; Claude as a completer, call by call
(`anthropic_completer.py`) or in batches (`batches.py`); the client under both and under the researcher of
`mlxterp_agent` (`client.py`, `stream.py`), with one table of faults (`faults.py`) and one accounting of money
(`spending_limit.py`, `prices.py`); replies cached on disk (`reply_cache.py`); running it from code that is
not async (`sync.py`). See `mlxterp.auto_interp` for the questions about features.

Imports no mlx, and loads the anthropic package only at the first request.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mlxterp.llm.prices import DEFAULT_MODEL

if TYPE_CHECKING:
    from mlxterp.llm.anthropic_completer import AnthropicCompleter as AnthropicCompleter
    from mlxterp.llm.batches import BatchCompleter as BatchCompleter
    from mlxterp.llm.completer import Completer as Completer
    from mlxterp.llm.completer import Reply as Reply
    from mlxterp.llm.completer import Request as Request
    from mlxterp.llm.completer import ScriptedCompleter as ScriptedCompleter
    from mlxterp.llm.completer import Unusable as Unusable
    from mlxterp.llm.completer import read as read
    from mlxterp.llm.reply_cache import CachedCompleter as CachedCompleter
    from mlxterp.llm.reply_cache import ReplyCache as ReplyCache
    from mlxterp.llm.sync import run as run
    from mlxterp.llm.sync import together as together

_WHERE = {
    "AnthropicCompleter": "anthropic_completer",
    "BatchCompleter": "batches",
    "CachedCompleter": "reply_cache",
    "Completer": "completer",
    "ReplyCache": "reply_cache",
    "Reply": "completer",
    "Request": "completer",
    "ScriptedCompleter": "completer",
    "Unusable": "completer",
    "read": "completer",
    "run": "sync",
    "together": "sync",
}

__all__ = [
    "DEFAULT_MODEL",
    "AnthropicCompleter",
    "BatchCompleter",
    "CachedCompleter",
    "Completer",
    "Reply",
    "ReplyCache",
    "Request",
    "ScriptedCompleter",
    "Unusable",
    "read",
    "run",
    "together",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'mlxterp.llm' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"mlxterp.llm.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
