"""Activations of a model over texts, to train on: streamed, or computed once and cached on disk.

One pass of the model that stops behind the last hook point asked for. Left out are padding and the tokens
that never count (`mlxterp.sae.texts`). Features of a trained SAE are in `mlxterp.sae.feature_store`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.finite import require_finite_activations
from mlxterp.core.hook_points import parse
from mlxterp.core.linux_blas import blas
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Padded, pad
from mlxterp.errors import SAEError, TooLittleData
from mlxterp.models.fetch import SCRATCH, cache_dir, publish
from mlxterp.sae import training_texts
from mlxterp.sae.texts import OUTLIER, special_ids, texts_digest
from mlxterp.sae.training.source import (
    ActivationSource,
    ArrayActivations,
    Block,
    Floats,
    to_bfloat16_bits,
    widened,
)

_LOCK = "lock"


@contextmanager
def scratch(home: Path) -> Iterator[Path]:
    """A temporary folder in `home`; folders of dead processes are removed first.

    A process holds a lock on a file in its folder, which the system drops when the process ends, however it
    ends. A folder gets its name only when the lock is held, so one whose lock is free belongs to a dead
    process. One without a lock, or on a file system without locks, is left alone.
    """
    for folder in home.glob(f"{SCRATCH}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=".begun-", dir=home))
    lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        if not _locked(lock):
            (made / _LOCK).unlink()
        made = made.rename(made.with_name(made.name.replace(".begun-", SCRATCH, 1)))
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _is_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _locked(lock)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    """Whether this file descriptor got the lock; False where the file system has none."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


Ids = NDArray[np.int64]
TokenProgress = Callable[[int, int], None]  # tokens done, tokens in all

_CALIBRATION_ROWS = 64
_FACTS = "activations.json"


