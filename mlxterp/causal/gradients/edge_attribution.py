"""Edge attribution patching: what corrupting each edge of the graph would do, estimated for all edges at
once by EAP, or EAP with integrated gradients.

An estimate is the change of what the sender writes, times the gradient at the receiver's input.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import last_position_only
from mlxterp.causal.circuits.edge_patching import Activations, EdgeAblation, EdgePrompts
from mlxterp.causal.circuits.graph import Graph, graph_of
from mlxterp.causal.circuits.partial_forward import (
    Reached,
    Taps,
    present,
    run_until_reached,
    stop_with_input,
    without_attention,
)
from mlxterp.causal.finite import require_finite
from mlxterp.causal.gradients.backward import (
    TOKEN_BUDGET,
    Differentiable,
    Plus,
    differentiable,
    refuse_at_its_minimum,
    slopes,
)
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import Ids, Prompt
from mlxterp.causal.prompts.pair import MetricLike, Pairs, Prepared, as_pairs, prepare
from mlxterp.core import interventions
from mlxterp.core.architecture import linear
from mlxterp.core.architecture.attention import NAME as ATTENTION_FUNCTION
from mlxterp.core.architecture.parts import Layer, Prologue
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import Around, renamed, tapped
from mlxterp.errors import SweepError
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats
from mlxterp.progress import ProgressOption, reporting
from mlxterp.results import EdgeScoresResult, MeasuredAgain
from mlxterp.statistics.effects import effects, strongest_elsewhere

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
QKV = ("q", "k", "v")


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
        self._model, self.graph = model, graph
        self._layers = model.architecture.layers
        self.separate = all(_separate(layer, graph) for layer in self._layers)
        if not self.separate:
            model.architecture.require(*QKV)
        self._last = HookPoint("resid_post", graph.n_layers - 1)

    @property
    def any_position(self) -> bool:
        """Whether positions can be taken in blocks: the model's own attention needs all of them at once."""
        return self.separate

    def backward(self, tokens: Ids, metric: Differentiable, embed: mx.array | None) -> Backward:
        """One forward and backward of these rows; `embed` replaces what enters the first block."""
        ids = mx.array(tokens)
        layers = range(self.graph.n_layers)
        read = [HookPoint("resid_pre", layer) for layer in layers]
        if self.graph.has_mlp and not self.graph.parallel:
            read += [HookPoint("resid_mid", layer) for layer in layers]
        start = [] if embed is None else [interventions.edit("embed", lambda _: embed)]

        points = [self._last]
        if not self.separate:
            points += [HookPoint(name, layer) for layer in layers for name in QKV]

        def run(plus: Plus) -> tuple[mx.array, dict[HookPoint, mx.array]]:
            edits = [*start, *(interventions.edit(point, partial(plus, point)) for point in points)]
            with tapped(self._taps(plus)), last_position_only(self._model, ()):
                logits, captured = self._model.run(ids, interventions=edits, capture=read)
            return mx.sum(metric(logits[:, -1].astype(mx.float32))), captured

        behind, stream = slopes(run)
        return Backward(behind, stream)

    def _taps(self, plus: Plus) -> Taps:
        taps: Taps = []
        for index, layer in enumerate(self._layers):
            if self.separate and layer.attn is not None:
                for name, module in zip(QKV, PROJECTIONS, strict=True):
                    taps.append((layer.attn[module], _output_plus(plus, (name, index))))
            if layer.mlp is not None:
                taps.append((layer.mlp, _input_plus(plus, ("mlp", index))))
        return taps

    def of_layer(
        self, layer: int, backward: Backward, tokens: Ids, span: slice
    ) -> tuple[mx.array, mx.array | None]:
        """Gradients in the stream, of the attention inputs and of the MLP's, in the order of the graph.

        Args:
            span: the positions; all of them unless `any_position`.

        Returns:
            [inputs, rows, pos, d_model] for q, k, v of the layer's heads, and [1, rows, pos, d_model] or
            None.
        """
        with self._model.architecture.float32_stream():
            prologue = self._model.architecture.prologue(mx.array(tokens))
        h = backward.stream[HookPoint("resid_pre", layer)][:, span]
        attention = (self._by_weights if self.separate else self._by_block)(
            layer, backward, h, span, prologue
        )
        if not self.graph.has_mlp:
            return attention, None
        if not self.graph.parallel:
            h = backward.stream[HookPoint("resid_mid", layer)][:, span]
        behind = backward.behind["mlp", layer][:, span]
        return attention, self._through_norm(layer, h, behind[None], prologue, mlp=True)

    def of_logits(self, backward: Backward, span: slice) -> mx.array:
        """[1, rows, pos, d_model]."""
        return backward.behind[self._last][None, :, span]

    def _by_weights(
        self, layer: int, backward: Backward, h: mx.array, span: slice, prologue: Prologue
    ) -> mx.array:
        attn = self._layers[layer].attn
        assert attn is not None, "a graph has attention in every layer"
        parts = []
        for name, module in zip(QKV, PROJECTIONS, strict=True):
            n_heads = self.graph.n_heads if name == "q" else self.graph.n_kv_heads
            weight = linear.rows(attn[module])
            behind = backward.behind[name, layer][:, span]
            by_head = behind.reshape(*behind.shape[:2], n_heads, -1)
            parts.append(mx.einsum("rthe,hed->hrtd", by_head, weight.reshape(n_heads, -1, weight.shape[-1])))
        return self._through_norm(layer, h, mx.concatenate(parts), prologue, mlp=False)

    def _through_norm(
        self, layer: int, h: mx.array, behind: mx.array, prologue: Prologue, *, mlp: bool
    ) -> mx.array:
        """Gradients [inputs, rows, pos, d_model] behind a norm as gradients at its input `h`."""
        part = self._layers[layer]
        module = part.mlp if mlp else part.attn
        taps: Taps = [(present(module), stop_with_input), *(without_attention(part) if mlp else [])]

        def normed(x: mx.array) -> mx.array:
            found: mx.array = run_until_reached(self._model.architecture, layer, x, prologue, taps)
            return found

        inputs, rows, *rest = behind.shape
        x = mx.broadcast_to(h[None], behind.shape).reshape(inputs * rows, *rest)
        cotangent = behind.reshape(x.shape).astype(x.dtype)
        (found,) = mx.vjp(normed, [x], [cotangent])[1]
        return found.astype(mx.float32).reshape(inputs, rows, *rest)

    def _by_block(
        self, layer: int, backward: Backward, h: mx.array, span: slice, prologue: Prologue
    ) -> mx.array:
        """Through the model's own block, from q, k and v as attention uses them; one batch row per head."""
        assert span == slice(None), "attention needs all positions"
        sizes = (self.graph.n_heads, self.graph.n_kv_heads, self.graph.n_kv_heads)
        n_inputs, rows = sum(sizes), len(h)
        x = mx.concatenate([h] * n_inputs)
        cotangents, before = [], 0
        for name, size in zip(QKV, sizes, strict=True):
            behind = backward.behind[HookPoint(name, layer)]  # [rows, pos, head, d_head]
            own = mx.eye(size)[:, None, None, :, None] * behind[None]
            edges = [(before, n_inputs - before - size), *[(0, 0)] * 4]
            per_input = mx.pad(own, edges).reshape(n_inputs * rows, *behind.shape[1:])
            cotangents.append(per_input.swapaxes(1, 2).astype(x.dtype))
            before += size

        def qkv(x: mx.array) -> list[mx.array]:
            with renamed(ATTENTION_FUNCTION, [(self._layers[layer].namespace, _stop_with_qkv)]):
                return list(run_until_reached(self._model.architecture, layer, x, prologue))

        (found,) = mx.vjp(qkv, [x], cotangents)[1]
        return found.astype(mx.float32).reshape(n_inputs, *h.shape)


