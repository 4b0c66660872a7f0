"""Worlds with a circuit that was put there: the hand-built toy, with its heads moved, compiled programs."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.hook_points import head_label
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import repeated_random_pairs
from mlxterp.errors import PromptPairError
from mlxterp.models.toy_circuit import D_HEAD, N_HEADS, N_LAYERS, truth
from mlxterp.worlds.programs import PROGRAMS, TOKENS
from mlxterp.worlds.world import MATTERS_NOT, SiteTruth, World

_MISSES = 2000
"""Draws in a row without a new pair after which there is taken to be none."""
_HEAD = re.compile(r"L(\d+)\.H(\d+)")


def toy_induction(n: int = 48, seed: int = 0) -> World:
    """`toy-induction`: patched at all positions, L0.H2 and L1.H1 each recover the whole gap, the others
    nothing."""
    return _toy_world("toy-induction", InterpretableModel("toy-induction"), _known_heads(), n, seed)


def toy_with_moved_heads(seed: int, n: int = 48) -> World:
    """The same circuit with the heads of each layer in another order: no memory of the toy helps there."""
    original = InterpretableModel("toy-induction")
    module = copy.deepcopy(original.model)
    rng = np.random.default_rng(seed)
    heads: dict[tuple[int, int], tuple[int, int]] = {}
    for layer in range(N_LAYERS):
        order = rng.permutation(N_HEADS)  # the new head i is the old head order[i]
        rows = mx.array(np.concatenate([np.arange(D_HEAD) + D_HEAD * old for old in order]))
        attention = module.layers[layer].self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight = projection.weight[rows]
        attention.o_proj.weight = attention.o_proj.weight[:, rows]
        heads |= {(layer, int(old)): (layer, new) for new, old in enumerate(order)}
    mx.eval(module.parameters())
    model = InterpretableModel(module, original.tokenizer)
    name = f"toy-induction with moved heads, seed {seed}"
    return _toy_world(name, model, [heads[head] for head in _known_heads()], n, seed)


def compiled_program(name: str, n: int = 48, seed: int = 0) -> World:
    """A program compiled into weights: its heads and MLPs matter, the idle ones write where nothing reads.

    A part matters if it sends something that depends on the tokens to what is read; how large the effect of
    it alone is depends on the pairs, so it is not given.

    Args:
        name: one of `programs.PROGRAMS`.
    """
    case = PROGRAMS[name]()
    model, edges = case.compiled.model, case.compiled.truth
    senders = {edge.partition("→")[0] for edge in edges}
    sites = {
        f"L{layer}.z.h{head}": head_label(layer, head)
        for layer in range(model.n_layers)
        for head in range(model.n_heads)
    } | {f"L{layer}.mlp_out": f"L{layer}.mlp" for layer in range(model.n_layers)}
    known = {
        site: SiteTruth(matters=True) if node in senders else MATTERS_NOT for site, node in sites.items()
    }
    rng = np.random.default_rng(seed)
    candidates: list[PromptPair] = []
    seen: set[tuple[int, ...]] = set()
    misses = 0
    while len(candidates) < n and misses < _MISSES:
        misses += 1
        clean, corrupted = case.draw(rng), case.draw(rng)
        right, wrong = case.answer(clean), case.answer(corrupted)
        one, other = (TOKENS, *clean.tolist()), (TOKENS, *corrupted.tolist())
        if right == wrong or seen & {one, other}:
            continue
        seen |= {one, other}
        pair = PromptPair(one, other, cluster=f"{name} {len(candidates)}")
        candidates.append(pair if case.number else replace(pair, answer=int(right), foil=int(wrong)))
        misses = 0
    if len(candidates) < n:
        raise PromptPairError(
            f"{len(candidates)} independent pairs were found for {name!r}, {n} were asked. Ask for fewer."
        )
    metric = "l2" if case.number else "logit_diff"
    return World(name, model, tuple(candidates), tuple(candidates), known, metric=metric)


def _known_heads() -> list[tuple[int, int]]:
    made = truth()
    found = [_HEAD.fullmatch(made[name]) for name in ("previous_token_head", "induction_head")]
    return [(int(match[1]), int(match[2])) for match in found if match]


def _toy_world(
    name: str, model: InterpretableModel, planted: list[tuple[int, int]], n: int, seed: int
) -> World:
    drawn = repeated_random_pairs(model, n, seed=seed, shown=False)
    pairs = tuple(replace(pair, cluster=f"repetition {i}") for i, pair in enumerate(drawn))
    known = {
        f"L{layer}.z.h{head}": SiteTruth(matters=True, effect=1.0)
        if (layer, head) in planted
        else MATTERS_NOT
        for layer in range(N_LAYERS)
        for head in range(N_HEADS)
    }
    return World(name, model, pairs, pairs, known)
