"""The researcher behind `--agent api`: a model of the Anthropic Messages API, or of any compatible service.

`researcher.py` is the driver, `calls.py` one question with its retries and its money, `service_faults.py`
what a fault means, `conversation.py` what is sent, `stream.py` what is heard, `tools.py` what the model can
do, `transport.py` the HTTP client, `supervisor_queue.py` what passes between its thread and the supervisor's.
What it costs is in `mlxterp.llm.prices`.

The driver is imported when it is asked for: with it comes the SDK, which takes a second, and others want the
prices only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxterp.llm.prices import DEFAULT_MODEL, deprecation, price_of

if TYPE_CHECKING:
    from mlxterp_agent.researchers.anthropic_api.researcher import ApiResearcher

__all__ = ["DEFAULT_MODEL", "ApiResearcher", "deprecation", "price_of"]


def __getattr__(name: str) -> Any:
    if name != "ApiResearcher":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlxterp_agent.researchers.anthropic_api.researcher import ApiResearcher

    return ApiResearcher
