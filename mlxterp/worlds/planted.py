"""Worlds with a circuit that was put there: the hand-built toy, with its heads moved, compiled programs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.causal.prompts.encoding import token_id, token_rows
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.component_names import head_label, parse_head
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import repeated_random_pairs
from mlxterp.errors import PromptPairError, SweepError
from mlxterp.metrics import Floats
from mlxterp.models.toy_circuit import D_HEAD, N_HEADS, N_LAYERS, truth
from mlxterp.worlds.programs import PROGRAMS, TOKENS, Case, backup
from mlxterp.worlds.twin import edited_copy
from mlxterp.worlds.world import MATTERS_NOT, SiteTruth, World

_MISSES = 2000
"""Draws in a row without a new pair after which there is taken to be none."""
_PLANTING_STEPS = 20
_CALIBRATION = 8
_THINGS = (
    *("film", "book", "song", "play", "game", "meal"),
    *("poem", "painting", "dance", "show", "story", "concert"),
)
_PRAISE = ["wonderful", "excellent", "great", "beautiful", "brilliant", "amazing"]
_BLAME = ["terrible", "awful", "bad", "ugly", "boring", "horrible"]


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
    return _program_world(name, case, known, n, seed)


def backup_heads(n: int = 48, seed: int = 0) -> World:
    """A hand-built circuit of two heads with the same message, of which either is enough.

    Patched from the clean run, each recovers half of the gap and both all of it. Set to zero one at a time,
    neither is missed; both together are. So "sufficient" and "necessary" come to different verdicts here.
    """
    known = {
        "L0.z.h0": SiteTruth(matters=True, effect=0.5),
        "L0.z.h1": MATTERS_NOT,
        "L0.z.h2": SiteTruth(matters=True, effect=0.5),
        "L0.mlp_out": SiteTruth(matters=True, effect=1.0),
    }
    return _program_world("backup", backup(), known, n, seed)


def with_inert_heads(world: World, heads: Sequence[tuple[int, int]]) -> World:
    """The world with these heads (layer, head) cut off: they compute what they did, and nothing reads it.

    Known exactly: hooks fire there, patching changes the activation, and the effect is 0. What else was known
    of the world no longer is.

    Raises:
        SweepError: a head that the model does not have.
    """
    model = world.model
    absent = [h for h in heads if not (0 <= h[0] < model.n_layers and 0 <= h[1] < model.n_heads)]
    if absent:
        raise SweepError(
            f"{head_label(*absent[0])}: {model.name} has layers 0 to {model.n_layers - 1} and heads 0 to "
            f"{model.n_heads - 1}. Name one of them."
        )
    edited = edited_copy(model, f"{model.name} with {len(heads)} heads cut off")
    for layer, head in heads:
        _cut_off(edited, layer, head)
    known = {f"L{layer}.z.h{head}": MATTERS_NOT for layer, head in heads}
    return replace(world, name=f"{world.name}, {len(heads)} heads cut off", model=edited, truth=known)


def with_planted_direction(
    model: InterpretableModel,
    pairs: Sequence[PromptPair],
    calibration: Sequence[PromptPair],
    *,
    gap: float = 10.0,
) -> World:
    """A behaviour that the model does not have, planted in one head of its last layer.

    At the last position the head's z tells clean from corrupted prompts along one direction w (of the layer's
    heads the one that does so most clearly on the calibration pairs). What the head wrote is replaced by
    `scale · (w · z)` times the direction from foil to answer in the unembedding, scaled and centred so that
    clean prompts prefer the answer, corrupted ones the foil, with a mean gap of `gap`
    logits. Two other heads of the layer are cut off.

    Known: the planted head recovers most of the gap at the last position, the heads that were cut off
    nothing. Whatever carries the difference to the head is not known.

    Args:
        pairs, calibration: different prompts, all with one answer and one foil.
        gap: in logits, on the calibration pairs, within a half.

    Raises:
        PromptPairError: answers or foils that differ.
    """
    targets = {(pair.answer, pair.foil) for pair in (*pairs, *calibration)}
    answers = [token for token, foil in targets if token is not None and foil is not None]
    if len(targets) != 1 or len(answers) != 1:
        raise PromptPairError(
            f"{len(targets)} different answers and foils. A direction is planted between one answer and one "
            "foil: give the same two to all pairs."
        )
    answer, foil = (token_id(model, text) for text in next(iter(targets)) if text is not None)
    layer = model.n_layers - 1
    point = HookPoint("z", layer)
    at_end = np.array(
        [[_at_end(model, prompt, point) for prompt in (p.clean, p.corrupted)] for p in calibration]
    )
    difference = at_end[:, 0] - at_end[:, 1]
    mean, spread = difference.mean(axis=0), difference.std(axis=0) + 1e-6
    clarity = np.linalg.norm(mean, axis=-1) / np.linalg.norm(spread, axis=-1)
    head, *cut = (int(i) for i in np.argsort(-clarity)[[0, -1, -2]])
    # Without what all prompts share, so that w · z is about ½ in clean prompts and −½ in corrupted ones.
    shared = at_end[:, :, head].mean(axis=(0, 1))
    w = mean[head] - mean[head] @ shared / (shared @ shared) * shared
    w /= w @ mean[head]
    directions, _ = model.architecture.logit_directions(mx.array([answer, foil]))
    towards = np.array((directions[0] - directions[1]).astype(mx.float32), dtype=np.float64)
    towards /= np.linalg.norm(towards) ** 2
    edited = edited_copy(model, f"{model.name} with a planted direction")
    for each in (head, *cut):
        _cut_off(edited, layer, each)
    written = np.zeros((model.d_model, model.n_heads * model.d_head))
    written[:, head * model.d_head : (head + 1) * model.d_head] = np.outer(towards, w)
    before, scale, offset = _weight(edited, layer), 1.0, 0.0
    for _ in range(_PLANTING_STEPS):  # the final norm divides by what is written: a few steps find the scale
        along = scale * (w + offset * shared / (shared @ shared))
        written[:, head * model.d_head : (head + 1) * model.d_head] = np.outer(towards, along)
        _set_weight(edited, layer, before + mx.array(written.astype(np.float32)))
        found = np.array([_differences(edited, pair, answer, foil) for pair in calibration]).mean(axis=0)
        reached, middle = float(found[0] - found[1]), float(found.mean())
        if abs(reached - gap) < 0.5 and abs(middle) < 0.5:
            break
        now = max(reached, gap / 8)
        offset -= 0.7 * middle / now
        scale *= gap / now
    else:
        raise PromptPairError(
            f"no scale gives a mean gap of {gap:g} logits: head {head} of layer {layer} does not tell "
            "these clean prompts from the corrupted ones. Give pairs that differ more."
        )
    known = {f"L{layer}.z.h{head}@-1": SiteTruth(matters=True)}
    known |= {f"L{layer}.z.h{i}@-1": MATTERS_NOT for i in cut}
    return World(edited.name, edited, tuple(pairs), tuple(pairs), known)


def smollm2_with_direction(n: int = 48, seed: int = 0) -> World:
    """SmolLM2-135M, which says " yes" after praise and " no" after blame: planted, see
    `with_planted_direction`. Costs two models in memory and about ten seconds."""
    model = InterpretableModel("smollm2-135m")
    drawn = _opinions(n + _CALIBRATION, seed)
    return with_planted_direction(model, drawn[_CALIBRATION:], drawn[:_CALIBRATION])


def _program_world(name: str, case: Case, known: Mapping[str, SiteTruth], n: int, seed: int) -> World:
    model = case.compiled.model
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


def _opinions(n: int, seed: int) -> list[PromptPair]:
    """Pairs of praise and blame of the same thing, every one of which differs in its thing or its words."""
    rng = np.random.default_rng(seed)
    every = [(t, p, b) for t in _THINGS for p, b in zip(_PRAISE, _BLAME, strict=True)]
    if n > len(every):
        raise PromptPairError(f"{n} pairs were asked for, and there are {len(every)}. Ask for fewer.")
    chosen = [every[i] for i in rng.permutation(len(every))[:n]]
    return [
        PromptPair(
            f"I think the {thing} is {praise}. My answer is",
            f"I think the {thing} is {blame}. My answer is",
            answer=" yes",
            foil=" no",
            cluster=f"{thing} {praise}",
        )
        for thing, praise, blame in chosen
    ]


def _at_end(model: InterpretableModel, prompt: str | Sequence[int], point: HookPoint) -> Floats:
    """`[head, d_head]` at the last position."""
    _, seen = model.run(mx.array(token_rows(model, [prompt], "prompt")), capture=[point])
    return np.array(seen[point][0, -1].astype(mx.float32), dtype=np.float64)


def _differences(model: InterpretableModel, pair: PromptPair, answer: int, foil: int) -> tuple[float, float]:
    """The logit of the answer minus that of the foil, clean and corrupted."""
    rows = [np.array(model.logits(each)[0, -1].astype(mx.float32)) for each in (pair.clean, pair.corrupted)]
    return float(rows[0][answer] - rows[0][foil]), float(rows[1][answer] - rows[1][foil])


def _weight(model: InterpretableModel, layer: int) -> mx.array:
    """Heads write through the columns of the output projection: `[d_model, head · d_head]`."""
    projection: Any = model.architecture.layers[layer].out_proj
    weight: mx.array = projection.weight
    return weight


def _set_weight(model: InterpretableModel, layer: int, weight: mx.array) -> None:
    projection: Any = model.architecture.layers[layer].out_proj
    projection.weight = weight.astype(projection.weight.dtype)
    mx.eval(projection.weight)


def _cut_off(model: InterpretableModel, layer: int, head: int) -> None:
    columns = np.ones(model.n_heads * model.d_head, dtype=np.float32)
    columns[head * model.d_head : (head + 1) * model.d_head] = 0
    _set_weight(model, layer, _weight(model, layer) * mx.array(columns))


def _known_heads() -> list[tuple[int, int]]:
    made = truth()
    found = [parse_head(made[name]) for name in ("previous_token_head", "induction_head")]
    return [head for head in found if head is not None]


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
