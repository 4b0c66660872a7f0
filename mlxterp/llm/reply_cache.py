"""Replies kept on disk, so that what was paid for once is not paid for again.

A reply is committed before it is handed on: a run that is killed and started again asks only what was under
way. Kept are the sha256 of the question and the answer, never the question's texts and never a key. A refusal
or a cut-off answer is kept too: it was paid for, and asking again the same way gives the same. Several
processes may share a file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path

from mlxterp.errors import ReplyCacheError
from mlxterp.fetch import cache_dir
from mlxterp.llm.completer import Completer, Reply, Request
from mlxterp.llm.prices import Tokens

_WAIT = 30.0
"""Seconds for another process that writes to the same file."""

_FORM = 1
"""Of the table; a file with another is not touched."""

_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, text TEXT NOT NULL,
    stop_reason TEXT NOT NULL, tokens TEXT NOT NULL, usd REAL NOT NULL, estimated INTEGER NOT NULL
)"""


class ReplyCache:
    """A SQLite file of replies by the digest of their question.

    Args:
        path: the file; made with its directory. By default `replies.sqlite` in the library's cache directory
            (MLXTERP_CACHE, or the user's).

    Raises:
        ReplyCacheError: the file is something else, or cannot be written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = cache_dir() / "replies.sqlite" if path is None else Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Each run of the event loop may be in a thread of its own; the lock keeps them apart.
            self._db = sqlite3.connect(
                self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as problem:
            raise self._error(problem) from problem
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        try:
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("BEGIN IMMEDIATE")  # so that of two processes one makes the table
            form = self._db.execute("PRAGMA user_version").fetchone()[0]
            foreign = form == 0 and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if form == 0 and not foreign:
                self._db.execute(_TABLE)
                self._db.execute(f"PRAGMA user_version={_FORM}")
                form = _FORM
            self._db.execute("COMMIT")
            if form == _FORM:
                self._db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.Error as problem:
            raise self._error(problem) from problem
        if form != _FORM:
            raise ReplyCacheError(
                f"replies are to be kept in {self.path}; it is a database of form {form}, this version reads "
                f"form {_FORM}. Choose another file."
            )

    def get(self, key: str) -> Reply | None:
        """The kept reply, or None."""
        try:
            with self._lock:
                row = self._db.execute(
                    "SELECT text, stop_reason, tokens, usd, estimated FROM replies WHERE key = ?", (key,)
                ).fetchone()
        except sqlite3.Error as problem:
            raise self._error(problem) from problem
        if row is None:
            return None
        text, stop_reason, tokens, usd, estimated = row
        return Reply(text, stop_reason, Tokens(*json.loads(tokens)), usd, bool(estimated), cached=True)

    def put(self, key: str, reply: Reply, *, model: str, version: str) -> None:
        """Keeps a reply; on disk when this returns."""
        row = (
            key,
            model,
            version,
            reply.text,
            reply.stop_reason,
            json.dumps(reply.tokens),
            reply.usd,
            reply.estimated,
        )
        try:
            with self._lock:
                self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as problem:
            raise self._error(problem) from problem

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def _error(self, problem: Exception) -> ReplyCacheError:
        return ReplyCacheError(
            f"replies are to be kept in {self.path}; that fails ({problem}). "
            "Choose a file that can be written, or move this one away."
        )


class CachedCompleter:
    """A completer that asks another one only what the cache does not hold.

    Attributes:
        asked, kept: how many questions went to the other, and how many were answered from the cache.
    """

    def __init__(self, completer: Completer, cache: ReplyCache) -> None:
        self.completer = completer
        self.cache = cache
        self.asked = 0
        self.kept = 0

    @property
    def model(self) -> str:
        return self.completer.model

    async def complete(self, request: Request) -> Reply:
        key = request.digest(self.model)
        kept = self.cache.get(key)
        if kept is not None:
            self.kept += 1
            return kept
        reply = await self.completer.complete(request)
        self.asked += 1
        self.cache.put(key, reply, model=self.model, version=request.version)
        return reply

    async def close(self) -> None:
        await self.completer.close()
