"""The Messages API as a script on loopback: the answers of the service, without the service.

    with MessagesStub([{"tool": "Read", "input": {"file_path": "a.md"}}, {"text": "done"}]) as stub:
        client = anthropic.Anthropic(base_url=stub.url, api_key=stub.key)
        ...
    stub.check()          # every `expect` held, and nothing was asked that the script does not know

Serves any client: the Python SDK (streamed or whole) and the Claude Code program. Lives here: the names. The
script is read in `scenario.py`, put on the wire in `wire.py`, served in `server.py`. It knows nothing of the
project, holds no real key and binds loopback only.
"""

from __future__ import annotations

from tests.messages_stub.requests import Request
from tests.messages_stub.scenario import Scenario, Step
from tests.messages_stub.server import MessagesStub

__all__ = ["MessagesStub", "Request", "Scenario", "Step"]
