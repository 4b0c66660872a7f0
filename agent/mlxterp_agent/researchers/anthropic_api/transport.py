"""The HTTP client behind the API researcher: every call has one deadline for all of its bytes.

The SDK's timeout is per read: a body that drips a byte a second never meets it. Here each chunk looks at the
clock, and at whether the researcher is still wanted. Retries are off; they are `calls.py`'s.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    import anthropic

CONNECT_TIMEOUT = 15.0
READ_TIMEOUT = 120.0
"""Seconds without a byte after which a call is lost. A stream that is alive sends a ping every few
seconds."""


class Watched(httpx2.SyncByteStream):
    """A body whose every chunk calls `check` first, which raises when the call must end."""

    def __init__(self, inner: httpx2.SyncByteStream, check: Callable[[], None]) -> None:
        self._inner = inner
        self._check = check

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._inner:
            self._check()
            yield chunk

    def close(self) -> None:
        self._inner.close()


def client(
    api_key: str, base_url: str | None, check: Callable[[], None], *, read_timeout: float = READ_TIMEOUT
) -> anthropic.Anthropic:
    """A client of the Messages API at `base_url`, or at Anthropic's."""
    import anthropic

    def watch(response: httpx2.Response) -> None:
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = Watched(response.stream, check)

    # The driver says so itself, with the name of the successor, once.
    warnings.filterwarnings("ignore", message="The model .* is deprecated", category=DeprecationWarning)
    timeout = httpx2.Timeout(read_timeout, connect=CONNECT_TIMEOUT)
    return anthropic.Anthropic(
        api_key=api_key,
        base_url=base_url,
        max_retries=0,
        timeout=timeout,
        http_client=anthropic.DefaultHttpxClient(timeout=timeout, event_hooks={"response": [watch]}),
    )
