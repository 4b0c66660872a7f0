"""The steps that test what the search found, and look at how it works; one function each.

Like those of `steps.py`: a prediction and its rival, and the values of the experiment.
"""

from __future__ import annotations

from mlxterp_agent.researchers.scripted.concluding import listed
from mlxterp_agent.researchers.scripted.heads.criteria import (
    DROP,
    KEPT,
    LEFT,
    NULL,
    ROLE,
)
from mlxterp_agent.researchers.scripted.heads.facts import (
    Facts,
    found_heads,
    heads_of,
    label,
    moving_layer,
)
from mlxterp_agent.researchers.scripted.heads.sizing import first_pairs, held_out_pairs, random_sets
from mlxterp_agent.researchers.scripted.plan import Known, Question, Skip

NO_HEADS = "no heads were found"


def roles(known: Known, facts: Facts, attempt: int) -> Question | Skip:
    """Whether the found heads are of a kind that the field knows."""
    if not facts.has("pattern"):
        return Skip("the model's attention patterns cannot be read", lasting=True)
    found = found_heads(known)
    if not found:
        return Skip(NO_HEADS)
    return Question(
        "heads/roles",
        f"Among {listed(map(label, found))} is a head of a known kind: previous-token, duplicate-token or "
        f"induction (score at least {ROLE}). Rival: what they attend to is particular to these prompts.",
        {"found": found, "sequences": 4 if attempt == 1 else 2, "score": ROLE},
    )


def composition(known: Known, facts: Facts, attempt: int) -> Question | Skip:
    """Whether earlier found heads steer the attention of later ones."""
    if not facts.has("pattern"):
        return Skip("the model's attention patterns cannot be read", lasting=True)
    found = found_heads(known)
    if not found:
        return Skip(NO_HEADS)
    moving = moving_layer(known, facts)
    later = [head for head in found if any(other[0] < head[0] for other in found)]
    later = [head for head in later if moving is None or head[0] >= moving][:3] or later[:3]
    earlier = [head for head in found if any(head[0] < other[0] for other in later)][:4]
    if not later:
        return Skip("the found heads are all in one layer, so none can steer another", lasting=True)
    return Question(
        "heads/composition",
        f"Where {listed(map(label, later))} {'look' if len(later) > 1 else 'looks'} from the last position "
        f"depends on {listed(map(label, earlier))}: with the corrupted run's output of an earlier head, an "
        f"attention weight falls by at least {DROP}. Rival: what is read there changes, and not where.",
        {
            "earlier": earlier,
            "later": later,
            "pairs": first_pairs(facts, facts.explore // attempt),
            "first_varied": facts.varied[0],
            "drop": DROP,
        },
    )


def necessity(known: Known, facts: Facts, attempt: int) -> Question | Skip:
    """What is left without the found heads."""
    found = found_heads(known)
    if not found:
        return Skip(NO_HEADS)
    return Question(
        "heads/necessity",
        f"Ablating {listed(map(label, found))} leaves at most {LEFT:.0%} of the logit difference, and less "
        "than any random set of as many heads. Rival: the model has other ways, or any heads would do as "
        "much damage.",
        {
            "found": found,
            "held_out": held_out_pairs(facts, attempt),
            "held_out_pairs": facts.held_out,
            "random_sets": random_sets(facts, found, 10 if attempt == 1 else 4),
            "left": LEFT,
        },
    )


def sufficiency(known: Known, facts: Facts, attempt: int) -> Question | Skip:
    """What is left with only the found heads."""
    found = found_heads(known)
    if not found:
        return Skip(NO_HEADS)
    if len(found) == facts.n_layers * facts.n_heads:
        return Skip("every head of the model was found, so there are no others to ablate")
    # Of interest where earlier layers stay as they are, and heads are left to ablate behind them.
    late = moving_layer(known, facts) or None
    if late is not None:
        in_late = [head for head in found if head[0] >= late]
        if not in_late or len(in_late) == (facts.n_layers - late) * facts.n_heads:
            late = None
    return Question(
        "heads/sufficiency",
        f"With all other heads ablated, {listed(map(label, found))} keep at least {KEPT:.0%} of the logit "
        "difference, and more than any random set of as many heads. Rival: they need what other heads "
        "prepare.",
        {
            "found": found,
            "held_out": held_out_pairs(facts, attempt),
            "random_sets": random_sets(facts, found, 5 if attempt == 1 else 2),
            "late": late,
            "kept": KEPT,
            "mlp": facts.has("mlp_out"),
        },
    )


def null(known: Known, facts: Facts, attempt: int) -> Question | Skip:
    """Whether what should not matter does not."""
    heads, residual = known.numbers("heads"), known.numbers("residual")
    silent = heads_of(heads["silent"])[: max(1, len(found_heads(known)))] if heads else []
    positions = [int(pos) for pos in residual["silent"]][:3] if residual else []
    if not silent and not positions:
        return Skip("nothing was measured that is predicted not to matter")
    middle = facts.n_layers // 2
    layers = sorted({middle // 2, middle, middle + (facts.n_layers - 1 - middle) // 2})
    what = [f"ablating {listed(map(label, silent))}"] if silent else []
    what += [f"patching the residual stream at positions {listed(positions)}"] if positions else []
    return Question(
        "heads/null",
        f"{'On pairs not used so far, ' if facts.held_out else ''}{' and '.join(what)} changes the outcome "
        f"by less than {NULL}, intervals included. Rival: they matter, and the search missed it.",
        {
            "silent": silent,
            "positions": positions,
            "layers": layers if attempt == 1 else layers[:1],
            "held_out": held_out_pairs(facts, attempt),
            "held_out_pairs": facts.held_out,
            "bound": NULL,
        },
    )
