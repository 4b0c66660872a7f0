"""Which researcher is taken, and what is said of a program or a service that cannot be used."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxterp_agent.exit_codes import ResearcherUnavailable
from mlxterp_agent.researchers import select
from mlxterp_agent.researchers.reach import why_unreachable
from mlxterp_agent.researchers.select import choose

PROGRAMS = {
    "logged out": """echo '{"loggedIn": false}'; exit 1""",
    "no auth command": """echo "error: unknown command 'auth'" >&2; exit 1""",
    "takes it for a prompt": """echo "Hello! How can I help?"; exit 1""",
    "hangs": "exec sleep 60",
}


@pytest.fixture
def claude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a program that stands in for `claude`."""
    path = tmp_path / "claude"
    monkeypatch.setenv(select.BINARY_ENV, str(path))
    monkeypatch.setattr(select, "_LOGIN_SECONDS", 0.5)
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return path


def made(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("logged out", "is not logged in. Run it once and log in"),
        (
            "no auth command",
            "does not know `auth status` (error: unknown command 'auth'). Update Claude Code",
        ),
        ("takes it for a prompt", "Update Claude Code (`claude update`)"),
        ("hangs", "Update Claude Code (`claude update`)"),
    ],
)
def test_a_client_that_cannot_be_used_says_why(claude, kind, said):
    made(claude, PROGRAMS[kind])

    with pytest.raises(ResearcherUnavailable) as refused:
        choose("claude")
    automatic = choose("auto")

    assert said in str(refused.value)
    assert automatic.researcher.name == "scripted"
    assert said in automatic.description


def test_a_deprecated_model_of_claude_code_names_its_successor_and_an_unknown_one_its_price(claude):
    made(claude, "exit 0")

    old, new, alias = (
        choose("claude", model=name).description
        for name in ("claude-sonnet-4-20250514", "claude-sonnet-9", "sonnet")
    )

    assert "claude-sonnet-5-5 replaces it" in old
    assert "its price is not known" in new
    assert "price" not in alias


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        yield taken.getsockname()[1]


def test_an_address_where_nobody_answers_is_named_without_its_password(monkeypatch, closed_port):
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)

    said = why_unreachable(f"http://user:secret@127.0.0.1:{closed_port}/v1")

    assert said is not None
    assert f"http://127.0.0.1:{closed_port} does not answer" in said
    assert "secret" not in said


def test_a_dead_proxy_is_named_without_its_password(monkeypatch, closed_port):
    monkeypatch.setenv("https_proxy", f"http://user:secret@127.0.0.1:{closed_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    said = why_unreachable("https://service.example")

    assert said is not None
    assert f"the proxy 127.0.0.1:{closed_port}, through which https://service.example is asked" in said
    assert "secret" not in said


@pytest.mark.parametrize("url", ["api.example.com", "ftp://a.example", "https://"])
def test_what_is_no_address_is_said(url):
    assert "is no address of a service" in (why_unreachable(url) or "")


def test_a_service_that_listens_is_reached(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        assert why_unreachable(f"http://127.0.0.1:{listening.getsockname()[1]}") is None
