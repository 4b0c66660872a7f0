"""The narratives and cautions of the workflows on pairs: sentences made from results.

Does not live here: which steps there are (`localization.py`, `discovery.py`), the sentences about features
(`features.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mlxterp.causal.prompts.pair import describe
from mlxterp.results import (
    CircuitResult,
    Component,
    EdgeScoresResult,
    FaithfulnessResult,
    LogitAttributionResult,
    PatchingResult,
    PathPatchingResult,
    Step,
    WorkflowResult,
)
from mlxterp.results.circuit import rounded
from mlxterp.results.search import SEARCHED, established, established_text, pairs_text
from mlxterp.results.views import listed
from mlxterp.statistics.multiple import NEGLIGIBLE, max_t
from mlxterp.statistics.ratio import MIN_CLUSTERS
from mlxterp.text import number, percent
from mlxterp.workflows.question import Question

CLEAR = NEGLIGIBLE
"""An effect of less than this share of the gap is called small."""
HALF = 0.5

MEANINGS = {
    "logit_diff": "the logit of the answer minus that of the foil, at the last position",
    "logit": "the logit of the answer, at the last position",
    "prob": "the probability of the answer",
    "log_prob": "the log-probability of the answer, in nats",
    "kl": "the KL divergence of the next-token distribution from the clean run's, in nats",
    "l2": "the Euclidean distance of the mean-centred logits from the clean run's",
    "cosine": "1 minus the cosine between the mean-centred logits and the clean run's",
}
"""What each named metric is, as a sentence goes on after its name."""


def notable(components: Sequence[Component]) -> list[Component]:
    """Those with at least a hundredth of the first one's effect; the first in any case."""
    least = abs(components[0].effect) / 100 if components else 0.0
    return [c for i, c in enumerate(components) if i == 0 or (abs(c.effect) >= least and c.effect)]


def question(asked: Question, what: str) -> str:
    """What is asked, of which model, on what, and how it is measured."""
    model, prepared, n = asked.model, asked.prepared, len(asked.pairs)
    first, said = describe(model, asked.pairs[0]), asked.predictions[0]
    pair = (
        f"{model.name} continues {first['clean']!r} with {asked.text(said.clean)!r} "
        f"(probability {number(said.clean_prob, 2)}) and {first['corrupted']!r} with "
        f"{asked.text(said.corrupted)!r} ({number(said.corrupted_prob, 2)})"
    )
    on = f"{pair}." if n == 1 else f"{n} pairs of prompts; in the first, {pair}."
    metric = asked.metric
    return (
        f"{what} {on} Measured by {metric.name}: {MEANINGS.get(metric.name, metric.direction)}. It is "
        f"{number(prepared.clean_metric.mean())} on clean and {number(prepared.corrupted_metric.mean())} on "
        f"corrupted{', as means' if n > 1 else ''}; an effect is a share of this gap."
    )


def cautions(asked: Question) -> Iterator[str]:
    """What limits everything that was measured on these pairs."""
    prepared, metric, n = asked.prepared, asked.metric, len(asked.pairs)
    yield from prepared.cautions(asked.model)
    stated = prepared.alignment.stated
    if stated is not None:
        c, x = prepared.clean.shape[1], prepared.corrupted.shape[1]
        yield (
            f"The prompts have {c} and {x} tokens, so positions are matched by the "
            f"{prepared.alignment.kind!r} map (clean to corrupted: "
            f"{', '.join(f'{a}→{b}' for a, b in stated)}). Positions outside the map were never patched, so "
            "effects there are missing. Prompts of one length need no map."
        )
    if asked.is_distance:
        yield (
            f"{metric.name} sees every change of the next-token distribution, and not only the answer. Give "
            "answer= and foil= to measure the behaviour itself."
        )
    if n == 1:
        yield (
            "One pair was measured: there is no interval, and nothing shows that this holds for other "
            "prompts. Give a list of PromptPair."
        )
    gaps = prepared.clean_metric - prepared.corrupted_metric
    without = int((np.abs(gaps) <= metric.tolerance).sum())
    if without:
        yield f"{without} of {n} pairs have no gap of their own in {metric.name}."
    opposed = int((np.sign(gaps) == -np.sign(gaps.mean())).sum())
    if opposed:
        yield f"In {opposed} of {n} pairs {metric.name} moves the other way from clean to corrupted."
    if metric.name == "logit_diff":
        wrong = int((prepared.clean_metric <= 0).sum())
        if wrong:
            yield f"On {wrong} of {n} clean prompts the model itself does not prefer the answer to the foil."


