"""Edge attribution patching: what corrupting each edge of the graph would do, estimated for all edges at
once.

What lives here: EAP, EAP with integrated gradients, and their products. What doesn't: the edges (`graph.py`),
the gradients at their ends (`edge_attribution.py`), patching edges and circuits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import last_position_only
from mlxterp.causal.circuits.edge_patching import (
    EdgeAblation,
    carried,
    check_ablation,
    different,
)
from mlxterp.causal.circuits.graph import Graph, graph_of
from mlxterp.causal.gradients.backward import (
    TOKEN_BUDGET,
    Differentiable,
    Plus,
    differentiable,
    refuse_at_its_minimum,
    slopes,
)
from mlxterp.causal.prompts.alignment import Align, at_clean_positions
from mlxterp.causal.prompts.encoding import Ids, Prompt
from mlxterp.causal.prompts.pair import (
    Prepared,
    PromptPair,
    as_pairs,
    prepare,
)
from mlxterp.core import interventions
from mlxterp.core.architecture import linear
from mlxterp.core.architecture.attention import NAME as ATTENTION_FUNCTION
from mlxterp.core.architecture.parts import Layer, Prologue
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import Around, renamed, tapped
from mlxterp.errors import CapabilityUnavailable, SweepError
from mlxterp.metrics import Floats, Metric, MetricFunction
from mlxterp.results import EdgeScoresResult
from mlxterp.statistics.effects import effects

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
QKV = ("q", "k", "v")


class _Seen(Exception):
    """Ends a block's call where what it was called for is known."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True, eq=False)
class Backward:
    """One backward pass: gradients behind what reads the stream, and the stream where it is read."""

    behind: dict[Hashable, mx.array]
    stream: dict[HookPoint, mx.array]


