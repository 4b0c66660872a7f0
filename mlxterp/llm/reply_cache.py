"""Replies cached on disk, so that no reply is paid for twice.

A reply is committed before it is returned: a run that is killed and started again repeats only the calls that
were open. The file holds the sha256 of each question and its answer, never the question's texts or a key. A
refusal or a cut-off answer is cached too: it was paid for, and the same question gives the same again.
Several processes may share a file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlxterp.errors import ReplyCacheError
from mlxterp.llm.completer import Completer, Reply, Request
from mlxterp.llm.prices import Tokens
from mlxterp.models.fetch import cache_dir

_WAIT = 30.0
"""Seconds for another process that writes to the same file."""

_FORM = 1
"""The version of the table; a file with another one is not touched."""

_TABLES = (
    """CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, text TEXT NOT NULL,
    stop_reason TEXT NOT NULL, tokens TEXT NOT NULL, usd REAL NOT NULL, estimated INTEGER NOT NULL
)""",
    "CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, model TEXT NOT NULL, keys TEXT NOT NULL)",
)


class ReplyCache:
    """A SQLite file of replies by the digest of their question.

    Args:
        path: the file; made with its directory. By default `replies.sqlite` in the library's cache directory
            (MLXTERP_CACHE, or the user's).

    Raises:
        ReplyCacheError: the file is not a reply cache, or cannot be written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = cache_dir() / "replies.sqlite" if path is None else Path(path)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        with self._opened():
            pass

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database, for one thread at a time; opened at first use."""
        with self._lock:
            try:
                if self._db is None:
                    self._db = self._open()
                yield self._db
            except (OSError, sqlite3.Error) as problem:
                raise ReplyCacheError(
                    f"replies cannot be cached in {self.path} ({problem}). Choose a file that can be written "
                    "(MLXTERP_CACHE names the default's directory), or move this one elsewhere."
                ) from problem

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Each run of the event loop may be in its own thread; the lock serialises them.
        db = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("BEGIN IMMEDIATE")  # so that of two processes one makes the table
            form = db.execute("PRAGMA user_version").fetchone()[0]
            foreign = form == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if form == 0 and not foreign:
                for table in _TABLES:
                    db.execute(table)
                db.execute(f"PRAGMA user_version={_FORM}")
                form = _FORM
            db.execute("COMMIT")
            if form != _FORM:
                raise ReplyCacheError(
                    f"replies cannot be cached in {self.path}: it is a database of form {form}, and this "
                    f"version reads form {_FORM}. Choose another file."
                )
            db.execute("PRAGMA journal_mode=WAL")
        except BaseException:
            db.close()
            raise
        return db

    def get(self, key: str) -> Reply | None:
        """The cached reply, or None."""
        with self._opened() as db:
            row = db.execute(
                "SELECT text, stop_reason, tokens, usd, estimated FROM replies WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        text, stop_reason, tokens, usd, estimated = row
        return Reply(text, stop_reason, Tokens(*json.loads(tokens)), usd, bool(estimated), cached=True)

    def put(self, key: str, reply: Reply, *, model: str, version: str) -> None:
        """Adds a reply; on disk when this returns."""
        tokens = json.dumps(reply.tokens)
        row = (key, model, version, reply.text, reply.stop_reason, tokens, reply.usd, reply.estimated)
        with self._opened() as db:
            db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def batches(self, model: str) -> dict[str, list[str]]:
        """Batches that were sent to the service and not fetched yet: their ids, and the keys in each."""
        with self._opened() as db:
            rows = db.execute("SELECT id, keys FROM batches WHERE model = ?", (model,)).fetchall()
        return {batch: json.loads(keys) for batch, keys in rows}

    def add_batch(self, batch: str, keys: Sequence[str], *, model: str) -> None:
        """Records a batch that was sent; on disk when this returns."""
        with self._opened() as db:
            db.execute(
                "INSERT OR REPLACE INTO batches VALUES (?, ?, ?)", (batch, model, json.dumps(list(keys)))
            )

    def drop_batch(self, batch: str) -> None:
        """Removes a batch whose replies were fetched."""
        with self._opened() as db:
            db.execute("DELETE FROM batches WHERE id = ?", (batch,))

    def __len__(self) -> int:
        with self._opened() as db:
            return int(db.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Closes the file; it is opened again when it is next used."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


class CachedCompleter:
    """A completer that passes to another one only the requests that the cache does not hold.

    Attributes:
        asked, kept: how many questions the other one answered, and how many the cache.
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
        self.cache.close()
        await self.completer.close()
