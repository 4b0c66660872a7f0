"""What workflows say: sentences made from results. No model, no mathematics beyond counting.

Lives here: the words, the cautions. Does not live here: when they are said (`localization.py`,
`discovery.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mlxterp.causal.prompts.pair import Prepared, describe
from mlxterp.results import Component, LogitAttributionResult, PatchingResult
from mlxterp.results.shows import number, percent
from mlxterp.workflows.request import Asked

CLEAR = 0.05
"""An effect of less than this share of the gap is called small."""
HALF = 0.5

_MEANINGS = {
    "logit_diff": "the logit of the answer minus that of the foil, at the last position",
    "logit": "the logit of the answer, at the last position",
    "prob": "the probability of the answer",
    "log_prob": "the log-probability of the answer, in nats",
    "kl": "the KL divergence of the next-token distribution from the clean run's, in nats",
    "l2": "the Euclidean distance of the mean-centred logits from the clean run's",
    "cosine": "1 minus the cosine between the mean-centred logits and the clean run's",
}


def notable(components: Sequence[Component]) -> list[Component]:
    """Those with at least a hundredth of the first one's effect; the first in any case."""
    least = abs(components[0].effect) / 100 if components else 0.0
    return [c for i, c in enumerate(components) if i == 0 or (abs(c.effect) >= least and c.effect)]


def listed(components: Sequence[Component]) -> str:
    """`L0.H2 0.98, L1.H1 0.41`."""
    return ", ".join(f"{c.label} {number(c.effect)}" for c in components)


def question(asked: Asked, what: str) -> str:
    """What is asked, of which model, on what, and how it is measured."""
    model, prepared = asked.model, asked.prepared
    first, said = describe(model, prepared.pairs[0]), asked.said[0]
    n = len(prepared.pairs)
    pair = (
        f"{model.name} continues {first['clean']!r} with {asked.text(said.clean)!r} "
        f"(probability {number(said.clean_prob, 2)}) and {first['corrupted']!r} with "
        f"{asked.text(said.corrupted)!r} ({number(said.corrupted_prob, 2)})"
    )
    on = f"{pair}." if n == 1 else f"{n} pairs of prompts; in the first, {pair}."
    return f"{what} {on} {measure(prepared)}"


def measure(prepared: Prepared) -> str:
    """What the metric is, both baselines, what an effect is a share of."""
    name = prepared.metric.name
    meaning = _MEANINGS.get(name, prepared.metric.direction)
    return (
        f"Measured by {name}: {meaning}. It is {number(float(prepared.clean_metric.mean()))} on clean and "
        f"{number(float(prepared.corrupted_metric.mean()))} on corrupted"
        f"{', as means' if len(prepared.pairs) > 1 else ''}; an effect is a share of this gap."
    )


def cautions(asked: Asked) -> Iterator[str]:
    """What limits everything that was measured on these pairs."""
    prepared, n = asked.prepared, len(asked.pairs)
    stated = prepared.alignment.stated
    if stated is not None:
        c, x = prepared.clean.shape[1], prepared.corrupted.shape[1]
        yield (
            f"The prompts have {c} and {x} tokens, so positions are matched by the "
            f"{prepared.alignment.kind!r} map (clean to corrupted: "
            f"{', '.join(f'{a}→{b}' for a, b in stated)}). Positions outside the map were never patched, so "
            "effects there are missing. Prompts of one length need no map."
        )
    if asked.distance:
        yield (
            f"{prepared.metric.name} sees every change of the next-token distribution, and not only the "
            "answer. Give answer= and foil= to measure the behaviour itself."
        )
    if n == 1:
        yield (
            "One pair was measured: there is no interval, and nothing shows that this holds for other "
            "prompts. Give a list of PromptPair."
        )
    gaps = prepared.clean_metric - prepared.corrupted_metric
    without = int((np.abs(gaps) <= prepared.metric.tolerance).sum())
    if without:
        yield f"{without} of {n} pairs have no gap of their own in {prepared.metric.name}."
    opposed = int((np.sign(gaps) == -np.sign(gaps.mean())).sum())
    if opposed:
        yield (
            f"In {opposed} of {n} pairs {prepared.metric.name} moves the other way from clean to corrupted."
        )
    if prepared.metric.name == "logit_diff":
        wrong = int((prepared.clean_metric <= 0).sum())
        if wrong:
            yield f"On {wrong} of {n} clean prompts the model itself does not prefer the answer to the foil."


def patched(result: PatchingResult, what: str, top_k: int) -> str:
    """What a sweep found: its strongest sites, and how many matter."""
    strongest = notable(result.top_components(top_k))
    if not strongest:
        return f"{what}: no effect is a finite number."
    large = int((np.abs(result.effects) >= CLEAR).sum())
    verb = "recovers" if result.direction == "denoising" else "removes"
    then = f", then {listed(strongest[1:])}" if strongest[1:] else ""
    return (
        f"{what}: {strongest[0].label} {verb} {number(strongest[0].effect)} of the gap{then}. "
        f"{large} of {result.effects.size} sites have an effect of at least {CLEAR:g}."
    )


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
            yield (
                f"The interval of {strong.label}, {number(strong.ci[0])} to {number(strong.ci[1])}, holds 0."
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


def written(result: LogitAttributionResult, top_k: int, n: int) -> str:
    """What direct logit attribution found."""
    quantity = "logit" if result.foil_token_str is None else "logit difference"
    mlps = "" if result.mlp_contributions is None else f", MLPs {number(result.mlp_contributions.sum())}"
    return (
        f"Of the {quantity} {number(result.logit)} towards {result.towards}"
        f"{f' (mean of {n} pairs)' if n > 1 else ''}, written directly: "
        f"{listed(notable(result.top_components(top_k)))}. "
        f"Embedding {number(result.embed_contribution)}, attention "
        f"{number(float(result.attn_contributions.sum()))}{mlps}. What a component does through later ones "
        "is not in this."
    )


def roles(strong: Sequence[Component], direct: LogitAttributionResult) -> Iterator[str]:
    """Of each strong component, whether it writes the answer itself or acts through later ones."""
    of = {c.label: c.effect for c in direct.components()}
    largest = max((abs(effect) for effect in of.values()), default=0.0)
    for each in strong:
        if each.label in of and largest > 0:
            own = of[each.label]
            if abs(own) >= largest / 4:
                yield f"{each.label} writes {number(own)} logits itself"
            else:
                yield f"{each.label} acts through later components (it writes {number(own, 2)} logits)"


def share_searched(searched: int, n_edges: int) -> str:
    """`1,000 of 70,651 edges (1.4 %)`; `all 81 edges`."""
    if searched == n_edges:
        return f"all {n_edges:,} edges"
    share = 100 * searched / n_edges
    shown = percent(searched / n_edges) if share >= 10 else f"{share:.2g} %"
    return f"{searched:,} of {n_edges:,} edges ({shown})"
