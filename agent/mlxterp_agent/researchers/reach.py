"""Whether a service can be reached at all: a wrong address or a dead proxy is named before a night begins.

One connection is opened and closed again; nothing is sent.
"""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlsplit

_SECONDS = 5.0
_PORTS = {"https": 443, "http": 80}


def why_unreachable(base_url: str) -> str | None:
    """Why no connection to this service, or to the proxy that the environment names for it, can be opened;
    None if one can. Takes at most five seconds. Holds no password of a proxy."""
    base = urlsplit(base_url)
    if base.scheme not in _PORTS or not base.hostname:
        return f"{_shown(base_url)} is no address of a service. Give http(s)://host"
    named = (
        None if urllib.request.proxy_bypass(base.hostname) else urllib.request.getproxies().get(base.scheme)
    )
    via = None if named is None else urlsplit(named if "://" in named else f"http://{named}")
    to = base if via is None else via
    port = to.port or _PORTS.get(to.scheme, 80)
    try:
        socket.create_connection((to.hostname or "", port), timeout=_SECONDS).close()
    except OSError as problem:
        why = problem.strerror or str(problem) or type(problem).__name__
        if via is None:
            return f"{_shown(base_url)} does not answer ({why}). Check the connection, and the base URL"
        return (
            f"the proxy {via.hostname}:{via.port}, through which {_shown(base_url)} is asked, does not "
            f"answer ({why}). Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
        )
    return None


def _shown(url: str) -> str:
    """An address without user, password, path and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else repr(url[:60])