def patching(step: str, result: PatchingResult, what: str, top_k: int) -> Step:
    """What a sweep found: its strongest sites, how many matter, what limits that."""
    limits = (*small(result), *replication(result, top_k), *first_mlp(result))
    strongest = notable(result.top_components(top_k))
    if not strongest:
        return Step(step, result, f"{what}: no effect is a finite number.", limits)
    large = int((np.abs(result.effects) >= CLEAR).sum())
    verb = "recovers" if result.direction == "denoising" else "removes"
    over = f" (mean over {pairs_text(result.n_pairs)})" if result.per_example is not None else ""
    then = f", then {listed(strongest[1:])}" if strongest[1:] else ""
    narrative = (
        f"{what}: {strongest[0].label} {verb} {number(strongest[0].effect)} of the gap{then}{over}. "
        f"{large} of {result.effects.size} sites have an effect of at least {CLEAR:g}."
    )
    if said := result.search_text():
        narrative += f" Measured on {SEARCHED}. {said}"
    return Step(step, result, narrative, limits)


def established_among(sweeps: Sequence[PatchingResult], asked: Question) -> str:
    """Which sites of several sweeps of the same pairs are established among all that were searched."""
    sites = sum(sweep.effects.size for sweep in sweeps)
    components = [c for sweep in sweeps for c in sweep.components()]
    if any(sweep.simultaneous_low is None for sweep in sweeps):
        n = len(set(asked.prepared.clusters))
        there = "1 independent pair" if n == 1 else f"{n} independent clusters of pairs"
        return (
            f"Of {sites:,} sites searched none is called established, for there is no interval: {there}, and "
            f"it takes {MIN_CLUSTERS}."
        )
    if len(sweeps) == 1:
        return established_text(established(components), sites)
    gap = asked.prepared.clean_metric - asked.prepared.corrupted_metric
    each = [sweep.per_example for sweep in sweeps if sweep.per_example is not None]
    shares = np.concatenate([one.reshape(len(gap), -1) for one in each], axis=1)
    if not np.isfinite(shares).all():  # a pair without a gap has no share of it
        return f"Each sweep by itself: {' '.join(sweep.search_text() for sweep in sweeps)}"
    together = max_t(shares * gap[:, None], gap, clusters=asked.prepared.clusters)
    beyond = together.beyond(NEGLIGIBLE)
    found = [c for c, is_beyond in zip(components, beyond, strict=True) if is_beyond]
    return established_text(sorted(found, key=lambda c: -abs(c.effect)), sites)


def replication(result: PatchingResult, top_k: int) -> Iterator[str]:
    """Cautions about strong components that do not hold in most pairs."""
    if result.per_example is None:
        return
    each = result.per_example.reshape(len(result.per_example), -1)
    n = len(each)
    every = result.components()
    for strong in result.top_components(top_k):
        if abs(strong.effect) < CLEAR:
            continue
        own = each[:, next(i for i, c in enumerate(every) if c.label == strong.label)]
        holds = int((own * np.sign(strong.effect) >= abs(strong.effect) / 2).sum())
        if 2 * holds < n:
            yield (
                f"{strong.label} does not replicate: its effect of {number(strong.effect)} holds in {holds} "
                f"of {n} pairs (same sign, at least half the size)."
            )
        elif strong.ci is not None and strong.ci[0] <= 0 <= strong.ci[1]:
            at_once = " with all sites at once" if result.simultaneous_low is not None else ""
            yield (
                f"The interval of {strong.label}{at_once}, {number(strong.ci[0])} to {number(strong.ci[1])}, "
                "holds 0."
            )


