"""`circuit_discovery`: a small set of edges that does what the model does.

Lives here: the steps and their order, which edges are searched. Does not live here: attribution, patching,
ACDC and faithfulness themselves (`mlxterp.causal`), the sentences (`narratives.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import numpy as np

from mlxterp.causal.circuits.acdc import AcdcProgress, acdc
from mlxterp.causal.circuits.circuit import Circuit
from mlxterp.causal.circuits.faithfulness import faithfulnesses
from mlxterp.causal.circuits.graph import Edge, Graph, graph_of
from mlxterp.causal.gradients.edge_attribution import edge_attribution
from mlxterp.causal.patching.activation_patching import activation_patchings
from mlxterp.causal.patching.path_patching import path_patching
from mlxterp.causal.patching.sites import By
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import Prompt, require_model
from mlxterp.causal.prompts.pair import Prepared, PromptPair, as_pairs
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import NoGap, SweepError
from mlxterp.metrics import MetricFunction, log_softmax
from mlxterp.results import (
    CircuitResult,
    EdgeScoresResult,
    FaithfulnessResult,
    FaithfulnessRow,
    Step,
    WorkflowResult,
)
from mlxterp.results.views import intervals, listed
from mlxterp.statistics.clusters import halves
from mlxterp.statistics.ratio import MIN_CLUSTERS
from mlxterp.workflows import narratives
from mlxterp.workflows.progress import ProgressOption, ProgressReporter
from mlxterp.workflows.question import (
    MetricChoice,
    MetricLike,
    Question,
    ask,
    chosen_steps,
    metric_choice,
    require_top_k,
)


def towards_clean(question: Question, pair: int) -> MetricFunction:
    """Σ_v (p_clean(v) − p_corrupted(v)) · logit(v), for one pair.

    A distance from the clean run is at its minimum there, so EAP sees no slope. This one is linear in the
    logits; between the two runs it differs by KL(clean ‖ corrupted) + KL(corrupted ‖ clean), so it has a gap
    wherever they differ; and its slope in the corrupted run is that of −KL(clean ‖ ·).
    """
    clean, corrupted = (np.exp(log_softmax(logits[pair])) for logits in question.logits)
    weights = (clean - corrupted).astype(np.float32)

    def shift_towards_clean(logits: Any) -> Any:
        return logits @ (mx.array(weights) if isinstance(logits, mx.array) else weights)

    return shift_towards_clean


def mean_of_pairs(each: Sequence[EdgeScoresResult]) -> EdgeScoresResult:
    """The mean score of each edge over pairs that were attributed one by one; the only one as it is."""
    first = each[0]
    if len(each) == 1:
        return first
    scores = np.stack([result.scores for result in each])
    prompts = [prompt for result in each for prompt in result.measured_on["prompts"]]
    return replace(
        first,
        scores=scores.mean(axis=0),
        per_example=scores,
        clean_metric=float(np.mean([result.clean_metric for result in each])),
        corrupted_metric=float(np.mean([result.corrupted_metric for result in each])),
        measured_on=dict(first.measured_on) | {"prompts": prompts, "reduced": "mean of each pair's scores"},
    )


NAME = "circuit_discovery"
STEPS = ("attribution", "activation", "acdc", "paths")
DEFAULT = ("attribution", "activation", "acdc")
CANDIDATES = 1000
"""Edges searched by default (decision record 22)."""
RANDOM_SETS = 19
"""Random circuits that the one found is compared with: as many as it takes for p = 0.05 by rank."""
_SWEEPS: dict[str, tuple[str, By, str]] = {
    "activation": ("z", "layer_head", "Heads patched with their corrupted values"),
    "activation_mlp": ("mlp_out", "layer", "MLPs patched with their corrupted values"),
}


def circuit_discovery(
    model: InterpretableModel,
    clean: Prompt | PromptPair | Sequence[PromptPair],
    corrupted: Prompt | None = None,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
    threshold: float = 0.01,
    steps: Sequence[str] | None = None,
    metric: MetricLike = None,
    metric_kwargs: Mapping[str, Any] | None = None,
    candidates: int | Literal["all"] = CANDIDATES,
    top_k: int = 10,
    align: Align = "auto",
    checkpoint: str | Path | None = None,
    token_budget: int | None = None,
    seed: int = 0,
    verbose: bool = False,
    progress: ProgressOption = None,
) -> WorkflowResult:
    """Which edges are enough for what the model does on `clean` and not on `corrupted`.

        attribution   every edge's effect, estimated by EAP-IG from a few backward passes
        activation    every head patched for real, noising (`activation_mlp`: every MLP)
        acdc          edges removed one by one while the loss grows by less than `threshold` each
        faithfulness  follows acdc: how much of the gap is left with these edges only, and without them,
                      beside random circuits of as many edges between the same layers
        paths         what each node of the circuit writes to the logits, past other heads; not by default

    A real model has too many edges to remove one by one in minutes, so `acdc` searches among the `candidates`
    edges of largest estimate; the others are removed before, and what that costs is in the result. Without
    the attribution step, or with candidates="all", every edge is searched (70,651 in SmolLM2-135M).

    From eight independent clusters of pairs on, the circuit is searched on half of them and its faithfulness
    measured on the others, where it is not too large for having been chosen; `measured_on["searched_on"]`
    lists the pairs of the search. With fewer, all pairs do both, and the result says so.

    Args:
        clean, corrupted: two prompts; or one PromptPair, or a list of them, and no `corrupted`.
        answer, foil: one token each, as text or id: what `metric` measures.
        threshold: τ of ACDC, in units of the metric: nats for "kl", logits for "logit_diff".
        steps: some of attribution, activation, acdc, paths; by default the first three.
        metric: a name or a function of logits, see `mlxterp.metrics.resolve`; by default "logit_diff" where
            every pair has an answer and a foil, else "kl" as in the paper.
        metric_kwargs: further arguments of a function given as metric; of a named one, answer and foil.
        candidates: how many edges acdc searches, or "all".
        top_k: how many components the narrative names per step.
        align: positions of prompts of different lengths; "auto" maps the common prefix and suffix, the
            result says so, and positions outside the map are never corrupted.
        checkpoint: a file that keeps acdc's decisions; the same call goes on from it.
        token_budget: bounds the memory of a batch.
        seed: of the random edges that the circuit is compared with, and of which pairs search.
        verbose: say on stderr how far it is, with an estimate of the time left. progress: called with
            StepProgress instead.

    Costs one run of each prompt for the baselines of all steps, one more in each step that works on edges;
    five backward passes; a row per head and MLP. A candidate of acdc costs what its removal changes, about an
    eighth of a run: most edges reach few nodes, and the estimates tell which ones to test together. Decision
    record 22 has times. `measured_on["ran"]` says how many runs there were; `verbose` and `progress` how long
    acdc may take, before it begins.

    Returns:
        a WorkflowResult; `get_step("acdc")` is a CircuitResult with `nodes` and `edges`.

    Raises:
        SweepError: an unknown step, listing them; candidates below 1; paths for prompts of different lengths.
        NoGap, LengthMismatch, MetricError, CapabilityUnavailable: as the analyses.

    Source: Conmy et al. 2023 (2304.14997), ACDC; estimates first, as Syed et al. 2023 (2310.10348); EAP-IG of
    Hanna et al. 2024 (2403.17806).
    """
    require_model(model)
    require_top_k(top_k)
    chosen = chosen_steps(NAME, steps, STEPS, DEFAULT)
    if candidates != "all" and candidates < 1:
        raise SweepError(
            f"candidates={candidates}: acdc searches at least one edge. Give a number, or 'all'."
        )
    graph = graph_of(model)
    reporter = ProgressReporter(NAME, progress, verbose=verbose)
    reporter.report(chosen[0], "running both prompts")
    choice = metric_choice(metric, metric_kwargs, answer, foil)
    question = ask(model, clean, corrupted, _by_answer(choice, clean, corrupted), align)
    if "paths" in chosen and question.prepared.alignment.stated is not None:
        raise SweepError(
            "paths carry each position's value to the same position, and these prompts have different "
            "lengths. Leave the step out, or choose prompts of one length."
        )
    reporter.ran["prompts"] = 2 * len(question.pairs)
    split = _split(question, seed) if "acdc" in chosen else None
    if split is not None:
        reporter.ran["prompts"] *= 2
    search, others = (question, question) if split is None else (split.search, split.others)
    run = _Run(question, search, others, graph, reporter, top_k, seed, token_budget)
    done: list[Step] = []
    scores: EdgeScoresResult | None = None
    circuit: CircuitResult | None = None
    if "attribution" in chosen:
        scores = run.attribution()
        done.append(narratives.edge_attribution(scores, top_k))
    if "activation" in chosen:
        done += run.activation(scores)
    if "acdc" in chosen:
        circuit = run.acdc(threshold, scores, _searched(scores, graph, candidates), checkpoint)
        found_step = narratives.missed(done, narratives.search(circuit, top_k), scores, top_k)
        measured = run.faithfulness(circuit, scores)
        elsewhere = None if split is None else (len(search.pairs), len(others.pairs))
        done += [found_step, narratives.faithfulness(measured, circuit, elsewhere)]
    if "paths" in chosen:
        done.append(run.paths(circuit))
    found = WorkflowResult(
        name=NAME,
        question=narratives.question(question, "Which edges are enough for it?"),
        steps=tuple(done),
        cautions=tuple(narratives.cautions(question)),
        components_from=next(((s,) for s in ("acdc", "activation", "attribution") if s in chosen), ()),
        measured_on=question.measured_on(
            threshold=threshold,
            candidates=candidates,
            steps=list(chosen),
            top_k=top_k,
            n_edges=graph.n_edges,
            ran=reporter.ran,
            **({} if split is None else {"searched_on": list(split.searched_on)}),
        ),
    )
    return replace(found, conclusion=narratives.conclusion(found, top_k))


def _by_answer(
    choice: MetricChoice, clean: Prompt | PromptPair | Sequence[PromptPair], corrupted: Prompt | None
) -> MetricChoice:
    """The choice with a metric: of the behaviour where every pair has an answer and a foil, else "kl"."""
    if choice.metric is not None:
        return choice
    given = as_pairs(clean, corrupted, answer=choice.answer, foil=choice.foil)
    pairs = given.pairs if isinstance(given, Prepared) else given
    both = all(pair.answer is not None and pair.foil is not None for pair in pairs)
    return choice._replace(metric="logit_diff" if both else "kl")


class _Halves(NamedTuple):
    """A question on half of the clusters, for the search, and on the others, to measure what it found.

    Attributes:
        searched_on: the pairs of the search, by their place among all.
    """

    search: Question
    others: Question
    searched_on: tuple[int, ...]


def _split(question: Question, seed: int) -> _Halves | None:
    """Both halves; None if one has fewer than four clusters, or no gap."""
    clusters = question.prepared.clusters
    if len(set(clusters)) < 2 * MIN_CLUSTERS:
        return None
    parts, choice = halves(clusters, seed), MetricChoice(question.metric)
    try:
        search, others = (
            ask(question.model, [question.pairs[i] for i in part], None, choice, question.align)
            for part in parts
        )
    except NoGap:
        return None
    return _Halves(search, others, tuple(parts[0].tolist()))


def _random_edges(edges: Sequence[Edge], found: Circuit, rng: np.random.Generator) -> Circuit:
    """As many edges as `found` has, between the same layers and into the same kind of input: others than its
    own where there are enough."""
    kinds: dict[tuple[int, str, int, str], list[Edge]] = {}
    for edge in edges:
        kinds.setdefault(_kind_of(edge), []).append(edge)
    drawn: list[Edge] = []
    for kind, count in Counter(map(_kind_of, found.edges)).items():
        every = kinds[kind]
        others = [edge for edge in every if edge not in found.edges]
        pool = others if len(others) >= count else every
        drawn += [pool[i] for i in rng.choice(len(pool), size=count, replace=False)]
    return Circuit(frozenset(drawn))


def _kind_of(edge: Edge) -> tuple[int, str, int, str]:
    """Layer and kind of an edge's two ends, and the input that it goes into."""
    return edge.sender.layer, edge.sender.kind, edge.receiver.layer, edge.into


