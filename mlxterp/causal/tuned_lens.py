"""The tuned lens: an affine translator per layer, before the logit lens reads it (Belrose et al. 2023).

The translators as a value, files of them, reading with them, and training them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np

from mlxterp.causal.finite import require_finite_activations
from mlxterp.causal.logit_lens import Lens, read_layers
from mlxterp.causal.prompts.encoding import Prompt, require_model
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Tokens, pad
from mlxterp.errors import LensError
from mlxterp.metrics import Floats
from mlxterp.progress import ProgressOption, reporting
from mlxterp.results import LogitLensResult

Loaded: TypeAlias = tuple[dict[str, mx.array], dict[str, Any]]

SCHEMA = "mlxterp-tuned-lens/1"


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators of a model's residual streams: h ↦ h + h·A + b, one for each layer but the last.

    Attributes:
        a: [n_layers − 1, d_model, d_model]; zeros are the identity, with which a layer is read as by the
            logit lens, bit for bit.
        b: [n_layers − 1, d_model].
        model, digest: the name of the model and of its weights.
        training: what it was trained on and how: plain values.
        held_out_kl, logit_lens_kl: [n_layers], mean KL(model ‖ lens) in nats at positions of texts that were
            not trained on, with the translators and without; empty for a lens that was not trained.
    """

    a: mx.array
    b: mx.array
    model: str
    digest: str
    training: Mapping[str, Any] = field(default_factory=dict)
    held_out_kl: tuple[float, ...] = ()
    logit_lens_kl: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.a.ndim != 3 or self.a.shape[1] != self.a.shape[2] or self.b.shape != self.a.shape[:2]:
            raise LensError(
                f"translators of shapes {self.a.shape} and {self.b.shape}; they are "
                "[n_layers − 1, d_model, d_model] and [n_layers − 1, d_model]."
            )

    def translated(self, layer: int, h: mx.array) -> mx.array:
        """What the final norm reads in place of this layer's resid_post [..., d_model]; the last layer's is
        itself."""
        if layer == len(self.a):
            return h
        x = h.astype(mx.float32)
        return (x + x @ self.a[layer] + self.b[layer]).astype(h.dtype)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file with everything a lens holds."""
        facts = {
            "schema": SCHEMA,
            "model": self.model,
            "digest": self.digest,
            "training": dict(self.training),
            "held_out_kl": list(self.held_out_kl),
            "logit_lens_kl": list(self.logit_lens_kl),
        }
        mx.save_safetensors(str(path), {"a": self.a, "b": self.b}, metadata={"mlxterp": json.dumps(facts)})


def load_tuned_lens(path: str | Path) -> TunedLens:
    """A lens as `TunedLens.save` wrote it.

    Raises:
        LensError: the file is none.
    """
    try:
        arrays, metadata = cast("Loaded", mx.load(str(path), format="safetensors", return_metadata=True))
        facts = json.loads(metadata["mlxterp"])
        if facts["schema"] != SCHEMA:
            raise KeyError(facts["schema"])
        a, b = arrays["a"], arrays["b"]
    except (RuntimeError, ValueError, KeyError, TypeError) as problem:
        raise LensError(
            f"{path} holds no tuned lens of the form {SCHEMA}: {problem}. Write one with `lens.save(path)`."
        ) from problem
    return TunedLens(
        a,
        b,
        facts["model"],
        facts["digest"],
        facts["training"],
        tuple(facts["held_out_kl"]),
        tuple(facts["logit_lens_kl"]),
    )


def identity_lens(model: InterpretableModel) -> TunedLens:
    """Translators that change nothing: with them the tuned lens is the logit lens."""
    require_model(model)
    n, d = model.n_layers - 1, model.d_model
    return TunedLens(mx.zeros((n, d, d)), mx.zeros((n, d)), model.name, model.digest)


def tuned_lens(
    model: InterpretableModel,
    text: Prompt,
    lens: TunedLens,
    *,
    positions: Sequence[int] | None = None,
    answer: str | int | None = None,
    k: int = 5,
) -> LogitLensResult:
    """What each layer would predict, its resid_post translated before final norm and unembedding.

    Arguments, result and cost as for `logit_lens`; `measured_on` says how the lens was trained.

    Raises:
        LensError: the lens belongs to other weights.
        and what `logit_lens` raises.

    Source: Belrose et al. 2023 (2303.08112), "Eliciting Latent Predictions from Transformers with the Tuned
    Lens". A translator is trained to agree with the output, so it may compute what the model has not yet: an
    answer found here is decodable from the layer, not shown to be used.
    """
    require_model(model)
    if lens.digest != model.digest:
        raise LensError(
            f"the lens was trained on weights {lens.digest[:12]} of {lens.model}; {model.name} has "
            f"{model.digest[:12]}. Train one with train_tuned_lens(model, texts)."
        )
    facts = {
        "read": "resid_post of each layer, its translator, the model's final norm and unembedding",
        "training": dict(lens.training),
    }
    decoder = Lens("tuned lens", lens.translated, facts)
    return read_layers(model, text, decoder, positions=positions, answer=answer, k=k)


EVALUATED = 256
"""Most held-out positions that are evaluated, spread evenly: each costs an unembedding per layer, twice."""
TEXTS_AT_ONCE = 4
"""Texts that a step draws its positions from: a forward of each is small beside the unembeddings."""


@blas.pinned_threads()
def train_tuned_lens(
    model: InterpretableModel,
    texts: Sequence[Prompt],
    *,
    steps: int = 100,
    batch_tokens: int = 32,
    learning_rate: float = 3e-3,
    context: int = 64,
    held_out: float = 0.2,
    seed: int = 0,
    progress: ProgressOption = None,
) -> TunedLens:
    """Trains one affine translator per layer to predict what the model itself predicts.

        minimise  E[ KL( model's next-token distribution ‖ unembed(norm(h + h·A + b)) ) ]   layer by layer

    starting from the identity. All layers see the same positions in a step.

    Args:
        texts: at least two, text or token ids; each is cut to its first `context` tokens.
        steps: of Adam, its rate falling linearly to 0.
        batch_tokens: positions in a step, drawn from the training texts.
        learning_rate: in units of a layer's own scale (the root mean square of its stream over √d_model for
            A, the scale itself for b), so that one rate suits all layers and models.
        held_out: the share of texts, at least one, that is not trained on and gives `held_out_kl`.
        seed: of the division and the draws. The same seed gives the same bits on the same machine.
        progress: called with (steps done, steps); by default a bar after two seconds, False for none.

    Costs per step, layer and position two unembeddings (forward and backward); on SmolLM2-135M on two CPU
    cores 4 to 6 s a step of 32 positions. The translators take n_layers · d_model² numbers, twice more while
    training.

    Raises:
        LensError: fewer than two texts, a model of one layer, or numbers out of range.
        CapabilityUnavailable: the model's unembedding is not known.

    Source: Belrose et al. 2023 (2303.08112). They use SGD with Nesterov momentum over 250 steps of 262,144
    tokens; here it is Adam on far fewer, so take `held_out_kl` for what these translators are worth. On
    SmolLM2-135M four steps take layer 16 from 18.1 nats to 9.1, and layer 28 from 1.31 to 0.88.
    """
    require_model(model)
    model.architecture.require("unembedding", "resid_post")
    if model.n_layers < 2:
        raise LensError(f"{model.name} has one layer, which is read as it is: there is nothing to train.")
    if steps < 1 or batch_tokens < 1 or context < 1 or not 0 < held_out < 1 or learning_rate <= 0:
        raise LensError(
            f"steps={steps}, batch_tokens={batch_tokens}, context={context}, learning_rate={learning_rate}, "
            f"held_out={held_out}: each is above 0, and held_out below 1."
        )
    rng = np.random.default_rng(seed)
    train, test = _split_texts(model, texts, context, held_out, rng)
    layers = [_Translator(model, layer, learning_rate, steps) for layer in range(model.n_layers - 1)]
    with reporting(progress, "training a tuned lens") as shown:
        for step in range(steps):
            streams, target = _run_positions(model, _draw_positions(train, batch_tokens, rng))
            log_p = _log_softmax(target)
            for layer in layers:
                layer.step(streams[layer.layer], log_p)
            if shown is not None:
                shown(step + 1, steps)
    plain = identity_lens(model)
    a, b = mx.stack([each.a for each in layers]), mx.stack([each.b for each in layers])
    trained = replace(plain, a=a, b=b)
    chosen = _spread_positions(test, EVALUATED)
    return replace(
        trained,
        training={
            "texts": len(train),
            "held_out_texts": len(test),
            "held_out_positions": sum(len(at) for _, at in chosen),
            "steps": steps,
            "batch_tokens": batch_tokens,
            "learning_rate": learning_rate,
            "context": context,
            "seed": seed,
        },
        held_out_kl=tuple(_mean_kl(model, trained, chosen).tolist()),
        logit_lens_kl=tuple(_mean_kl(model, plain, chosen).tolist()),
    )


Chosen: TypeAlias = tuple[Tokens, list[int]]
"""A text as tokens [1, pos], and positions of it."""


class _Translator:
    """One layer's translator while it is trained, in units of the layer's own scale."""

    def __init__(self, model: InterpretableModel, layer: int, rate: float, steps: int) -> None:
        d = model.d_model
        self.layer, self._final = layer, model.architecture.final
        self._scale: mx.array | None = None
        self._parameters = {"a": mx.zeros((d, d)), "b": mx.zeros((d,))}
        self._adam = optimizers.Adam(learning_rate=optimizers.linear_schedule(rate, 0.0, steps))
        self._slope = mx.value_and_grad(self._loss)

    @property
    def a(self) -> mx.array:
        return self._parameters["a"] / math.sqrt(len(self._parameters["b"]))

    @property
    def b(self) -> mx.array:
        assert self._scale is not None
        return self._parameters["b"] * self._scale

    def step(self, h: mx.array, log_p: mx.array) -> None:
        x = h.astype(mx.float32)
        if self._scale is None:
            self._scale = mx.sqrt(mx.mean(x * x))
        _, slopes = self._slope(self._parameters, x, log_p)
        self._parameters = self._adam.apply_gradients(slopes, self._parameters)
        mx.eval(self._parameters, self._adam.state)  # layer by layer: one layer's logits at a time

    def _loss(self, parameters: dict[str, mx.array], x: mx.array, log_p: mx.array) -> mx.array:
        assert self._scale is not None
        moved = x + (x @ parameters["a"]) / math.sqrt(x.shape[-1]) + parameters["b"] * self._scale
        return mx.mean(_kl(log_p, self._final(moved)))


def _kl(log_p: mx.array, logits: mx.array) -> mx.array:
    """KL(p ‖ softmax(logits)) [n]."""
    return mx.sum(mx.exp(log_p) * (log_p - _log_softmax(logits)), axis=-1)


def _log_softmax(logits: mx.array) -> mx.array:
    x = logits.astype(mx.float32)
    return x - mx.logsumexp(x, axis=-1, keepdims=True)


def _split_texts(
    model: InterpretableModel, texts: Sequence[Prompt], context: int, share: float, rng: np.random.Generator
) -> tuple[list[Tokens], list[Tokens]]:
    """Training texts and held-out ones, as tokens [1, pos]."""
    if isinstance(texts, str) or len(texts) < 2:
        raise LensError(
            f"{1 if isinstance(texts, str) else len(texts)} texts were given; training takes some and holds "
            "out others. Give a list of at least two."
        )
    rows = [np.asarray(model.to_tokens(text))[:, :context] for text in texts]
    order = rng.permutation(len(rows))
    n_test = min(len(rows) - 1, max(1, round(share * len(rows))))
    return [rows[i] for i in order[n_test:]], [rows[i] for i in order[:n_test]]


def _draw_positions(texts: Sequence[Tokens], n: int, rng: np.random.Generator) -> list[Chosen]:
    """n random positions of a few texts, or all that these have."""
    chosen: list[Chosen] = []
    order = rng.permutation(len(texts))[:TEXTS_AT_ONCE]
    for left, i in zip(range(len(order), 0, -1), order, strict=True):
        length = texts[i].shape[1]
        take = min(-(-n // left), length)
        if take:
            chosen.append((texts[i], sorted(rng.choice(length, size=take, replace=False).tolist())))
        n -= take
    return chosen


def _spread_positions(texts: Sequence[Tokens], most: int) -> list[Chosen]:
    """At most so many positions, evenly over all of these texts."""
    total = sum(text.shape[1] for text in texts)
    wanted = set(np.linspace(0, total - 1, num=min(most, total)).astype(int).tolist())
    chosen, before = [], 0
    for text in texts:
        at = [p for p in range(text.shape[1]) if before + p in wanted]
        before += text.shape[1]
        if at:
            chosen.append((text, at))
    return chosen


def _run_positions(model: InterpretableModel, chosen: Sequence[Chosen]) -> tuple[list[mx.array], mx.array]:
    """Every layer's resid_post [n, d_model] and the model's own logits [n, d_vocab] at these positions."""
    batch = pad([text for text, _ in chosen])
    points = [HookPoint("resid_post", layer) for layer in range(model.n_layers)]
    _, captured = model.run(batch.tokens, capture=points, lengths=batch.lengths)
    width = batch.tokens.shape[1]
    index = mx.array([row * width + p for row, (_, at) in enumerate(chosen) for p in at])
    streams = [captured[point].reshape(-1, model.d_model)[index] for point in points]
    mx.eval(streams)
    require_finite_activations(
        model, {str(point): h.astype(mx.float32) for point, h in zip(points, streams, strict=True)}
    )
    return streams, model.architecture.final(streams[-1])


def _mean_kl(model: InterpretableModel, lens: TunedLens, chosen: Sequence[Chosen]) -> Floats:
    """Mean KL(model ‖ lens) per layer, in nats."""
    total, n = np.zeros(model.n_layers), 0
    for some in _group_texts(chosen):
        streams, logits = _run_positions(model, some)
        log_p = _log_softmax(logits)
        for layer, h in enumerate(streams):
            off = _kl(log_p, model.architecture.final(lens.translated(layer, h)))
            total[layer] += float(np.array(mx.sum(off)))
        n += len(streams[0])
    return total / n


def _group_texts(chosen: Sequence[Chosen], most: int = 64) -> Iterator[list[Chosen]]:
    """Neighbouring texts, about `most` positions together."""
    some: list[Chosen] = []
    for each in chosen:
        some.append(each)
        if sum(len(at) for _, at in some) >= most:
            yield some
            some = []
    if some:
        yield some