class EdgeInputs:
    """The inputs of a model's graph, ready to be differentiated.

    Raises:
        CapabilityUnavailable: the heads' inputs of this architecture cannot be told apart.
    """

    def __init__(self, model: InterpretableModel, graph: Graph) -> None:
        self._model, self._graph = model, graph
        self._layers = model.architecture.layers
        self.separate = all(_separate(layer, graph) for layer in self._layers)
        if not self.separate:
            model.architecture.require(*QKV)
        self._last = HookPoint("resid_post", graph.n_layers - 1)

    @property
    def any_position(self) -> bool:
        """Whether positions can be looked at one by one: the model's own attention needs all of them."""
        return self.separate

    def backward(self, tokens: Ids, metric: Differentiable, embed: mx.array | None) -> Backward:
        """One forward and backward of these rows; `embed` replaces what enters the first block."""
        ids = mx.array(tokens)
        layers = range(self._graph.n_layers)
        read = [HookPoint("resid_pre", layer) for layer in layers]
        if self._graph.has_mlp and not self._graph.parallel:
            read += [HookPoint("resid_mid", layer) for layer in layers]
        start = [] if embed is None else [interventions.edit("embed", lambda _: embed)]

        points = [self._last]
        if not self.separate:
            points += [HookPoint(name, layer) for layer in layers for name in QKV]

        def run(plus: Plus) -> tuple[mx.array, dict[HookPoint, mx.array]]:
            edits = [*start, *(interventions.edit(point, partial(plus, point)) for point in points)]
            with tapped(self._taps(plus)), last_position_only(self._model, ()):
                logits, seen = self._model.run(ids, interventions=edits, capture=read)
            return mx.sum(metric(logits[:, -1].astype(mx.float32))), seen

        behind, stream = slopes(run)
        return Backward(behind, stream)

    def _taps(self, plus: Plus) -> list[tuple[nn.Module, Around]]:
        taps: list[tuple[nn.Module, Around]] = []
        for index, layer in enumerate(self._layers):
            if self.separate and layer.attn is not None:
                for name, module in zip(QKV, PROJECTIONS, strict=True):
                    taps.append((layer.attn[module], _output_plus(plus, (name, index))))
            if layer.mlp is not None:
                taps.append((layer.mlp, _input_plus(plus, ("mlp", index))))
        return taps

    def of_layer(
        self, layer: int, seen: Backward, tokens: Ids, span: slice
    ) -> tuple[mx.array, mx.array | None]:
        """Gradients in the stream, of the attention inputs and of the MLP's, in the order of the graph.

        Args:
            span: the positions to look at; all of them unless `any_position`.

        Returns:
            [inputs, rows, pos, d_model] for q, k, v of the layer's heads, and [1, rows, pos, d_model] or
            None.
        """
        prologue = self._model.architecture.prologue(mx.array(tokens))
        h = seen.stream[HookPoint("resid_pre", layer)][:, span]
        attention = (self._by_weights if self.separate else self._by_block)(layer, seen, h, span, prologue)
        if not self._graph.has_mlp:
            return attention, None
        if not self._graph.parallel:
            h = seen.stream[HookPoint("resid_mid", layer)][:, span]
        behind = seen.behind["mlp", layer][:, span]
        return attention, self._through_norm(layer, h, behind[None], prologue, mlp=True)

    def of_logits(self, seen: Backward, span: slice) -> mx.array:
        """[1, rows, pos, d_model]."""
        return seen.behind[self._last][None, :, span]

    def _by_weights(
        self, layer: int, seen: Backward, h: mx.array, span: slice, prologue: Prologue
    ) -> mx.array:
        attn = self._layers[layer].attn
        assert attn is not None, "a graph has attention in every layer"
        parts = []
        for name, module in zip(QKV, PROJECTIONS, strict=True):
            n_heads = self._graph.n_heads if name == "q" else self._graph.n_kv_heads
            weight = linear.rows(attn[module])
            behind = seen.behind[name, layer][:, span]
            by_head = behind.reshape(*behind.shape[:2], n_heads, -1)
            parts.append(mx.einsum("rthe,hed->hrtd", by_head, weight.reshape(n_heads, -1, weight.shape[-1])))
        return self._through_norm(layer, h, mx.concatenate(parts), prologue, mlp=False)

    def _through_norm(
        self, layer: int, h: mx.array, behind: mx.array, prologue: Prologue, *, mlp: bool
    ) -> mx.array:
        """Gradients [inputs, rows, pos, d_model] behind a norm as gradients at its input `h`."""
        part = self._layers[layer]
        module = part.mlp if mlp else part.attn
        taps: list[tuple[Any, Around]] = [(module, _input_seen)]
        if mlp:  # attention adds nothing, so that the block's input is what the MLP's norm sees
            taps.append((part.attn, _nothing))
        if mlp and part.attn_adds is not part.attn:
            taps.append((part.attn_adds, _nothing))

        def normed(x: mx.array) -> mx.array:
            with tapped(taps):
                found: mx.array = self._until_seen(layer, x, prologue)
            return found

        inputs, rows, *rest = behind.shape
        x = mx.broadcast_to(h[None], behind.shape).reshape(inputs * rows, *rest)
        cotangent = behind.reshape(x.shape).astype(x.dtype)
        (found,) = mx.vjp(normed, [x], [cotangent])[1]
        return found.astype(mx.float32).reshape(inputs, rows, *rest)

    def _by_block(self, layer: int, seen: Backward, h: mx.array, span: slice, prologue: Prologue) -> mx.array:
        """Through the model's own block, from q, k and v as attention uses them; one batch row per head."""
        assert span == slice(None), "attention needs all positions"
        sizes = (self._graph.n_heads, self._graph.n_kv_heads, self._graph.n_kv_heads)
        n_inputs, rows = sum(sizes), len(h)
        x = mx.concatenate([h] * n_inputs)
        cotangents, before = [], 0
        for name, size in zip(QKV, sizes, strict=True):
            behind = seen.behind[HookPoint(name, layer)]  # [rows, pos, head, d_head]
            own = mx.eye(size)[:, None, None, :, None] * behind[None]
            edges = [(before, n_inputs - before - size), *[(0, 0)] * 4]
            per_input = mx.pad(own, edges).reshape(n_inputs * rows, *behind.shape[1:])
            cotangents.append(per_input.swapaxes(1, 2).astype(x.dtype))
            before += size

        def qkv(x: mx.array) -> list[mx.array]:
            with renamed(ATTENTION_FUNCTION, [(self._layers[layer].namespace, _qkv_seen)]):
                return list(self._until_seen(layer, x, prologue))

        (found,) = mx.vjp(qkv, [x], cotangents)[1]
        return found.astype(mx.float32).reshape(n_inputs, *h.shape)

    def _until_seen(self, layer: int, h: mx.array, prologue: Prologue) -> Any:
        try:
            self._model.architecture.block(layer, h, prologue)
        except _Seen as seen:
            return seen.value
        raise CapabilityUnavailable(
            f"{self._model.name}: layer {layer} ran without calling its attention or its MLP, so what they "
            "read is not known. Attribute to nodes instead of edges."
        )


