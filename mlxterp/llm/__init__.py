"""Questions to a language model behind an API: what is asked, what came back, what it cost.

Lives here: `Completer`, the one thing the library needs of such a model; Claude behind it, call by call
(`client.py`) or in batches (`batches.py`), and what both share (`client.py`); the fake that tests use
(`scripted.py`); what faults mean (`faults.py`), the money (`spending_limit.py`, `prices.py`), replies kept on
disk (`reply_cache.py`), the way in for code that is not async (`sync.py`). Does not live here: what is asked
about features (`mlxterp.auto_interp`), the researcher that talks with tools all night (`mlxterp_agent`).

Knows no mlx, and loads the anthropic package only when it is asked something.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mlxterp.llm.prices import DEFAULT_MODEL

if TYPE_CHECKING:
    from mlxterp.llm.batches import BatchCompleter as BatchCompleter
    from mlxterp.llm.client import AnthropicCompleter as AnthropicCompleter
    from mlxterp.llm.completer import Completer as Completer
    from mlxterp.llm.completer import Reply as Reply
    from mlxterp.llm.completer import Request as Request
    from mlxterp.llm.completer import Unusable as Unusable
    from mlxterp.llm.completer import read as read
    from mlxterp.llm.reply_cache import CachedCompleter as CachedCompleter
    from mlxterp.llm.reply_cache import ReplyCache as ReplyCache
    from mlxterp.llm.scripted import ScriptedCompleter as ScriptedCompleter
    from mlxterp.llm.sync import run as run
    from mlxterp.llm.sync import together as together

_WHERE = {
    "AnthropicCompleter": "client",
    "BatchCompleter": "batches",
    "CachedCompleter": "reply_cache",
    "Completer": "completer",
    "ReplyCache": "reply_cache",
    "Reply": "completer",
    "Request": "completer",
    "ScriptedCompleter": "scripted",
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