def _searched(
    scores: EdgeScoresResult | None, graph: Graph, candidates: int | Literal["all"]
) -> list[str] | None:
    """The edges of largest estimate in magnitude; None if all are searched."""
    if scores is None or candidates == "all" or candidates >= graph.n_edges:
        return None
    return [component.label for component in scores.top_components(candidates)]


@dataclass(frozen=True)
class _Run:
    """The steps.

    Attributes:
        question: on all pairs. search, others: on those of the search, and on those that measure what it
            found; all three are one question where there are too few pairs to split.
    """

    question: Question
    search: Question
    others: Question
    graph: Graph
    reporter: ProgressReporter
    top_k: int
    seed: int
    token_budget: int | None

    def attribution(self) -> EdgeScoresResult:
        """EAP-IG; for prompts of different lengths EAP, whose metric needs a slope in the clean run."""
        question, count = self.search, self.reporter.counter("attribution", "examples")
        self.reporter.report("attribution", "a forward and a backward per step")
        if question.prepared.alignment.stated is None:
            return self._edge_attribution(question, "eap-ig", count)
        if not question.is_distance:
            return self._edge_attribution(question, "eap", count)
        each = []
        for i, pair in enumerate(question.pairs):
            one = ask(question.model, pair, None, MetricChoice(towards_clean(question, i)), question.align)
            each.append(self._edge_attribution(one, "eap"))
            count(i + 1, len(question.pairs))
        return mean_of_pairs(each)

    def _edge_attribution(
        self,
        question: Question,
        method: Literal["eap", "eap-ig"],
        progress: Callable[[int, int], None] | None = None,
    ) -> EdgeScoresResult:
        return edge_attribution(
            question.model, question.prepared, method=method, seed=self.seed, progress=progress
        )

    def activation(self, scores: EdgeScoresResult | None) -> list[Step]:
        """Every head patched, and every MLP where there are some."""
        names = ["activation", *(["activation_mlp"] if self.graph.has_mlp else [])]
        results = activation_patchings(
            self.question.model,
            self.question.prepared,
            sweeps=[_SWEEPS[name][:2] for name in names],
            direction="noising",
            seed=self.seed,
            progress=self.reporter.counter("activation", "patched rows"),
        )
        steps = [
            narratives.patching(name, result, _SWEEPS[name][2], self.top_k)
            for name, result in zip(names, results, strict=True)
        ]
        return steps if scores is None else narratives.agreement(steps, scores)

    def acdc(
        self,
        threshold: float,
        scores: EdgeScoresResult | None,
        searched: list[str] | None,
        checkpoint: str | Path | None,
    ) -> CircuitResult:
        """The search for the circuit."""

        def report(state: AcdcProgress) -> None:
            # The first report is the estimate of how long it takes; a log shows it as the step's beginning.
            self.reporter.report("acdc", str(state), state.done, state.edges if state.done else 0)

        n = self.graph.n_edges if searched is None else len(searched)
        self.reporter.report("acdc", f"searching {narratives.share_searched(n, self.graph.n_edges)}")
        circuit = acdc(
            self.search.model,
            self.search.prepared,
            threshold=threshold,
            candidates=searched,
            estimates=scores,
            token_budget=self.token_budget,
            checkpoint=checkpoint,
            progress=report,
        )
        self.reporter.ran["acdc tested edges"] = circuit.n_tested
        return circuit

    def faithfulness(self, circuit: CircuitResult, scores: EdgeScoresResult | None) -> FaithfulnessResult:
        """The circuit, the model without it, as many edges chosen by estimate alone, and as many at random.

        On the pairs that the search did not use; beside them the circuit on those that it used.
        """
        edges = tuple(self.graph.edges())
        found = Circuit.of(circuit)
        size, rng = len(found), np.random.default_rng(self.seed)
        sets: list[tuple[str, str, Circuit]] = [
            ("the circuit", "found", found),
            ("all but the circuit", "without", Circuit(frozenset(edges) - found.edges)),
        ]
        if scores is not None and size:
            best = Circuit.of([component.label for component in scores.top_components(size)])
            sets.append(("as many edges by attribution", "comparison", best))
        for i in range(RANDOM_SETS if 0 < size < len(edges) else 0):
            sets.append((f"random edges {i + 1}", "random", _random_edges(edges, found, rng)))
        rows = self._faithfulness_rows(self.others, sets)
        if self.others is not self.search:
            again = [("the circuit, on the pairs of the search", "searched", found)]
            rows[1:1] = self._faithfulness_rows(self.search, again)
        prepared = self.others.prepared
        return FaithfulnessResult(
            rows=tuple(rows),
            metric=prepared.metric.name,
            clean_metric=float(prepared.clean_metric.mean()),
            corrupted_metric=float(prepared.corrupted_metric.mean()),
            n_edges=self.graph.n_edges,
            measured_on=self.others.measured_on(
                ablation="other edges carry the corrupted prompt's value (resample)", seed=self.seed
            ),
        )

    def _faithfulness_rows(
        self, on: Question, sets: Sequence[tuple[str, str, Circuit]]
    ) -> list[FaithfulnessRow]:
        """A row for each (label, group, circuit), measured on the pairs of a question."""
        prepared = on.prepared
        measured = faithfulnesses(
            on.model,
            prepared,
            [each for _, _, each in sets],
            token_budget=self.token_budget,
            seed=self.seed,
        )
        one, zero = float(prepared.clean_metric.mean()), float(prepared.corrupted_metric.mean())
        ends = intervals(measured.low, measured.high, len(sets))
        return [
            FaithfulnessRow(
                label=label,
                n_edges=len(each),
                value=zero + f * (one - zero),
                faithfulness=f,
                group=group,
                ci=ci,
            )
            for (label, group, each), f, ci in zip(sets, measured.effects.tolist(), ends, strict=True)
        ]

    def paths(self, circuit: CircuitResult | None) -> Step:
        """What each node, or each of the circuit, writes to the logits past other heads."""
        known = set(map(str, self.graph.senders))
        senders = None if circuit is None else [node for node in circuit.nodes if node in known]
        result = path_patching(
            self.question.model,
            self.question.prepared,
            receivers="logits",
            senders=senders or None,
            token_budget=self.token_budget,
            seed=self.seed,
            progress=self.reporter.counter("paths", "senders"),
        )
        strong = listed(narratives.notable(result.top_components(self.top_k)))
        narrative = (
            "Into the logits directly (through MLPs, past other heads), the corrupted values of these "
            f"remove: {strong} of the gap. Nodes of the circuit that are not named act through heads."
        )
        return Step("paths", result, narrative)
