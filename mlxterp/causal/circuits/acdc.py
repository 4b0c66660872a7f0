r"""ACDC: automated circuit discovery (Conmy et al. 2023, Algorithm 1), edge by edge.

From the logits back to the first layer, each edge in turn is made to carry its sender's value on the
corrupted prompt. If that adds less than the threshold τ to the loss, the edge stays so; else it is kept:

    H ← all edges;  for each edge e, receivers from last to first:
        if loss(H \ {e}) − loss(H) < τ:  H ← H \ {e}

with loss = KL(clean run ‖ run of H) by default. A node without edges left needs no test of what it reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.circuits.circuit import Circuit
from mlxterp.causal.circuits.edge_patching import DESCRIBED, EdgeAblation, EdgeRun, Mask
from mlxterp.causal.circuits.graph import Edge
from mlxterp.causal.finite import require_finite
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import Prompt
from mlxterp.causal.prompts.pair import MetricLike, Pairs, Prepared, as_pairs, prepare
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.measurements import recorder
from mlxterp.results import CircuitEdge, CircuitResult, EdgeScoresResult


@dataclass(frozen=True)
class AcdcProgress:
    """The progress of a search.

    Attributes:
        done, edges: decided, and in all.
        kept: how many of those decided were kept.
        seconds: since this call began.
        seconds_left: at the pace of the last quarter of the time; before the first decision, a guess from the
            time of one whole run.
    """

    done: int
    edges: int
    kept: int
    seconds: float
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"{self.done:,} of {self.edges:,} edges, {self.kept} kept, {self.seconds:.0f} s, about "
            f"{self.seconds_left:.0f} s left"
        )


class Clock:
    """Estimates the time left, at the pace of the last quarter of the time so far.

    Args:
        whole_run: seconds of a run that nothing was known of, from which the first estimate is made.
    """

    def __init__(self, done: int, whole_run: float) -> None:
        self._marks, self._whole_run = [(time.perf_counter(), done)], whole_run

    def progress(self, done: int, edges: int, kept: int) -> AcdcProgress:
        now = time.perf_counter()
        self._marks.append((now, done))
        begin, first = self._marks[0]
        if done == first:
            return AcdcProgress(done, edges, kept, 0.0, self._whole_run * RUNS_PER_EDGE * (edges - done))
        recent = next(mark for mark in self._marks if mark[0] >= begin + 0.75 * (now - begin))
        since, before = recent if recent[1] < done else self._marks[0]
        left = (now - since) / (done - before) * (edges - done)
        return AcdcProgress(done, edges, kept, now - begin, left)


RUNS_PER_EDGE = 0.12
"""Whole runs that deciding an edge takes as long as: 1,000 edges of SmolLM2-135M took 125 (IOI, 4 pairs)."""
RECENT = 200
"""Decisions that tell which edges to expect to be kept."""
FIRST_BATCH = 4
"""Edges in the first batch; a batch doubles after one without a surprise, and halves after one cut short."""


class Expectation:
    """Which edges are expected to be kept: those with estimates from a cut on.

    It decides what is computed together with what, never what is kept. The cut is τ at first, then the one
    that would have been wrong least often about the last edges.

    Args:
        growth: of the loss when an edge is removed, estimated, `[edges]`; None expects that every edge goes.
    """

    def __init__(self, growth: NDArray[np.float64] | None, n_edges: int, threshold: float) -> None:
        self._growth, self._cut = growth, threshold
        self._none: Mask = np.zeros(n_edges, dtype=bool)
        self._tested: deque[tuple[float, bool]] = deque(maxlen=RECENT)

    def kept(self) -> Mask:
        """The edges that are expected to be kept."""
        if self._growth is None:
            return self._none
        if len(self._tested) >= FIRST_BATCH**2:
            growth, kept = np.array(sorted(self._tested)).T
            # wrong about the kept ones below a cut, and the removed ones above it
            wrong = np.concatenate([[0], np.cumsum(kept)]) + np.concatenate(
                [np.cumsum((1 - kept)[::-1])[::-1], [0]]
            )
            self._cut = float([*growth, np.inf][int(np.argmin(wrong))])
        return np.asarray(self._growth >= self._cut)

    def learn(self, edge: int, *, kept: bool) -> None:
        """Takes note of a decision."""
        if self._growth is not None:
            self._tested.append((float(self._growth[edge]), kept))


class Search:
    """The decisions made so far: edges before `position` of `order`. Edges not `searched` are removed
    first."""

    def __init__(
        self,
        run: EdgeRun,
        prepared: Prepared,
        threshold: float,
        most: int,
        searched: Mask | None,
        expectation: Expectation,
    ) -> None:
        graph = run.graph
        self.run, self.prepared, self.threshold, self.most = run, prepared, threshold, most
        self.edges: tuple[Edge, ...] = tuple(graph.edges())
        self.searched = np.ones(run.n_edges, dtype=bool) if searched is None else searched
        self.order = np.flatnonzero(self.searched)[::-1]
        at = {node: i for i, node in enumerate(graph.senders)}
        readers = {r: [at[n] for n in graph.readers(r)] for r, _ in graph.receivers}
        self.sender = np.array([at[edge.sender] for edge in self.edges])
        self.readers = [readers[edge.receiver] for edge in self.edges]
        self.position = 0
        self.removed: Mask = ~self.searched
        # how many edges of each sender are still in the circuit
        self.uses = np.bincount(self.sender[self.order], minlength=len(graph.senders))
        self.effects: dict[int, float] = {}
        self.tested = 0
        self.size = min(FIRST_BATCH, most)
        self.expectation = expectation
        begin = time.perf_counter()
        self.run.start_from(self.removed)
        self.loss = self.first_loss = float(self.losses(self.removed[None])[0])
        self.whole_run = time.perf_counter() - begin

    def losses(self, removed: Mask) -> NDArray[np.float64]:
        """The loss of each row of removed edges, as a mean over the pairs."""
        metric, targets = self.prepared.metric, self.prepared.targets
        values = [float(metric(logits, targets).mean()) for logits in self.run.logits(removed)]
        require_finite(
            values,
            lambda i: f"{int(removed[i].sum()):,} edges removed",
            f"{metric.name} of circuits",
            "The logits are finite, so it is the metric: keep what it divides by away from 0.",
        )
        return np.array(values) if "clean_logits" in metric.needs else -np.array(values)

    def step(self) -> None:
        """Tests one batch of edges, and decides up to the first that is not as expected."""
        self.expected = self.expectation.kept()
        places = self._next(self.size)
        candidates = self.order[places]
        rows = np.repeat(self.removed[None], len(places), axis=0)
        for i, edge in enumerate(candidates):
            rows[i if self.expected[edge] else slice(i, None), edge] = True
        losses = self.losses(rows) if len(places) else np.empty(0)
        end = len(self.order) if len(places) < self.size else int(places[-1]) + 1
        surprised = False
        for place, edge, loss in zip(places.tolist(), candidates.tolist(), losses.tolist(), strict=True):
            self.tested += 1
            kept = not loss - self.loss < self.threshold
            if kept:
                self.effects[edge] = loss - self.loss
            else:
                self.loss = loss
            self.expectation.learn(edge, kept=kept)
            if surprised := kept != self.expected[edge]:
                end = place + 1
                break
        for edge in self.order[self.position : end].tolist():
            if edge not in self.effects:
                self.remove(edge)
        self.position = end
        self.run.start_from(self.removed)
        self.size = max(1, self.size // 2) if surprised else min(self.most, self.size * 2)

    def remove(self, edge: int) -> None:
        """Removes an edge from the circuit."""
        self.removed[edge] = True
        self.uses[self.sender[edge]] -= 1

    def _next(self, count: int) -> NDArray[np.int64]:
        """Places in `order` of the next edges to test, if each is kept or removed as expected.

        Edges into nodes that nothing reads any more are skipped.
        """
        uses, places = self.uses.copy(), []
        for place in range(self.position, len(self.order)):
            edge = self.order[place]
            readers = self.readers[edge]
            matters = not readers or any(uses[r] for r in readers)  # the logits have no readers
            if matters:
                places.append(place)
            uses[self.sender[edge]] -= not (matters and self.expected[edge])
            if len(places) == count:
                break
        return np.array(places, dtype=np.int64)

    def result(self) -> CircuitResult:
        """The edges that are left, with what their removal would have added to the loss."""
        prepared, metric = self.prepared, self.prepared.metric
        left = np.flatnonzero(~self.removed)
        distance = "clean_logits" in metric.needs
        edges = [self.edges[i] for i in left]
        recorder.add_method("acdc", pairs=len(prepared.pairs))
        return CircuitResult(
            edges=tuple(
                CircuitEdge(
                    sender=str(e.sender), receiver=str(e.receiver), into=e.into, effect=self.effects[int(i)]
                )
                for i, e in zip(left, edges, strict=True)
            ),
            method="acdc",
            threshold=self.threshold,
            metric=metric.name,
            clean_metric=float(prepared.clean_metric.mean()),
            corrupted_metric=float(prepared.corrupted_metric.mean()),
            circuit_metric=self.loss if distance else -self.loss,
            n_edges=len(self.edges),
            n_tested=self.tested,
            measured_on=prepared.measured_on(self.run.model)
            | {"ablation": DESCRIBED[self.run.ablation]}
            | self._searched_facts(),
        )

    def _searched_facts(self) -> dict[str, Any]:
        if self.searched.all():
            return {}
        return {
            "searched_edges": int(self.searched.sum()),
            "loss_of_all_searched_edges": self.first_loss,
        }


SAVE_EVERY = 10.0
"""Seconds between two writes of the checkpoint."""


class Checkpoint:
    """The decisions of a search in a JSON file, replaced as a whole."""

    def __init__(self, path: Path, search: Search) -> None:
        self._path, self._search, self._written = path, search, time.monotonic()

    def _settings(self) -> dict[str, Any]:
        search, prepared = self._search, self._search.prepared
        tokens = hashlib.sha256(prepared.clean.tobytes() + prepared.corrupted.tobytes())
        if prepared.targets.answers is not None:
            tokens.update(prepared.targets.answers.tobytes())
        if prepared.targets.foils is not None:
            tokens.update(prepared.targets.foils.tobytes())
        return {
            "schema": "mlxterp-acdc/2",
            "model": search.run.model.digest,
            "prompts": tokens.hexdigest(),
            "metric": prepared.metric.name,
            "threshold": repr(search.threshold),
            "n_edges": len(search.edges),
            "searched": hashlib.sha256(search.searched.tobytes()).hexdigest(),
            "alignment": repr(prepared.alignment.stated),
            "ablation": search.run.ablation,
        }

    def _baselines(self) -> list[float]:
        """The metric of every clean and corrupted run, which tells functions of one name apart."""
        prepared = self._search.prepared
        return [*map(float, prepared.clean_metric), *map(float, prepared.corrupted_metric)]

    def _same_baselines(self, saved: Any) -> bool:
        mine = self._baselines()
        if not isinstance(saved, list) or len(saved) != len(mine):
            return False
        tolerance = self._search.prepared.metric.tolerance
        return all(
            math.isclose(a, float(b), rel_tol=1e-4, abs_tol=tolerance)
            for a, b in zip(mine, saved, strict=True)
        )

    def read(self) -> None:
        """Restores the decisions in the file, if there is one."""
        if not self._path.exists():
            return
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise SweepError(
                f"{self._path} is no checkpoint of acdc: {problem}. Name another file."
            ) from problem
        mine = self._settings()
        other = data if isinstance(data, dict) else {}
        differs = [k for k in mine if other.get(k) != mine[k]]
        if not self._same_baselines(other.get("metric_on_both_runs")):
            differs.append("the metric's values on the clean and corrupted runs")
        if differs:
            differing = ", ".join(differs)
            raise SweepError(
                f"{self._path} holds another search: it differs in {differing}. Remove it, or name another "
                "file."
            )
        search = self._search
        search.effects = {int(edge): float(effect) for edge, effect in data["kept"].items()}
        search.position, search.tested, search.loss = data["position"], data["tested"], float(data["loss"])
        for edge in search.order[: search.position].tolist():
            if edge not in search.effects:
                search.remove(edge)
        search.run.start_from(search.removed)

    def write_if_due(self) -> None:
        """Writes them if the last time is `SAVE_EVERY` seconds ago."""
        if time.monotonic() - self._written >= SAVE_EVERY:
            self.write()

    def write(self) -> None:
        """Writes the decisions made so far."""
        search = self._search
        data = self._settings() | {
            "metric_on_both_runs": self._baselines(),
            "position": search.position,
            "tested": search.tested,
            "loss": repr(search.loss),
            "kept": {str(edge): repr(effect) for edge, effect in search.effects.items()},
        }
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        beside.write_text(json.dumps(data), encoding="utf-8")
        beside.replace(self._path)
        self._written = time.monotonic()


Progress: TypeAlias = Callable[[AcdcProgress], None]

__all__ = ["AcdcProgress", "acdc"]


def acdc(
    model: InterpretableModel,
    clean: Prompt | Pairs,
    corrupted: Prompt | None = None,
    *,
    threshold: float,
    metric: MetricLike = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    align: Align = "strict",
    ablation: EdgeAblation = "corrupted",
    candidates: Iterable[Edge | str] | None = None,
    estimates: EdgeScoresResult | None = None,
    batch: int = 64,
    token_budget: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> CircuitResult:
    """The circuit that is left when every edge that adds less than `threshold` to the loss is removed.

    Args:
        clean: a prompt with `corrupted`, a PromptPair, a list of them (the loss is the mean over pairs), or
            prepared pairs.
        align: as for `activation_patching`. At a position without a counterpart, an edge that was removed
            carries what the current run's sender writes there.
        ablation: what a removed edge carries: its sender's value on the corrupted prompt, as in the paper;
            "zero"; or "mean", over all prompts given. The circuit depends on it: under zero ablation what is
            the same on every prompt (positions, biases) is needed too.
        candidates: search among these edges only; the others are removed before the search, untested, and
            what that adds to the loss is in `measured_on`. By default every edge is searched.
        estimates: what `edge_attribution` found. Edges are tested in batches, each as if those before it were
            decided as expected; with estimates more is expected rightly, so that a batch decides more. The
            circuit is the same.
        threshold: τ, in units of the metric. −inf keeps every edge, +inf none.
        metric: a distance from the clean run (`kl`, `l2`, `cosine`) is the loss itself; of a behaviour
            (`logit_diff`, `log_prob`, a callable), what is lost of it. By default `kl`, or the metric of
            prepared pairs.
        batch: most edges tested at once; 1 tests them one by one. The result is the same.
        token_budget: bounds the memory of a batch; it may hold fewer edges than `batch` then.
        checkpoint: a file that keeps the decisions made so far; a search on the same weights and tokens, with
            the same settings and a metric of the same values on both runs, goes on from it.
        progress: called before the first batch, with an estimate, and after each.

    Raises:
        SweepError: prompts of different lengths, or a checkpoint of another search.
        CapabilityUnavailable: this architecture's nodes cannot be run one by one.
    """
    if math.isnan(threshold) or batch < 1:
        raise SweepError(
            f"threshold={threshold} and batch={batch}. Give a threshold in units of the metric, and a batch "
            "of 1 or more."
        )
    if metric is None and not isinstance(clean, Prepared):
        metric = "kl"
    prepared = prepare(model, as_pairs(clean, corrupted, answer=answer, foil=foil), metric, align=align)
    run = EdgeRun(
        model,
        prepared.clean,
        prepared.corrupted,
        positions=prepared.alignment.stated,
        ablation=ablation,
        suffix_only=True,
        token_budget=token_budget,
    )
    searched = None if candidates is None else run.mask(Circuit.of(candidates).edges)
    expectation = Expectation(_growth(run, prepared, estimates), run.n_edges, threshold)
    search = Search(run, prepared, threshold, min(batch, run.rows_at_once), searched, expectation)
    saved = None if checkpoint is None else Checkpoint(Path(checkpoint), search)
    if saved is not None:
        saved.read()
    clock = Clock(search.position, search.whole_run)

    def report() -> None:
        if progress is not None:
            progress(clock.progress(search.position, len(search.order), len(search.effects)))

    try:
        report()
        while search.position < len(search.order):
            search.step()
            if saved is not None:
                saved.write_if_due()
            report()
    finally:
        if saved is not None:
            saved.write()
    return search.result()


def _growth(run: EdgeRun, prepared: Prepared, scores: EdgeScoresResult | None) -> NDArray[np.float64] | None:
    """How much the loss grows by estimate when each edge is removed: its share of the gap."""
    if scores is None:
        return None
    if scores.edges != tuple(map(str, run.graph.edges())):
        raise SweepError(
            f"estimates of {len(scores.edges):,} edges are not those of the {run.n_edges:,} edges of "
            f"{run.model.name}. Give what edge_attribution found for this model."
        )
    gap = float((prepared.clean_metric - prepared.corrupted_metric).mean())
    return np.asarray(scores.scores * (-gap if "clean_logits" in prepared.metric.needs else gap))
