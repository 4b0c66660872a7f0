"""What `circuit_discovery` says: sentences about edges and circuits.

Lives here: the words, the cautions; no model. Does not live here: when they are said (`discovery.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlxterp.results import (
    CircuitResult,
    EdgeScoresResult,
    FaithfulnessResult,
    PatchingResult,
    Step,
    WorkflowResult,
)
from mlxterp.results.faithfulness import shown
from mlxterp.results.shows import number
from mlxterp.workflows.narratives import (
    CLEAR,
    listed,
    notable,
    share_searched,
)

FAITHFUL = 0.8
"""Below this faithfulness a circuit is said to do only part of the work."""
_AGREES = 0.5


def attribution(scores: EdgeScoresResult, top_k: int) -> Step:
    """What the estimates say."""
    told = (
        f"Estimated for all {len(scores.edges):,} edges, strongest: "
        f"{listed(notable(scores.top_components(top_k)))}. A score is the share of the gap that goes "
        "when the edge carries the corrupted value. The edges from the input add up to "
        f"{number(scores.whole_input)}, "
        "truly 1."
    )
    cautions = ["These are estimates to first order; the next steps patch."]
    if scores.method == "eap":
        cautions.append(
            f"Prompts of different lengths: estimated by EAP on {scores.metric} instead of EAP-IG, so edges "
            "into saturated attention can be missed."
        )
    return Step("attribution", scores, told, tuple(cautions))


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
    first = steps[0]
    told = (
        f"{first.narrative} The estimates, added up over the edges that leave a node, correlate with this at "
        f"{r:.2f} over {len(pairs)} nodes."
    )
    cautions = first.cautions
    if r < _AGREES:
        cautions += (
            f"Estimates and patching agree poorly ({r:.2f}), so the edges to search were chosen on weak "
            'grounds. Raise candidates=, or set it to "all".',
        )
    return [replace(first, narrative=told, cautions=cautions), *steps[1:]]


def search(circuit: CircuitResult, top_k: int) -> Step:
    """What was kept, and which part of the model was searched."""
    searched = circuit.measured_on.get("searched_edges", circuit.n_edges)
    heads = circuit.heads
    told = (
        f"{len(circuit.edges):,} edges are left of {share_searched(searched, circuit.n_edges)} that were "
        f"searched, at threshold {number(circuit.threshold)}; {circuit.n_tested:,} were tested one by one. "
        "They join "
        f"{len(circuit.nodes)} nodes, {len(heads)} of them heads: {_named(circuit.nodes)}."
    )
    strong = notable(circuit.top_components(top_k))
    if strong:
        told += f" Most is lost without {listed(strong)} ({circuit.metric})."
    cautions = []
    if not circuit.edges:
        cautions.append(
            f"No edge adds {number(circuit.threshold)} to the loss by itself, so none is left. Lower the "
            "threshold."
        )
    if searched < circuit.n_edges:
        before = circuit.measured_on["loss_of_all_searched_edges"]
        value = before if circuit.clean_metric < circuit.corrupted_metric else -before
        cautions.append(
            f"{circuit.n_edges - searched:,} edges of small estimate were removed before the search, "
            f"untested: {circuit.metric} was {number(value)} at its start, {number(circuit.clean_metric)} "
            "in the whole "
            'model. candidates="all" searches them too.'
        )
    return Step("acdc", circuit, told, tuple(cautions))


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


def faithfulness(judged: FaithfulnessResult, circuit: CircuitResult) -> Step:
    """How well the circuit does the model's work, beside what it is compared with."""
    own = judged.row("the circuit")
    interval = f" (interval {number(own.ci[0])} to {number(own.ci[1])})" if own.ci else ""
    told = (
        f"With these {own.n_edges:,} edges only, {judged.metric} is {number(own.value)}: faithfulness "
        f"{shown(own.faithfulness)}{interval}, where 1 is the whole model and 0 the corrupted run. Without "
        f"them, and with all others, it is {shown(judged.row('all but the circuit').faithfulness)}."
    )
    for row in judged.rows:
        if row.group == "comparison":
            told += f" As many edges chosen by attribution alone: {shown(row.faithfulness)}."
    random = judged.of("random")
    if random:
        told += f" {len(random)} random sets of as many edges: {shown(min(random))} to {shown(max(random))}."
    cautions = ["Measured on the prompts of the search: it does not show that the circuit holds on others."]
    if circuit.edges and own.faithfulness < 0:
        cautions.append(
            f"The circuit alone moves {judged.metric} away from the model's. Search more candidates."
        )
    elif circuit.edges and own.faithfulness < FAITHFUL:
        cautions.append(
            f"The circuit does only part of the model's work (faithfulness {shown(own.faithfulness)}). Lower "
            "the threshold, or search more candidates."
        )
    elif own.faithfulness > 1 / FAITHFUL:
        cautions.append(
            f"The circuit overshoots (faithfulness {shown(own.faithfulness)}): some of what was left out "
            "works against the behaviour."
        )
    return Step("faithfulness", judged, told, tuple(cautions))


def conclusion(found: WorkflowResult, top_k: int) -> str:
    """What all steps say together."""
    if "acdc" in found.step_names:
        circuit: CircuitResult = found.get_step("acdc")
        f = found.get_step("faithfulness").faithfulness
        if not circuit.edges:
            return f"No circuit was found at threshold {number(circuit.threshold)}."
        searched = circuit.measured_on.get("searched_edges", circuit.n_edges)
        return (
            f"A circuit of {len(circuit.edges):,} edges and {len(circuit.nodes)} nodes does {shown(f)} of "
            "the "
            "model's work on these prompts (faithfulness); "
            f"{share_searched(searched, circuit.n_edges)} were searched."
        )
    strong = notable(found.top_components(top_k))
    what = "by patching" if "activation" in found.step_names else "by estimate"
    return f"Strongest {what}: {listed(strong)} of the gap. No circuit was searched."


def _named(nodes: Sequence[str], most: int = 24) -> str:
    shown = ", ".join(nodes[:most])
    return f"{shown}, … ({len(nodes)} in all)" if len(nodes) > most else shown