@dataclass(frozen=True, eq=False)
class StreamedActivations(ActivationSource):
    """Activations computed while they are trained on; nothing is stored.

    An epoch is every text once, in a shuffled order; the tokens of about `block_tokens` tokens' worth of
    texts are shuffled together, in memory as bfloat16, while the block before is trained on.

    Args:
        model: whose activations.
        texts: one string a document.
        hook_points: one, or several for several SAEs or a transcoder: "L15.resid_post".
        context: tokens a row; a longer text becomes several rows, each begun anew.
        batch_tokens: tokens of a forward.
        block_tokens: tokens that are shuffled together: 64 batches of 4,096.
        outlier: tokens are left out whose activation is longer than this many times the median.

    Raises:
        TooLittleData: no texts, or none with two tokens.
        UnknownHookPoint, CapabilityUnavailable: the model has no such place.
    """

    model: InterpretableModel
    texts: Sequence[str]
    hook_points: Sequence[str] | str
    context: int = 128
    batch_tokens: int = 4096
    block_tokens: int = 262_144
    outlier: float = OUTLIER
    model_name: str = field(init=False)
    digest: str = field(init=False)
    _rows: list[Ids] = field(init=False, repr=False)
    _text_of: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not self.texts:
            raise TooLittleData("No texts. Give a list of strings, one a document.")
        if self.context < 2:
            raise SAEError(
                f"context = {self.context}; the first token of a row is left out. Choose 2 or more."
            )
        places = (self.hook_points,) if isinstance(self.hook_points, str) else self.hook_points
        object.__setattr__(self, "hook_points", tuple(str(parse(place)) for place in places))
        for place in self.hook_points:
            self.model.architecture.require_point(parse(place))
        rows = [(i, row) for i, text in enumerate(self.texts) for row in self._pieces(text)]
        object.__setattr__(self, "_rows", [row for _, row in rows])
        object.__setattr__(self, "_text_of", [i for i, _ in rows])
        object.__setattr__(self, "model_name", self.model.name)
        object.__setattr__(self, "digest", self._content())
        if not self.n_tokens:
            raise TooLittleData(
                f"{len(self.texts)} texts without a token that counts: first ones of a row and special ones "
                "are left out. Give longer texts."
            )

    @property
    def points(self) -> tuple[str, ...]:
        return tuple(self.hook_points)

    @cached_property
    def n_tokens(self) -> int:
        return sum(int(_counts(row, self._special).sum()) for row in self._rows)

    @cached_property
    def _special(self) -> tuple[int, ...]:
        return special_ids(self.model)

    def _content(self) -> str:
        seen = hashlib.sha256(self.model.digest.encode())
        seen.update(json.dumps([list(self.hook_points), self.context, self.outlier]).encode())
        for row in self._rows:
            seen.update(len(row).to_bytes(4, "little") + row.tobytes())
        return seen.hexdigest()

    def facts(self) -> dict[str, Any]:
        return super().facts() | {
            "texts": len(self.texts),
            "texts_digest": texts_digest(self.texts),
            training_texts.KEY: training_texts.record(self.texts),
            "context": self.context,
            "left out": "padding, first token of a row, special tokens, "
            f"norms above {self.outlier:g} times the median",
        }

    def blocks(self, *, seed: int, epoch: int, first: int = 0) -> Iterator[Block]:
        order = np.random.default_rng((seed, epoch)).permutation(len(self._rows))
        for index, rows in enumerate(_grouped([self._rows[i] for i in order], self.block_tokens)):
            if index < first:
                continue
            # bfloat16 halves the memory of the largest thing that a training holds.
            parts = [
                {place: to_bfloat16_bits(x) for place, x in part.items()} for part in self.forwards(rows)
            ]
            whole = {place: np.concatenate([part[place] for part in parts]) for place in self.hook_points}
            n = len(whole[self.hook_points[0]])
            mixed = np.random.default_rng((seed, epoch, index)).permutation(n)
            yield {place: widened(array[mixed]) for place, array in whole.items()}

    def sample(self, n: int, *, seed: int) -> Block:
        """About `n` tokens of rows from all over the texts: no more than that is computed."""
        rows: list[Ids] = []
        have = 0
        for i in np.random.default_rng((seed, 0)).permutation(len(self._rows)):
            rows.append(self._rows[i])
            have += len(self._rows[i])
            if have >= 1.1 * n:
                break
        parts = list(self.forwards(rows))
        whole = {place: np.concatenate([part[place] for part in parts]) for place in self.hook_points}
        mixed = np.random.default_rng((seed, 1)).permutation(len(whole[self.hook_points[0]]))[:n]
        return {place: array[mixed] for place, array in whole.items()}

    def rows_of_text(self, text: int) -> list[Ids]:
        """Its token ids in pieces of at most `context`; pieces of one token are left out."""
        return [row for row, of in zip(self._rows, self._text_of, strict=True) if of == text]

    def of_text(self, text: int) -> Block:
        """The activations of one text, in order of its tokens, as float32."""
        parts = list(self.forwards(self.rows_of_text(text)))
        none = [np.zeros((0, self.model.d_model), np.float32)]
        return {place: np.concatenate([p[place] for p in parts] or none) for place in self.hook_points}

    def counted(self, batch: Padded) -> NDArray[np.bool_]:
        """[batch, pos], which tokens count, as far as the tokens alone say it."""
        return batch.mask & np.stack([_counts(row, self._special) for row in batch.tokens])

    def usual(self, activations: Mapping[str, Floats]) -> NDArray[np.bool_]:
        """[n], whether none of a token's activations [n, width] is an outlier."""
        usual = np.ones(len(next(iter(activations.values()))), dtype=np.bool_)
        for place, x in activations.items():
            usual &= np.linalg.norm(x, axis=1) <= self._longest[place]
        return usual

    def _pieces(self, text: str) -> list[Ids]:
        if not text:
            return []
        ids = np.asarray(self.model.to_tokens(text)).reshape(-1)
        pieces = [ids[low : low + self.context] for low in range(0, len(ids), self.context)]
        return [piece for piece in pieces if len(piece) > 1]

    def forwards(self, rows: Sequence[Ids]) -> Iterator[Block]:
        """Activations of the tokens of these rows that count, longest rows first: a piece a forward."""
        for batch in _grouped(_by_length(rows), self.batch_tokens):
            found = self._forward(batch)
            keep = self.usual(found)
            yield {place: activations[keep] for place, activations in found.items()}

    def _forward(self, rows: Sequence[Ids]) -> Block:
        batch = pad(rows)
        at = mx.array(np.flatnonzero(self.counted(batch)))
        points = {place: parse(place) for place in self.hook_points}
        with blas.pinned_threads(), fast_math.used(self.model.architecture):
            # Logits are lazy and never evaluated, so layers behind the last point are not computed.
            _, captured = self.model.run(batch.tokens, capture=list(points.values()), lengths=batch.lengths)
            found = {}
            for place, point in points.items():
                x = captured[point]
                found[place] = x.reshape(x.shape[0] * x.shape[1], -1)[at].astype(mx.float32)
            mx.eval(found)
        require_finite_activations(self.model, found)
        return {place: np.array(x) for place, x in found.items()}

    @cached_property
    def _longest(self) -> dict[str, float]:
        """The norm at each hook point above which a token is left out: of rows from all over the texts."""
        chosen = np.linspace(0, len(self._rows) - 1, num=min(len(self._rows), _CALIBRATION_ROWS)).astype(int)
        found = self._forward([self._rows[i] for i in np.unique(chosen)])
        norms = {place: np.linalg.norm(x, axis=1) for place, x in found.items()}
        middle = {place: np.median(each) if len(each) else 0.0 for place, each in norms.items()}
        # Where most activations are 0 the median says nothing, and no token is left out.
        return {place: self.outlier * float(norm) if norm > 0 else np.inf for place, norm in middle.items()}