def first_mlp(result: PatchingResult) -> Iterator[str]:
    """A caution where the first MLP is what matters most."""
    strongest = result.top_components(1)
    if strongest and strongest[0].label == "L0.mlp_out" and abs(strongest[0].effect) >= HALF:
        yield (
            "L0.mlp_out sees little but the words themselves: patching it is near to exchanging the prompts, "
            "and says little about where the behaviour is computed."
        )


def small(result: PatchingResult) -> Iterator[str]:
    """A caution where no site of a sweep matters much."""
    strongest = result.top_components(1)
    if strongest and abs(strongest[0].effect) < CLEAR:
        yield (
            f"No single site has an effect of {CLEAR:g} of the gap: the strongest, {strongest[0].label}, has "
            f"{number(strongest[0].effect)}. The behaviour is spread out, or lies elsewhere."
        )


def attribution(result: LogitAttributionResult, top_k: int, n: int) -> str:
    """What direct logit attribution found on n prompts."""
    quantity = "logit" if result.foil_token_str is None else "logit difference"
    mlps = "" if result.mlp_contributions is None else f", MLPs {number(result.mlp_contributions.sum())}"
    return (
        f"Of the {quantity} {number(result.logit)} towards {result.towards}"
        f"{f' (mean of {n} pairs)' if n > 1 else ''}, written in the clean run: "
        f"{listed(notable(result.top_components(top_k)))}. "
        f"Embedding {number(result.embed_contribution)}, attention "
        f"{number(result.attn_contributions.sum())}{mlps}. What a component does through later ones "
        "is not in this, and what it writes on corrupted too is: it says what is written, not what matters."
    )


DIRECTLY, INDIRECTLY = 0.5, 0.25
"""The shares of its effect from which on a component's direct effect is most of it, and up to which it is
little of it."""


def node_of(label: str) -> str:
    """A head or an MLP as the graph names it: `L0.H2`, `L3.mlp`."""
    return label.replace(".mlp_out", ".mlp")


def direct_effects(result: PathPatchingResult, strong: Sequence[Component], n: int, of: int) -> str:
    """What the strongest components carry to the logits directly."""
    own = dict(zip(result.senders, result.effects.tolist(), strict=True))
    each = [f"{c.label} {number(own[node_of(c.label)])} ({number(c.effect)} by patching)" for c in strong]
    over = f" over the first {n} of {of} pairs" if n < of else f" over {pairs_text(n)}" if n > 1 else ""
    return (
        f"The share of the gap that goes when only the logits see a component's corrupted output{over}: "
        f"{', '.join(each)}. What is missing to its effect by patching goes through later components."
    )


def roles(strong: Sequence[Component], direct: PathPatchingResult) -> Iterator[str]:
    """Of each strong component, whether it acts on the logits directly or through later components: its
    direct effect by path patching beside its whole effect, both shares of the gap."""
    of = dict(zip(direct.senders, direct.effects.tolist(), strict=True))
    for each in strong:
        own = of.get(node_of(each.label))
        if own is None or not np.isfinite(own) or not each.effect:
            continue
        share, directly = own / each.effect, f"direct effect {number(own, 2)} of {number(each.effect, 2)}"
        if share >= DIRECTLY:
            yield f"{each.label} acts on the logits directly ({directly})"
        elif abs(share) <= INDIRECTLY:
            yield f"{each.label} acts through later components ({directly})"
        elif share < 0:
            yield f"{each.label} acts through later components, against what it does directly ({directly})"
        else:
            yield f"{each.label} acts both directly and through later components ({directly})"


def share_searched(searched: int, n_edges: int) -> str:
    """`1,000 of 70,651 edges (1.4 %)`; `all 81 edges`."""
    if searched == n_edges:
        return f"all {n_edges:,} edges"
    share = 100 * searched / n_edges
    shown = percent(searched / n_edges) if share >= 10 else f"{share:.2g} %"
    return f"{searched:,} of {n_edges:,} edges ({shown})"


LEVEL = 0.05
"""The p-value up to which a circuit is said to do more than random ones."""
FAITHFUL = 0.8
"""Below this faithfulness a circuit is said to do only part of the work."""
_AGREES = 0.5
_MOST_NODES = 24


