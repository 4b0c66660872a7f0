"""What a head is said to do, by where it attends: the field's own test for each role, per fresh text.

    previous-token head    attention to the token before                                (Olsson et al. 2022)
    duplicate-token head   attention to earlier occurrences of the current token        (Wang et al. 2022)
    induction head         attention to the token after an earlier occurrence of it     (Olsson et al. 2022)
    name mover             attention from the last position to the answer's occurrences, where the head copies
                           it: its OV circuit puts the answer among the first five tokens (Wang et al. 2022)

The first three on random tokens, twice over; the last on prompts that hold their answer. Descriptive: none of
it says that the behaviour needs the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.causal.attention_patterns import attention_scores
from mlxterp.causal.prompts.encoding import Ids, token_id, token_rows
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.component_names import head_label, parse_component
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import PromptPairError, SweepError
from mlxterp.metrics import Floats
from mlxterp.remeasure.measurement import numbers
from mlxterp.remeasure.placebos import FEWEST_PLACEBOS

N_TEXTS = 24
PERIOD = 16
COPIED_WITHIN = 5
"""Wang et al. 2022, section 3.1: a name is copied if it is among the first five tokens."""
_SCORE = {
    "previous-token head": "previous_token",
    "duplicate-token head": "duplicate_token",
    "induction head": "induction",
}


@dataclass(frozen=True, eq=False)
class RoleMeasurement:
    """Attention mass, 0 to 1, per text.

    Attributes:
        masses: of the claimed heads `[n_texts, n_claimed]`.
        others: of the heads that they are compared with `[n_texts, n_others]`.
    """

    role: str
    heads: tuple[str, ...]
    other_heads: tuple[str, ...]
    masses: Floats
    others: Floats

    def to_dict(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "heads": list(self.heads),
            "other_heads": list(self.other_heads),
            "masses": [numbers(row) for row in self.masses],
            "others": [numbers(row) for row in self.others],
        }


def measure_role(
    model: InterpretableModel,
    claim: Mapping[str, Any],
    *,
    seed: int,
    n: int = N_TEXTS,
    pairs: Sequence[PromptPair] = (),
) -> RoleMeasurement:
    """The attention mass that a role's test reads, of the claimed heads and the others of their layers, or of
    all layers where those are fewer than six.

    Args:
        claim: a declaration with a `role`.
        seed, n: of the random texts.
        pairs: for "name mover": their clean prompts are the texts.

    Raises:
        SweepError: a role that is not known, a head that does not exist.
        PromptPairError: a name mover without pairs, or with an answer that its prompt does not hold.
        CapabilityUnavailable: this model's attention patterns cannot be read.
    """
    role, claimed = claim.get("role"), _heads_named(claim)
    absent = [h for h in claimed if not (h[0] < model.n_layers and h[1] < model.n_heads)]
    if absent:
        raise SweepError(
            f"{head_label(*absent[0])}: {model.name} has layers 0 to {model.n_layers - 1} and heads 0 to "
            f"{model.n_heads - 1}. Name one of them."
        )
    model.architecture.require("pattern")
    layers = sorted({layer for layer, _ in claimed})
    if len(layers) * model.n_heads - len(claimed) < FEWEST_PLACEBOS:
        layers = list(range(model.n_layers))
    with blas.pinned_threads():
        if role == "name mover":
            masses = _name_mover_masses(model, pairs, layers)
        elif role in _SCORE:
            rng = np.random.default_rng(seed)
            period = min(PERIOD, model.d_vocab)
            halves = np.stack([rng.choice(model.d_vocab, size=period, replace=False) for _ in range(n)])
            texts = np.concatenate([halves, halves], axis=1)
            masses = np.stack([attention_scores(model, text[None]).scores[_SCORE[role]] for text in texts])
        else:
            raise SweepError(f"role {role!r} has no test. Known: name mover, {', '.join(_SCORE)}.")
    others = [
        (layer, head) for layer in layers for head in range(model.n_heads) if (layer, head) not in claimed
    ]
    return RoleMeasurement(
        role=role,
        heads=tuple(head_label(*each) for each in claimed),
        other_heads=tuple(head_label(*each) for each in others),
        masses=np.stack([masses[:, layer, head] for layer, head in claimed], axis=1),
        others=np.stack([masses[:, layer, head] for layer, head in others], axis=1)
        if others
        else np.empty((len(masses), 0)),
    )


def _heads_named(claim: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(layer, head) of the heads that a claim names; SweepError for a site that is no head."""
    found = []
    for text in claim["site"]:
        site = parse_component(text)
        if site.layer is None or site.head is None:
            raise SweepError(f"{text} is no head. Name heads, as in 'L9.H6'.")
        found.append((site.layer, site.head))
    return found


def _name_mover_masses(
    model: InterpretableModel, pairs: Sequence[PromptPair], layers: Sequence[int]
) -> Floats:
    """`[n, n_layers, n_heads]`; 0 in layers that are not asked for."""
    if not pairs:
        raise PromptPairError("a name mover is tested on prompts that hold their answer. Give pairs.")
    masses = np.zeros((len(pairs), model.n_layers, model.n_heads))
    for i, pair in enumerate(pairs):
        if pair.answer is None:
            raise PromptPairError(f"pair {i} has no answer, so there is no name to attend to. Give one.")
        tokens = token_rows(model, [pair.clean], "clean")
        answer = token_id(model, pair.answer)
        places = np.flatnonzero(tokens[0] == answer)
        if not len(places):
            raise PromptPairError(
                f"the clean prompt of pair {i} does not hold its answer {pair.answer!r}, so no head can move "
                "it from there. A name mover is tested on prompts such as those of `ioi_pairs`."
            )
        points = [HookPoint("pattern", layer) for layer in layers]
        _, seen = model.run(mx.array(tokens), capture=points)
        copied = _copied(model, tokens, places, answer, layers)
        for layer, point in zip(layers, points, strict=True):
            attended = np.array(seen[point][0, :, -1].astype(mx.float32))[:, places].sum(axis=1)
            masses[i, layer] = attended * copied[layer]
    return masses


def _copied(
    model: InterpretableModel, tokens: Ids, places: Ids, answer: int, layers: Sequence[int]
) -> dict[int, np.ndarray[Any, Any]]:
    """Per layer and head whether its OV circuit, applied to the stream behind the first layer at an
    occurrence of the answer, puts the answer among the first tokens."""
    first, place = HookPoint("resid_post", 0), int(places[0])
    _, seen = model.run(mx.array(tokens), capture=[first])
    stream = seen[first][:, place : place + 1]
    found = {}
    for layer in layers:
        value = HookPoint("v", layer)
        here = interventions.replace(HookPoint("resid_pre", layer), stream, positions=place)
        _, seen = model.run(mx.array(tokens), interventions=[here], capture=[value])
        per_kv_head = seen[value][:, place : place + 1]
        z = mx.repeat(per_kv_head, model.n_heads // model.n_kv_heads, axis=2)
        written, _ = model.architecture.head_outputs(layer, z)
        logits = np.array(model.architecture.final(written[:, 0]).astype(mx.float32))[0]
        # Tied tokens come before it: a head that writes nothing copies nothing.
        ranks = (logits >= logits[:, answer : answer + 1]).sum(axis=1)
        found[layer] = ranks <= COPIED_WITHIN
    return found
