"""ACDC: automated circuit discovery (Conmy et al. 2023, Algorithm 1), edge by edge.

From the logits back to the first layer, each edge in turn is made to carry its sender's value on the
corrupted prompt. If that adds less than the threshold τ to the loss, the edge stays so; else it is kept:

    H ← all edges;  for each edge e, receivers from last to first:
        if loss(H \\ {e}) − loss(H) < τ:  H ← H \\ {e}

with loss = KL(clean run ‖ run of H) by default. A node without edges left needs no test of what it reads.

What lives here: what may be asked, and the loop. What doesn't: how edges are decided (`acdc_search.py`), the
file that keeps the decisions (`acdc_checkpoint.py`), how long it will take (`acdc_progress.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from mlxterp import metrics
from mlxterp.causal.circuits.acdc_checkpoint import Checkpoint
from mlxterp.causal.circuits.acdc_progress import AcdcProgress, Clock
from mlxterp.causal.circuits.acdc_search import Search
from mlxterp.causal.circuits.circuit import Circuit
from mlxterp.causal.circuits.edge_ablation import EdgeAblation
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.circuits.graph import Edge
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import Prompt
from mlxterp.causal.prompts.pair import PromptPair, as_pairs, prepare
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.results import CircuitResult

Progress: TypeAlias = Callable[[AcdcProgress], None]

__all__ = ["AcdcProgress", "acdc"]


def acdc(
    model: InterpretableModel,
    clean: Prompt | PromptPair | Sequence[PromptPair],
    corrupted: Prompt | None = None,
    *,
    threshold: float,
    metric: str | metrics.MetricFunction | metrics.Metric = "kl",
    answer: str | int | None = None,
    foil: str | int | None = None,
    align: Align = "strict",
    ablation: EdgeAblation = "corrupted",
    candidates: Iterable[Edge | str] | None = None,
    batch: int = 64,
    token_budget: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> CircuitResult:
    """The circuit that is left when every edge that adds less than `threshold` to the loss is removed.

    Args:
        clean: a prompt with `corrupted`, a PromptPair, or a list of them (the loss is the mean over pairs).
        align: as for `activation_patching`. At a position without a counterpart, an edge that was removed
            carries what the current run's sender writes there.
        ablation: what a removed edge carries: its sender's value on the corrupted prompt, as in the paper;
            "zero"; or "mean", over all prompts given. The circuit depends on it: under zero ablation what is
            the same on every prompt (positions, biases) is needed too.
        candidates: search among these edges only; the others are removed before the search, untested, and
            what that adds to the loss is in `measured_on`. By default every edge is searched.
        threshold: τ, in units of the metric. −inf keeps every edge, +inf none.
        metric: a distance from the clean run (`kl`, `l2`, `cosine`) is the loss itself; of a behaviour
            (`logit_diff`, `log_prob`, a callable), what is lost of it.
        batch: most edges tested at once; 1 tests them one by one. The result is the same.
        token_budget: bounds the memory of a batch; it may hold fewer edges than `batch` then.
        checkpoint: a file that keeps the decisions made so far; a search with the same arguments goes on
            from it.
        progress: told after each batch.

    Raises:
        SweepError: prompts of different lengths, or a checkpoint of another search.
        CapabilityUnavailable: this architecture's nodes cannot be run one by one.
    """
    if math.isnan(threshold) or batch < 1:
        raise SweepError(
            f"threshold={threshold} and batch={batch}. Give a threshold in units of the metric, and a batch "
            "of 1 or more."
        )
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
    search = Search(run, prepared, threshold, min(batch, run.rows_at_once), searched)
    saved = None if checkpoint is None else Checkpoint(Path(checkpoint), search)
    if saved is not None:
        saved.read()
    _to_the_end(search, saved, progress)
    return search.result()


def _to_the_end(search: Search, saved: Checkpoint | None, progress: Progress | None) -> None:
    clock = Clock(search.position)
    try:
        while search.position < len(search.order):
            search.step()
            if saved is not None:
                saved.write_now_and_then()
            if progress is not None:
                progress(clock.progress(search.position, len(search.order), len(search.effects)))
    finally:
        if saved is not None:
            saved.write()