def edge_attribution(scores: EdgeScoresResult, top_k: int) -> Step:
    """What the estimates say."""
    narrative = (
        f"Estimated for all {len(scores.edges):,} edges, strongest: "
        f"{listed(notable(scores.top_components(top_k)))}. {scores.search_text()} A score is the "
        "share of the gap that goes when the edge carries the corrupted value. The edges from the input add "
        f"up to {number(scores.whole_input)}, truly 1."
    )
    limits = ["These are estimates to first order; the next steps patch."]
    if scores.method == "eap":
        limits.append(
            f"Prompts of different lengths: estimated by EAP on {scores.metric} instead of EAP-IG, so edges "
            "into saturated attention can be missed."
        )
    return Step("attribution", scores, narrative, tuple(limits))


def agreement(steps: Sequence[Step], scores: EdgeScoresResult) -> list[Step]:
    """The steps, the first with how well the estimates, added up per node, agree with patching."""
    estimates = dict.fromkeys((edge.partition("→")[0] for edge in scores.edges), 0.0)
    for edge, score in zip(scores.edges, scores.scores.tolist(), strict=True):
        estimates[edge.partition("→")[0]] += score
    pairs = []
    for step in steps:
        for each in step.result.components():
            name = each.label.replace(".mlp_out", ".mlp")
            if name in estimates and np.isfinite(each.effect):
                pairs.append((estimates[name], each.effect))
    a, b = np.array(pairs).T
    if len(pairs) < 3 or not a.std() or not b.std():
        return list(steps)
    r = float(np.corrcoef(a, b)[0, 1])
    first, limits = steps[0], steps[0].cautions
    if r < _AGREES:
        limits += (
            f"Estimates and patching agree poorly ({r:.2f}), so the edges to search were chosen on weak "
            'grounds. Raise candidates=, or set it to "all".',
        )
    narrative = (
        f"{first.narrative} The estimates, added up over the edges that leave a node, correlate with this at "
        f"{r:.2f} over {len(pairs)} nodes."
    )
    return [replace(first, narrative=narrative, cautions=limits), *steps[1:]]


def search(circuit: CircuitResult, top_k: int) -> Step:
    """What was kept, and which part of the model was searched."""
    searched = circuit.measured_on.get("searched_edges", circuit.n_edges)
    nodes = circuit.nodes
    shown = ", ".join(nodes[:_MOST_NODES])
    named = f"{shown}, … ({len(nodes)} in all)" if len(nodes) > _MOST_NODES else shown
    narrative = (
        f"{len(circuit.edges):,} edges are left of {share_searched(searched, circuit.n_edges)} that were "
        f"searched, at threshold {number(circuit.threshold)}; {circuit.n_tested:,} were tested one by one. "
        f"They join {len(nodes)} nodes, {len(circuit.heads)} of them heads: {named}."
    )
    strong = notable(circuit.top_components(top_k))
    if strong:
        narrative += f" Most is lost without {listed(strong)} ({circuit.metric})."
    limits = []
    if not circuit.edges:
        limits.append(
            f"No edge adds {number(circuit.threshold)} to the loss by itself, so none is left. Lower the "
            "threshold."
        )
    if searched < circuit.n_edges:
        before = circuit.measured_on["loss_of_all_searched_edges"]
        value = before if circuit.clean_metric < circuit.corrupted_metric else -before
        limits.append(
            f"{circuit.n_edges - searched:,} edges of small estimate were removed before the search, "
            f"untested: {circuit.metric} was {number(value)} at its start, {number(circuit.clean_metric)} in "
            'the whole model. candidates="all" searches them too.'
        )
    return Step("acdc", circuit, narrative, tuple(limits))


def missed(steps: Sequence[Step], found: Step, scores: EdgeScoresResult | None, top_k: int) -> Step:
    """The search's step, with a caution for nodes that patching finds strong and the circuit lacks."""
    circuit = found.result
    if scores is None or not isinstance(circuit, CircuitResult):
        return found
    strong = [
        each
        for step in steps
        if isinstance(step.result, PatchingResult)
        for each in step.result.top_components(top_k)
        if abs(each.effect) >= CLEAR and each.label.replace(".mlp_out", ".mlp") not in circuit.nodes
    ]
    if not strong:
        return found
    text = (
        f"Patching finds {listed(strong)}, of which no edge is in the circuit: no single edge of theirs "
        "matters, or the estimates missed them."
    )
    return replace(found, cautions=(*found.cautions, text))