def _separate(layer: Layer, graph: Graph) -> bool:
    """Whether queries, keys and values come from weights of their own, head after head."""
    attn = layer.attn
    if attn is None or not all(isinstance(attn.get(name), nn.Module) for name in PROJECTIONS):
        return False
    n_heads = (graph.n_heads, graph.n_kv_heads, graph.n_kv_heads)
    return all(
        linear.readable(attn[name]) and attn[name]["weight"].shape[0] % n == 0
        for name, n in zip(PROJECTIONS, n_heads, strict=True)
    )


def _output_plus(plus: Plus, key: Hashable) -> Around:
    return lambda call, *args, **kwargs: plus(key, call(*args, **kwargs))


def _input_plus(plus: Plus, key: Hashable) -> Around:
    return lambda call, x, *args, **kwargs: call(plus(key, x), *args, **kwargs)


def _nothing(_: Callable[..., Any], x: mx.array, *__: Any, **___: Any) -> mx.array:
    return mx.zeros_like(x)


def _input_seen(_: Callable[..., Any], x: mx.array, *__: Any, **___: Any) -> mx.array:
    raise _Seen(x)


def _qkv_seen(q: mx.array, k: mx.array, v: mx.array, *_: Any, **__: Any) -> mx.array:
    raise _Seen((q, k, v))


Method: TypeAlias = Literal["eap", "eap-ig", "clean-corrupted"]

STEPS = 5
"""Steps of the path integral, as Hanna et al. use them."""
_NUMBERS = 1 << 26
"""Numbers in one block of what the senders write: 0.25 GiB."""
_EMBED = HookPoint("embed")


