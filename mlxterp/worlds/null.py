"""Worlds without a behaviour, in which every effect is an artefact of how pairs were chosen; and null effects
made from measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.selection import Selection, select_pairs
from mlxterp.errors import PromptPairError
from mlxterp.metrics import Floats
from mlxterp.models.mlx_lm_classes import model_module
from mlxterp.worlds.twin import shuffled_twin
from mlxterp.worlds.world import World

_CANDIDATES_PER_PAIR = 32
"""Of random answers a tenth to a fifth are preferred in both runs."""
D_VOCAB = 128
LENGTH = 8
_ARGS = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def random_llama(seed: int, n: int = 48) -> World:
    """A llama with random weights, on random prompts whose answer and foil were selected: the clean run
    prefers the answer, the corrupted one the foil.

    Gap and preference are there by selection, and effects are real for this network; the rank of the answers
    and the share of unselected candidates show that there is no behaviour.
    """
    model, rng = _random_network(seed)
    candidates = [_random_pair(rng, i) for i in range(_CANDIDATES_PER_PAIR * n)]
    pairs = _selected(model, candidates, n, what="random answers")
    name = f"random llama, seed {seed}, selected answers"
    return World(name, model, pairs, tuple(candidates[:n]), behaviour=False)


def llama_with_preferred_answers(seed: int, n: int = 48) -> World:
    """A llama with random weights whose own first token of the clean run is called the answer, and that of
    the corrupted run the foil.

    The worst selection there is: gap, preference and rank are perfect, and candidates made in the same way
    show them too. It is still no behaviour: the answers are accidents of each prompt, and none survives a
    prefix.
    """
    model, rng = _random_network(seed)
    drawn = [_random_pair(rng, i) for i in range(_CANDIDATES_PER_PAIR * n)]
    first = {
        side: np.array(
            model.logits(mx.array([getattr(pair, side) for pair in drawn]))[:, -1].astype(mx.float32)
        )
        for side in ("clean", "corrupted")
    }
    pairs = [
        replace(pair, answer=int(answer), foil=int(foil))
        for pair, answer, foil in zip(
            drawn, first["clean"].argmax(axis=1), first["corrupted"].argmax(axis=1), strict=True
        )
        if answer != foil
    ]
    if len(pairs) < 2 * n:
        raise PromptPairError(
            f"{len(pairs)} of {len(drawn)} random prompts change their first token, and {2 * n} were asked "
            "for. Ask for fewer."
        )
    name = f"random llama, seed {seed}, with its first tokens as answers"
    return World(name, model, tuple(pairs[:n]), tuple(pairs[n : 2 * n]), behaviour=False)


def shuffled_labels(world: World, seed: int) -> World:
    """The world's pairs, each with the answer and foil of another: there is no gap but by chance.

    Raises:
        PromptPairError: fewer than two pairs.
    """
    if len(world.pairs) < 2:
        raise PromptPairError("labels of fewer than two pairs cannot change places. Give a world with more.")
    order = np.random.default_rng(seed).permutation(len(world.pairs))
    # Along one cycle through all pairs, so that none keeps its own.
    other = {int(i): int(j) for i, j in zip(order, np.roll(order, 1), strict=True)}
    pairs = tuple(
        replace(pair, answer=world.pairs[other[i]].answer, foil=world.pairs[other[i]].foil)
        for i, pair in enumerate(world.pairs)
    )
    name = f"{world.name} with shuffled labels"
    return World(name, world.model, pairs, pairs, behaviour=False, metric=world.metric)


def weight_shuffled(world: World, seed: int) -> World:
    """The world's pairs on the weight-shuffled twin of its model."""
    twin = shuffled_twin(world.model, seed)
    return World(twin.name, twin, world.pairs, world.candidates, behaviour=False, metric=world.metric)


def with_effect(change: Floats, gap: Floats, effect: float) -> Floats:
    """Measured changes of the metric, moved to another effect: a − (R − effect)·g, with R = Σ a / Σ g.

    Their spread over the pairs, and its tails, stay those of the head that was measured.

    Args:
        change, gap: a and g of each pair, as in `remeasure.Measurement`.
    """
    a, g = np.asarray(change, dtype=np.float64), np.asarray(gap, dtype=np.float64)
    return np.asarray(a - (a.sum() / g.sum() - effect) * g)


def null_effect(change: Floats, gap: Floats, sesoi: float) -> Floats:
    """The worst null for a claim with this smallest effect S: an effect of exactly S/2."""
    return with_effect(change, gap, sesoi / 2)


def _random_network(seed: int) -> tuple[InterpretableModel, np.random.Generator]:
    """The model, and the generator that its weights were drawn with."""
    module = model_module("llama")
    network = module.Model(module.ModelArgs.from_dict(_ARGS))
    rng = np.random.default_rng(seed)

    def draw(path: str, old: mx.array) -> mx.array:
        values = rng.standard_normal(old.shape).astype(np.float32)
        if old.ndim < 2:
            return mx.array(1.0 + 0.1 * values)
        return mx.array(values * (1.0 if "embed" in path else 1.5 / old.shape[-1] ** 0.5))

    network.update(tree_map_with_path(draw, network.parameters()))
    mx.eval(network.parameters())
    return InterpretableModel(network), rng


def _random_pair(rng: np.random.Generator, i: int) -> PromptPair:
    clean = rng.integers(D_VOCAB, size=LENGTH)
    corrupted = clean.copy()
    corrupted[LENGTH // 2] = (clean[LENGTH // 2] + rng.integers(1, D_VOCAB)) % D_VOCAB
    answer, foil = rng.choice(D_VOCAB, size=2, replace=False)
    return PromptPair(
        tuple(clean.tolist()),
        tuple(corrupted.tolist()),
        answer=int(answer),
        foil=int(foil),
        cluster=f"random {i}",
    )


def _selected(
    model: InterpretableModel, candidates: Sequence[PromptPair], n: int, *, what: str
) -> tuple[PromptPair, ...]:
    selection = Selection(n, shown=True, one_length=True, apart_from=())
    return tuple(select_pairs(model, candidates, selection, what=what))