def faithfulness(
    measured: FaithfulnessResult, circuit: CircuitResult, elsewhere: tuple[int, int] | None = None
) -> Step:
    """How well the circuit does the model's work, beside what it is compared with.

    Args:
        elsewhere: how many pairs searched and how many others measured; None if the same ones did both.
    """
    own, f = measured.row("the circuit"), rounded(measured.row("the circuit").faithfulness)
    interval = f" (interval {number(own.ci[0])} to {number(own.ci[1])})" if own.ci else ""
    on = "" if elsewhere is None else f", measured on {elsewhere[1]} other pairs than the search's"
    narrative = (
        f"With these {own.n_edges:,} edges only, {measured.metric} is {number(own.value)}: faithfulness "
        f"{f}{interval}{on}, where 1 is the whole model and 0 the corrupted run. Without "
        f"them, and with all others, it is {rounded(measured.row('all but the circuit').faithfulness)}."
    )
    for row in measured.rows:
        if row.group == "searched" and elsewhere is not None:
            narrative += (
                f" On the {elsewhere[0]} pairs of the search it is {rounded(row.faithfulness)}: too large on "
                "average."
            )
        if row.group == "comparison":
            narrative += f" As many edges chosen by attribution alone: {rounded(row.faithfulness)}."
    random, p = measured.of("random"), measured.p_among_random
    if p is not None:
        ends = f"{rounded(min(random))} to {rounded(max(random))}"
        narrative += (
            f" {len(random)} random sets of as many edges between the same layers: {ends}; the circuit's "
            f"p among them is {number(p, 2)} by rank."
        )
    limits = []
    if elsewhere is None:
        limits.append(
            f"{SEARCHED[0].upper()}{SEARCHED[1:]}: it does not show that the circuit holds on others. Give "
            f"at least {2 * MIN_CLUSTERS} independent pairs to have it measured on other ones."
        )
    if p is not None and p > LEVEL:
        limits.append(
            f"The circuit is not more faithful than random ones of its size and layers (p = {number(p, 2)})."
        )
    if circuit.edges and own.faithfulness < 0:
        limits.append(
            f"The circuit alone moves {measured.metric} away from the model's. Search more candidates."
        )
    elif circuit.edges and own.faithfulness < FAITHFUL:
        limits.append(
            f"The circuit does only part of the model's work (faithfulness {f}). Lower the threshold, or "
            "search more candidates."
        )
    elif own.faithfulness > 1 / FAITHFUL:
        limits.append(
            f"The circuit overshoots (faithfulness {f}): some of what was left out works against the "
            "behaviour."
        )
    return Step("faithfulness", measured, narrative, tuple(limits))


def conclusion(found: WorkflowResult, top_k: int) -> str:
    """What all steps say together."""
    if "acdc" in found.step_names:
        circuit: CircuitResult = found.get_step("acdc")
        f = found.get_step("faithfulness").faithfulness
        if not circuit.edges:
            return f"No circuit was found at threshold {number(circuit.threshold)}."
        searched = circuit.measured_on.get("searched_edges", circuit.n_edges)
        return (
            f"A circuit of {len(circuit.edges):,} edges and {len(circuit.nodes)} nodes does {rounded(f)} of "
            f"the model's work on {_which_prompts(found)} (faithfulness); "
            f"{share_searched(searched, circuit.n_edges)} were searched."
        )
    strong = notable(found.top_components(top_k))
    what = "by patching" if "activation" in found.step_names else "by estimate"
    return f"Strongest {what}: {listed(strong)} of the gap. No circuit was searched."


def _which_prompts(found: WorkflowResult) -> str:
    searched = found.measured_on.get("searched_on")
    if searched is None:
        return "the prompts of the search"
    others = len(found.measured_on["prompts"]) - len(searched)
    return f"{others} other pairs than the {len(searched)} of the search"