def edge_attribution(
    model: InterpretableModel,
    clean: Prompt | PromptPair | Sequence[PromptPair] | Prepared,
    corrupted: Prompt | None = None,
    *,
    method: Method = "eap",
    steps: int | None = None,
    metric: str | MetricFunction | Metric | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    align: Align = "strict",
    ablation: EdgeAblation = "corrupted",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EdgeScoresResult:
    """What carrying the corrupted value over each edge into the clean run would do, estimated by a gradient.

        EAP(u→v)  Σ_pos ⟨out_u(corrupted) − out_u(clean), ∂m/∂in_v⟩     the gradient taken in the clean run
        score     −EAP(u→v) / (m_clean − m_corrupted)      0 = the edge is not needed, 1 = all of the gap

    in_v is the residual stream as this input alone reads it, before any norm: a head's queries, keys (per
    key/value head), values, an MLP, the logits. A positive score supports the behaviour. The scores of all
    edges that leave a node add up to its attribution patching score, noising.

    Args:
        clean, corrupted, metric, answer, foil, seed: as for `activation_patching`.
        align: as for `activation_patching`, for method "eap"; a position without a counterpart counts as
            unchanged.
        ablation: what an edge carries instead: "corrupted" as above, "zero", or "mean" over all prompts at
            the same position; paths of "eap-ig" and "clean-corrupted" then lead there. Scores stay shares of
            the pairs' own gap.
        method: "eap": the gradient in the clean run. "eap-ig": its mean over inputs e_corrupted + (k/steps)
            (e_clean − e_corrupted), k = 1 … steps, as the paper has it (its code runs k = 0 … steps − 1); one
            step is EAP. "clean-corrupted": the mean of the gradients at both ends.
        steps: of "eap-ig"; 5 by default.
        progress: called with (examples done, examples in all).

    Costs the pair's two baselines, one forward of both runs, then a forward and a backward per step.

    Raises:
        MetricError: a metric without a gradient; a distance from the clean run, for "eap".
        LengthMismatch: an edge carries each position's value to the same position.
        CapabilityUnavailable: this architecture's inputs cannot be told apart.

    Source: Syed et al. 2023 (2310.10348), EAP; Hanna et al. 2024 (2403.17806), EAP-IG (inputs).
    Where a norm stands behind the heads (gemma2, olmo2), each head's share is taken with that norm's scale
    frozen.
    """
    ends = _path(method, steps)
    graph = graph_of(model)
    inputs = EdgeInputs(model, graph)
    prepared = prepare(model, as_pairs(clean, corrupted, answer=answer, foil=foil), metric, align=align)
    if prepared.alignment.stated is not None and set(ends) != {1.0}:
        raise SweepError(
            f"method={method!r} goes from the corrupted embeddings to the clean ones, position by position, "
            "and these prompts are aligned by a map. Use method='eap', or prompts of the same length."
        )
    check_ablation(ablation, prepared.clean, prepared.corrupted)
    if set(ends) == {1.0}:
        refuse_at_its_minimum(prepared.metric, "clean")
    changes = []
    means = _means(model, graph, prepared) if ablation == "mean" else {}
    at_once = max(1, TOKEN_BUDGET // prepared.clean.shape[1])
    for start in range(0, len(prepared.clean), at_once):
        examples = np.arange(start, min(start + at_once, len(prepared.clean)))
        changes.append(_changes(model, graph, inputs, prepared, metric, examples, ends, ablation, means))
        if progress is not None:
            progress(int(examples[-1]) + 1, len(prepared.clean))
    one, zero = prepared.corrupted_metric, prepared.clean_metric
    patched = zero[:, None] + np.concatenate(changes)
    found = effects(patched, one=one, zero=zero, clusters=prepared.clusters, seed=seed)
    options = {"method": method, "direction": "noising", "ablation": ablation}
    return EdgeScoresResult(
        edges=tuple(str(edge) for edge in graph.edges()),
        scores=found.effects,
        method=method,
        steps=len(ends) if method == "eap-ig" else None,
        metric=prepared.metric.name,
        clean_metric=float(zero.mean()),
        corrupted_metric=float(one.mean()),
        per_example=found.per_example if len(prepared.pairs) > 1 else None,
        ci_low=found.low,
        ci_high=found.high,
        measured_on=prepared.measured_on(model) | options | found.facts(),
    )


def _path(method: str, steps: int | None) -> tuple[float, ...]:
    """Where gradients are taken: 0 is the corrupted input, 1 the clean one."""
    if method not in get_args(Method):
        raise SweepError(f"method={method!r} is not known. Choose one of: {', '.join(get_args(Method))}.")
    if method != "eap-ig":
        if steps is not None:
            raise SweepError(f"steps={steps} belongs to method='eap-ig'; {method!r} has none. Leave it out.")
        return (1.0,) if method == "eap" else (0.0, 1.0)
    n = STEPS if steps is None else steps
    if n < 1:
        raise SweepError(f"steps={steps}: the path from corrupted to clean has at least one step.")
    return tuple(k / n for k in range(1, n + 1))


class _Writes(NamedTuple):
    """What is needed of both runs, [examples, …]: the embedding, every head's z, what every MLP adds."""

    clean: dict[HookPoint, mx.array]
    corrupted: dict[HookPoint, mx.array]


def _changes(
    model: InterpretableModel,
    graph: Graph,
    inputs: EdgeInputs,
    prepared: Prepared,
    given_metric: object,
    examples: Ids,
    ends: Sequence[float],
    ablation: EdgeAblation,
    means: Mapping[HookPoint, mx.array],
) -> Floats:
    """The estimated change of the metric [examples, edges] in the clean run, edge by edge."""
    clean, corrupted = prepared.clean[examples], prepared.corrupted[examples]
    writes = _both_runs(model, graph, clean, corrupted, prepared.alignment.stated)
    own_ends = ablation == "corrupted"  # whether the path begins at the corrupted prompts themselves
    if not own_ends:
        stand_in = {
            p: mx.broadcast_to(means.get(p, mx.zeros((1,))), x.shape) for p, x in writes.clean.items()
        }
        writes = _Writes(writes.clean, stand_in)
    n, length = clean.shape
    total = np.zeros((n, graph.n_edges))
    at_once = max(1, TOKEN_BUDGET // clean.size)
    for start in range(0, len(ends), at_once):
        some = ends[start : start + at_once]
        tokens = np.concatenate([corrupted if end == 0.0 and own_ends else clean for end in some])
        metric = differentiable(
            given_metric, prepared.metric, prepared.targets.take(np.tile(examples, len(some)))
        )
        seen = inputs.backward(tokens, metric, _between(writes, some, own_ends=own_ends))
        first = prepared.alignment.same_until if own_ends else 0
        for span in _spans(graph, inputs, first, length, n * model.d_model):
            written = _written(model, graph, writes, span)
            gradients = _input_gradients(graph, inputs, seen, tokens, span, len(some))
            blocks = [_products(written, gradient, n_senders) for gradient, n_senders in gradients]
            mx.eval(blocks)
            total += np.concatenate([np.array(block) for block in blocks], axis=1)
    return total / len(ends)


def _means(model: InterpretableModel, graph: Graph, prepared: Prepared) -> dict[HookPoint, mx.array]:
    """Means over all prompts [1, pos, …] of what `_both_runs` reads."""
    runs = _both_runs(model, graph, prepared.clean, prepared.corrupted, prepared.alignment.stated)
    first = different(prepared.clean, prepared.corrupted)
    means = {p: carried("mean", x, runs.corrupted[p], first)[:1] for p, x in runs.clean.items()}
    mx.eval(means)
    return means


def _both_runs(
    model: InterpretableModel,
    graph: Graph,
    clean: Ids,
    corrupted: Ids,
    positions: Sequence[tuple[int, int]] | None,
) -> _Writes:
    names = ("z", "mlp_out") if graph.has_mlp else ("z",)
    points = [_EMBED, *(HookPoint(name, layer) for layer in range(graph.n_layers) for name in names)]
    if positions is not None:
        own, other = sweep.capture(model, clean, points), sweep.capture(model, corrupted, points)
        return _Writes(own, {p: at_clean_positions(own[p], other[p], positions) for p in points})
    seen = sweep.capture(model, np.concatenate([clean, corrupted]), points)
    n = len(clean)
    return _Writes({p: x[:n] for p, x in seen.items()}, {p: x[n:] for p, x in seen.items()})


def _between(writes: _Writes, ends: Sequence[float], *, own_ends: bool) -> mx.array | None:
    """The embeddings at these points of the path; None where they are the prompts' own."""
    if all(end == 1.0 or (end == 0.0 and own_ends) for end in ends):
        return None
    clean, corrupted = writes.clean[_EMBED], writes.corrupted[_EMBED]
    return mx.concatenate([clean if end == 1.0 else corrupted + end * (clean - corrupted) for end in ends])


def _spans(graph: Graph, inputs: EdgeInputs, start: int, length: int, numbers: int) -> Iterator[slice]:
    """Blocks of positions small enough to hold what every sender writes there.

    Before `start` nothing changes: both runs are the same there.
    """
    if not inputs.any_position:
        yield slice(None)
        return
    size = max(1, _NUMBERS // (numbers * len(graph.senders)))
    for first in range(start, length, size):
        yield slice(first, min(first + size, length))


def _written(model: InterpretableModel, graph: Graph, writes: _Writes, span: slice) -> mx.array:
    """Corrupted minus clean, of what each sender adds to the stream: [examples, senders, pos, d_model]."""

    def change(point: HookPoint) -> mx.array:
        return (writes.corrupted[point][:, span].astype(mx.float32) - writes.clean[point][:, span])[:, None]

    parts = [change(_EMBED)]
    for layer in range(graph.n_layers):
        z = HookPoint("z", layer)
        by_head = [
            model.architecture.head_outputs(layer, run[z][:, span])[0]
            for run in (writes.corrupted, writes.clean)
        ]
        parts.append((by_head[0] - by_head[1]).swapaxes(1, 2))
        if graph.has_mlp:
            parts.append(change(HookPoint("mlp_out", layer)))
    return mx.concatenate(parts, axis=1)


def _input_gradients(
    graph: Graph, inputs: EdgeInputs, seen: Backward, tokens: Ids, span: slice, steps: int
) -> Iterator[tuple[mx.array, int]]:
    """Gradients [inputs, examples, pos, d_model], added up over the steps, and how many senders reach
    them."""

    def added_up(found: mx.array) -> mx.array:
        return found.reshape(len(found), steps, -1, *found.shape[2:]).sum(axis=1)

    per_layer = len(graph.senders) // graph.n_layers
    for layer in range(graph.n_layers):
        attention, mlp = inputs.of_layer(layer, seen, tokens, span)
        before = 1 + layer * per_layer
        yield added_up(attention), before
        if mlp is not None:
            yield added_up(mlp), before + (0 if graph.parallel else graph.n_heads)
    yield added_up(inputs.of_logits(seen, span)), len(graph.senders)


def _products(written: mx.array, gradient: mx.array, n_senders: int) -> mx.array:
    """[examples, inputs · senders], summed over positions and the stream."""
    n_inputs, n = gradient.shape[:2]
    of_inputs = gradient.swapaxes(0, 1).reshape(n, n_inputs, -1)
    of_senders = written[:, :n_senders].reshape(n, n_senders, -1)
    return (of_inputs @ of_senders.swapaxes(1, 2)).reshape(n, -1)