def _separate(layer: Layer, graph: Graph) -> bool:
    """Whether queries, keys and values come from weights of their own, head after head."""
    attn = layer.attn
    if attn is None or not all(isinstance(attn.get(name), nn.Module) for name in PROJECTIONS):
        return False
    n_heads = (graph.n_heads, graph.n_kv_heads, graph.n_kv_heads)
    return all(
        linear.readable(attn[name]) and linear.n_rows(attn[name]) % n == 0
        for name, n in zip(PROJECTIONS, n_heads, strict=True)
    )


def _output_plus(plus: Plus, key: Hashable) -> Around:
    return lambda call, *args, **kwargs: plus(key, call(*args, **kwargs))


def _input_plus(plus: Plus, key: Hashable) -> Around:
    return lambda call, x, *args, **kwargs: call(plus(key, x), *args, **kwargs)


def _stop_with_qkv(q: mx.array, k: mx.array, v: mx.array, *_: Any, **__: Any) -> mx.array:
    raise Reached((q, k, v))


Method: TypeAlias = Literal["eap", "eap-ig", "clean-corrupted"]

STEPS = 5
"""Steps of the path integral, as Hanna et al. use them."""
_NUMBERS = 1 << 26
"""Numbers in one block of what the senders write: 0.25 GiB."""
_EMBED = HookPoint("embed")