def cached_activations(
    model: InterpretableModel,
    texts: Sequence[str],
    hook_points: Sequence[str] | str,
    *,
    context: int = 128,
    batch_tokens: int = 4096,
    outlier: float = OUTLIER,
    path: str | Path | None = None,
    progress: TokenProgress | None = None,
) -> ArrayActivations:
    """The same activations as `StreamedActivations`, computed once and cached as bfloat16 on disk.

    The directory is named after the content (weights, tokens, places, what is left out), so a second call
    with the same makes no forward. 2 bytes a value: 1.2 GB for a million tokens of 576. Memory stays that of
    a few forwards; reading maps the file.

    Args:
        path: the directory of the caches; by default the user's cache directory.
        progress: called with (tokens done, tokens in all).
        Others as in `StreamedActivations`.
    """
    stream = StreamedActivations(
        model, texts, hook_points, context=context, batch_tokens=batch_tokens, outlier=outlier
    )
    home = Path(path) if path is not None else cache_dir() / "activations"
    folder = home / stream.digest[:24]
    if not (folder / _FACTS).is_file():
        home.mkdir(parents=True, exist_ok=True)
        with scratch(home) as made:
            ready = made / "ready"
            ready.mkdir()
            _write(stream, ready, progress)
            publish(ready, folder, lambda: (folder / _FACTS).is_file())
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    arrays = {
        place: np.memmap(folder / f"{place}.bf16", dtype=np.uint16, mode="r", shape=(facts["tokens"], width))
        for place, width in facts["widths"].items()
    }
    extra = stream.facts() | {"tokens": facts["tokens"]}
    return ArrayActivations(arrays, model_name=model.name, digest=stream.digest, extra=extra)


def _write(stream: StreamedActivations, folder: Path, progress: TokenProgress | None) -> None:
    widths: dict[str, int] = {}
    written = 0
    files = {place: (folder / f"{place}.bf16").open("wb") for place in stream.hook_points}
    try:
        for piece in stream.forwards(stream._rows):
            for place, array in piece.items():
                widths[place] = array.shape[1]
                files[place].write(to_bfloat16_bits(array).tobytes())
            written += len(piece[stream.hook_points[0]])
            if progress is not None:
                progress(written, stream.n_tokens)
    finally:
        for file in files.values():
            file.close()
    facts = {"tokens": written, "widths": widths}
    (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _counts(row: Ids, special: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which tokens of a row count; padding is the caller's to leave out."""
    counted: NDArray[np.bool_] = ~np.isin(row, special)
    counted[0] = False
    return counted


def _by_length(rows: Sequence[Ids]) -> list[Ids]:
    """Full rows first, in their order; then the others by length, so that little is padded."""
    return sorted(rows, key=len, reverse=True)


def _grouped(rows: Sequence[Ids], tokens: int) -> Iterator[list[Ids]]:
    """Rows one after the other, in groups of at most `tokens` tokens, or of one row."""
    group: list[Ids] = []
    have = 0
    for row in rows:
        if group and have + len(row) > tokens:
            yield group
            group, have = [], 0
        group.append(row)
        have += len(row)
    if group:
        yield group