def edge_attribution(
    model: InterpretableModel,
    clean: Prompt | Pairs,
    corrupted: Prompt | None = None,
    *,
    method: Method = "eap",
    steps: int | None = None,
    metric: MetricLike = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    align: Align = "strict",
    ablation: EdgeAblation = "corrupted",
    seed: int = 0,
    progress: ProgressOption = None,
) -> EdgeScoresResult:
    """What carrying the corrupted value over each edge into the clean run would do, estimated by a gradient.

        EAP(u→v)  Σ_pos ⟨out_u(corrupted) − out_u(clean), ∂m/∂in_v⟩     the gradient taken in the clean run
        score     −EAP(u→v) / (m_clean − m_corrupted)      0 = the edge is not needed, 1 = all of the gap

    in_v is the residual stream as this input alone reads it, before any norm: a head's queries, keys (per
    key/value head), values, an MLP, the logits. A positive score supports the behaviour.

    By "eap", the scores of all edges that leave the input or an MLP add up to its attribution patching score,
    noising; so do those of a head, where nothing stands between the heads and the stream. Where a norm does
    (gemma2, gemma3, olmo2, olmo3, glm4, exaone4), what one head writes depends on the others. An edge carries
    what the head wrote with the norm's scale of its own run, as in `EdgeRun`, and patching z moves that scale
    too: on random tiny models a head's sum is then off by 0.2 to 1.5 of the gap. There the edges of all heads
    of a layer together add up to the score of attn_out.

    Args:
        clean, corrupted, metric, answer, foil: as for `activation_patching`. seed: which half of the pairs
            chooses the strongest edges, which the other half estimates again (`measured_again`).
        align: as for `activation_patching`, for method "eap"; a position without a counterpart counts as
            unchanged.
        ablation: what an edge carries instead: "corrupted" as above, "zero", or "mean" over all prompts at
            the same position; paths of "eap-ig" and "clean-corrupted" then lead there. Scores stay shares of
            the pairs' own gap.
        method: "eap": the gradient in the clean run. "eap-ig": its mean over inputs e_corrupted + (k/steps)
            (e_clean − e_corrupted), k = 1 … steps, as the paper has it (its code runs k = 0 … steps − 1); one
            step is EAP. "clean-corrupted": the mean of the gradients at both ends.
        steps: of "eap-ig"; 5 by default.
        progress: called with (examples done, examples in all); by default a bar after two seconds, False for
            none.

    Costs the pair's two baselines, one forward of both runs, then a forward and a backward per step.

    Raises:
        MetricError: a metric without a gradient; a distance from the clean run, for "eap".
        NotFinite: a gradient that is NaN or infinite at some edges; names them.
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
    prompts = EdgePrompts(prepared.clean, prepared.corrupted, prepared.alignment.stated, ablation)
    prompts.check_ablation()
    if set(ends) == {1.0}:
        refuse_at_its_minimum(prepared.metric, "clean")
    estimate = _Estimate(model, inputs, prepared, prompts, ends)
    changes = []
    at_once = max(1, TOKEN_BUDGET // prepared.clean.shape[1])
    with reporting(progress, "edge attribution") as shown:
        for start in range(0, len(prepared.clean), at_once):
            examples = np.arange(start, min(start + at_once, len(prepared.clean)))
            changes.append(estimate.changes(examples))
            if shown is not None:
                shown(int(examples[-1]) + 1, len(prepared.clean))
    one, zero = prepared.corrupted_metric, prepared.clean_metric
    names = tuple(str(edge) for edge in graph.edges())
    require_finite(
        np.concatenate(changes),
        names,
        "scores of edges by gradients",
        "A part of this model has no finite gradient there. Patch nodes instead (activation_patching).",
    )
    patched = zero[:, None] + np.concatenate(changes)
    found = effects(patched, one=one, zero=zero, clusters=prepared.clusters, seed=seed)
    again, chosen_on = strongest_elsewhere(patched, one=one, zero=zero, clusters=prepared.clusters, seed=seed)
    options = {"method": method, "direction": "noising", "ablation": ablation}
    recorder.add_method("edge_attribution", pairs=len(prepared.pairs))
    return EdgeScoresResult(
        edges=names,
        scores=found.effects,
        method=method,
        steps=len(ends) if method == "eap-ig" else None,
        metric=prepared.metric.name,
        clean_metric=float(zero.mean()),
        corrupted_metric=float(one.mean()),
        per_example=found.per_example if len(prepared.pairs) > 1 else None,
        ci_low=found.low,
        ci_high=found.high,
        measured_again=tuple(
            MeasuredAgain(
                label=names[each.site], searched=each.searched, effect=each.effect, ci=(each.low, each.high)
            )
            for each in again
        ),
        chosen_on=chosen_on,
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

    clean: Activations
    corrupted: Activations


class _Estimate:
    """Estimates for the edges of one call, for some examples at a time.

    Args:
        ends: the points of the path at which gradients are taken: 0 is the corrupted input, 1 the clean one.
    """

    def __init__(
        self,
        model: InterpretableModel,
        inputs: EdgeInputs,
        prepared: Prepared,
        prompts: EdgePrompts,
        ends: Sequence[float],
    ) -> None:
        self._model, self._inputs, self._graph = model, inputs, inputs.graph
        self._prepared, self._prompts, self._ends = prepared, prompts, ends
        self._resamples = prompts.ablation == "corrupted"  # then the path begins at the corrupted prompts
        self._means: Mapping[HookPoint, mx.array] = {}
        if prompts.ablation == "mean":
            both = self._both_runs(prompts)
            self._means = {p: prompts.carried(x, both.corrupted[p])[:1] for p, x in both.clean.items()}
            mx.eval(self._means)

    def changes(self, examples: Ids) -> Floats:
        """The estimated change of the metric [examples, edges] in the clean run, edge by edge."""
        prepared, ends = self._prepared, self._ends
        some = replace(self._prompts, clean=prepared.clean[examples], corrupted=prepared.corrupted[examples])
        writes = self._both_runs(some)
        if not self._resamples:
            zero = mx.zeros((1,))
            carried = {p: mx.broadcast_to(self._means.get(p, zero), x.shape) for p, x in writes.clean.items()}
            writes = _Writes(writes.clean, carried)
        n, length = some.clean.shape
        total = np.zeros((n, self._graph.n_edges))
        at_once = max(1, TOKEN_BUDGET // some.clean.size)
        for start in range(0, len(ends), at_once):
            steps = ends[start : start + at_once]
            tokens = np.concatenate(
                [some.corrupted if end == 0.0 and self._resamples else some.clean for end in steps]
            )
            targets = prepared.targets.take(np.tile(examples, len(steps)))
            metric = differentiable(prepared.metric, prepared.metric, targets)
            backward = self._inputs.backward(tokens, metric, self._embeddings(writes, steps))
            first = prepared.alignment.same_until if self._resamples else 0
            for span in self._spans(first, length, n * self._model.d_model):
                written = self._written(writes, span)
                blocks = [
                    _products(written, gradient, n_senders)
                    for gradient, n_senders in self._input_gradients(backward, tokens, span, len(steps))
                ]
                mx.eval(blocks)
                total += np.concatenate([np.array(block) for block in blocks], axis=1)
        return total / len(ends)

    def _both_runs(self, prompts: EdgePrompts) -> _Writes:
        names = ("z", "mlp_out") if self._graph.has_mlp else ("z",)
        layers = range(self._graph.n_layers)
        points = [_EMBED, *(HookPoint(name, layer) for layer in layers for name in names)]
        return _Writes(*prompts.run_both(lambda tokens: sweep.capture(self._model, tokens, points)))

    def _embeddings(self, writes: _Writes, ends: Sequence[float]) -> mx.array | None:
        """The embeddings at these points of the path; None where they are the prompts' own."""
        if all(end == 1.0 or (end == 0.0 and self._resamples) for end in ends):
            return None
        clean, corrupted = writes.clean[_EMBED], writes.corrupted[_EMBED]
        return mx.concatenate(
            [clean if end == 1.0 else corrupted + end * (clean - corrupted) for end in ends]
        )

    def _spans(self, start: int, length: int, numbers: int) -> Iterator[slice]:
        """Blocks of positions small enough to hold what every sender writes there.

        Before `start` nothing changes: both runs are the same there.
        """
        if not self._inputs.any_position:
            yield slice(None)
            return
        size = max(1, _NUMBERS // (numbers * len(self._graph.senders)))
        for first in range(start, length, size):
            yield slice(first, min(first + size, length))

    def _written(self, writes: _Writes, span: slice) -> mx.array:
        """Carried minus clean, of what each sender adds to the stream: [examples, senders, pos, d_model]."""

        def change(point: HookPoint) -> mx.array:
            carried, clean = writes.corrupted[point][:, span], writes.clean[point][:, span]
            return (carried.astype(mx.float32) - clean)[:, None]

        parts = [change(_EMBED)]
        for layer in range(self._graph.n_layers):
            z = HookPoint("z", layer)
            carried, clean = (
                self._heads_write(layer, run[z][:, span]) for run in (writes.corrupted, writes.clean)
            )
            parts.append((carried - clean).swapaxes(1, 2))
            if self._graph.has_mlp:
                parts.append(change(HookPoint("mlp_out", layer)))
        return mx.concatenate(parts, axis=1)

    def _heads_write(self, layer: int, z: mx.array) -> mx.array:
        """What each head adds to the stream, with its share of the output bias, which a norm may scale."""
        heads, bias = self._model.architecture.head_outputs(layer, z)
        return heads + bias[..., None, :] / self._graph.n_heads

    def _input_gradients(
        self, backward: Backward, tokens: Ids, span: slice, steps: int
    ) -> Iterator[tuple[mx.array, int]]:
        """Gradients [inputs, examples, pos, d_model], summed over the steps, and the number of senders that
        write before them."""

        def summed(found: mx.array) -> mx.array:
            return found.reshape(len(found), steps, -1, *found.shape[2:]).sum(axis=1)

        graph = self._graph
        per_layer = len(graph.senders) // graph.n_layers
        for layer in range(graph.n_layers):
            attention, mlp = self._inputs.of_layer(layer, backward, tokens, span)
            before = 1 + layer * per_layer
            yield summed(attention), before
            if mlp is not None:
                yield summed(mlp), before + (0 if graph.parallel else graph.n_heads)
        yield summed(self._inputs.of_logits(backward, span)), len(graph.senders)


def _products(written: mx.array, gradient: mx.array, n_senders: int) -> mx.array:
    """[examples, inputs · senders], summed over positions and the stream."""
    n_inputs, n = gradient.shape[:2]
    of_inputs = gradient.swapaxes(0, 1).reshape(n, n_inputs, -1)
    of_senders = written[:, :n_senders].reshape(n, n_senders, -1)
    return (of_inputs @ of_senders.swapaxes(1, 2)).reshape(n, -1)
