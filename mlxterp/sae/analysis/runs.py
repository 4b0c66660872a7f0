"""What the analyses of features share: the unchanged runs with their metric (`prepare`), activations split
into features and error (`view`), and numbers made of changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp import metrics
from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import measuring
from mlxterp.causal.finite import require_finite_activations, require_finite_runs
from mlxterp.causal.prompts.cautions import of_first_position, of_form
from mlxterp.causal.prompts.encoding import Ids, token_ids
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Positions
from mlxterp.errors import SAEError
from mlxterp.sae.analysis.interventions import flat
from mlxterp.sae.analysis.texts import Batch, Given, Texts, read_texts
from mlxterp.sae.model_match import warn_of_mismatch
from mlxterp.sae.sae import SAE
from mlxterp.statistics.ratio import mean_of

ROUNDING = 1e-5
"""Relative difference of two activations that are the same but for the order of float32 additions."""


@dataclass(frozen=True, eq=False)
class View:
    """Activations of some prompts, split by an SAE: written = reconstruction + error.

    Attributes:
        written: the activation where the SAE writes, float32 `[n, length, d_out]`.
        acts: its features, float32 `[n, length, d_sae]`.
        error: written − reconstruction.
    """

    written: mx.array
    acts: mx.array
    error: mx.array


def view(model: InterpretableModel, tokens: Ids, sae: SAE) -> View:
    """Activations, features and errors of these prompts `[n, length]`; one forward, as deep as the SAE.

    Raises:
        SAEError: the model's width there is not the SAE's.
    """
    with measuring(model):
        _, seen = model.run(mx.array(tokens), capture=[sae.point, sae.point_out])
        mx.eval(list(seen.values()))  # the logits are never evaluated
    read, written = (flat(seen[p], sae, p).astype(mx.float32) for p in (sae.point, sae.point_out))
    for point, x, width, name in (
        (sae.point, read, sae.d_in, "d_in"),
        (sae.point_out, written, sae.d_out, "d_out"),
    ):
        if x.shape[-1] != width:
            raise SAEError(
                f"{model.name} is {x.shape[-1]} wide at {point}, this SAE has {name} = {width}; it was "
                f"trained on {sae.model!r} at {sae.hook_point}. Use the model and hook point of its training."
            )
    warn_of_mismatch(model, sae)
    found = View(written, sae.encode(read), written - sae.reconstruct(read))
    parts = {str(sae.point): read, "the SAE's features": found.acts, "the SAE's error": found.error}
    require_finite_activations(model, parts)
    return found


def activity(
    model: InterpretableModel, sae: SAE, texts: Texts
) -> Iterator[tuple[Batch, View, NDArray[np.float32]]]:
    """Each batch, split, and its features as numpy with 0 at positions that do not count."""
    for batch in texts.batches:
        seen = view(model, batch.clean, sae)
        yield batch, seen, np.where(batch.counted[..., None], np.array(seen.acts), np.float32(0.0))


def deltas(
    model: InterpretableModel, sae: SAE, batch: Batch, seen: View, ablation: Ablation
) -> NDArray[np.float32]:
    """The change of each feature by an ablation `[n, length, d_sae]`; 0 at positions that do not count."""
    if ablation == "zero":
        change = -seen.acts
    else:
        assert batch.corrupted is not None
        change = difference(view(model, batch.corrupted, sae).acts, seen.acts)
    return np.where(batch.counted[..., None], np.array(change), np.float32(0.0))


def difference(new: mx.array, old: mx.array) -> mx.array:
    """new − old of activations, 0 where they differ only by rounding."""
    change = new - old
    return mx.where(mx.abs(change) > ROUNDING * mx.maximum(mx.abs(new), mx.abs(old)), change, 0.0)


def decoder_norms(sae: SAE) -> NDArray[np.float64]:
    """‖W_dec[f]‖ of every feature: a unit of activation in units of the residual stream."""
    return np.array(mx.linalg.norm(sae.W_dec, axis=-1), dtype=np.float64)


Ablation: TypeAlias = Literal["zero", "corrupted"]


@dataclass(frozen=True, eq=False)
class Runs:
    """The unchanged run of every example, and its metric.

    Attributes:
        given_metric: the metric as the caller gave it.
        targets: answers, foils and clean logits of all examples.
        clean_metric: the metric of each unchanged run, `[n]`; a distance is 0 there.
        said, said_probs: the likeliest next token of each unchanged run, and its probability.
        cautions: what limits every number that is measured on these texts.
    """

    texts: Texts
    given_metric: Any
    metric: metrics.Metric
    targets: metrics.Targets
    clean_metric: metrics.Floats
    said: Ids
    said_probs: metrics.Floats
    cautions: tuple[str, ...] = ()

    def read(self, logits: NDArray[np.float32], examples: Ids) -> metrics.Floats:
        """The metric of rows of logits, each belonging to one example."""
        values = self.metric(logits, self.targets.take(examples))
        # A divergence of rows that are equal up to rounding may come out as −1e-17.
        return np.maximum(values, 0.0) if "clean_logits" in self.metric.needs else values

    def changes(self, logits: NDArray[np.float32], examples: Ids) -> metrics.Floats:
        """The metric minus its value in the unchanged run."""
        return self.read(logits, examples) - self.clean_metric[examples]

    def measured_on(self, model: InterpretableModel, *saes: SAE) -> dict[str, Any]:
        """The facts that the numbers depend on, for a result."""
        metric = {"metric": self.metric.name, "metric_direction": self.metric.direction}
        limits = {"cautions": list(self.cautions)} if self.cautions else {}
        return self.texts.measured_on(model, *saes) | metric | limits


def prepare(
    model: InterpretableModel,
    given: Given,
    metric: Any,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
    positions: Positions = None,
    own_answer: bool = False,
) -> Runs:
    """The texts as `read_texts` gives them, the metric, and the unchanged run of each: one forward.

    Args:
        metric, answer, foil: as for `mlxterp.metrics.resolve`.
        own_answer: without an answer in the texts or in `answer`, take the model's likeliest next token.
    """
    texts = read_texts(model, given, answer=answer, foil=foil, positions=positions)
    logits = _clean_logits(model, texts.batches, len(texts.examples))
    for batch in texts.batches:
        require_finite_runs(model, logits[batch.examples], batch.clean, "clean")
    said = logits.argmax(axis=-1).astype(np.int64)
    answers = token_ids(model, [each.answer for each in texts.examples], "answer")
    if answers is None and own_answer:
        answers = said
    foils = token_ids(model, [each.foil for each in texts.examples], "foil")
    if metric is None:
        metric = "logit_diff" if foils is not None else "log_prob" if answers is not None else "kl"
    resolved = metrics.resolve(metric, answer=answers is not None, foil=foils is not None)
    targets = metrics.Targets(answers, foils, logits if "clean_logits" in resolved.needs else None)
    return Runs(
        texts=texts,
        given_metric=metric,
        metric=resolved,
        targets=targets,
        clean_metric=resolved(logits, targets),
        said=said,
        said_probs=metrics.prob(logits, said),
        cautions=tuple(dict.fromkeys(_cautions(model, texts, logits))),
    )


def _cautions(model: InterpretableModel, texts: Texts, logits: NDArray[np.float32]) -> Iterator[str]:
    for batch in texts.batches:
        if batch.corrupted is not None:
            yield from of_first_position(model, batch.clean, batch.corrupted)
    for row, example in zip(logits, texts.examples, strict=True):
        yield from of_form(model, row, example.answer, "answer")


def _clean_logits(model: InterpretableModel, batches: Sequence[Batch], n: int) -> NDArray[np.float32]:
    logits = np.empty((n, model.d_vocab), dtype=np.float32)
    for batch in batches:
        logits[batch.examples] = sweep.answer_logits(model, batch.clean)
    return logits


def chosen_ablation(ablation: str | None, texts: Texts) -> Ablation:
    """The value of an ablated feature: by default "corrupted" for pairs, "zero" for texts.

    Raises:
        SAEError: an unknown one; "corrupted" for texts.
    """
    if ablation is not None and ablation not in get_args(Ablation):
        raise SAEError(f"ablation={ablation!r} is not known. Choose one of: {', '.join(get_args(Ablation))}.")
    if ablation == "corrupted" and not texts.paired:
        raise SAEError(
            "ablation='corrupted' sets features to their activations on the corrupted prompt, and these are "
            "texts without one. Pass PromptPair values, or ablation='zero'."
        )
    return "corrupted" if texts.paired and ablation != "zero" else "zero"


def shape_at(model: InterpretableModel, sae: SAE) -> tuple[int, ...]:
    """The shape of one position's activation where the SAE writes: (d,), or (heads, d_head)."""
    name = sae.point_out.name
    if name not in ("q", "k", "v", "z"):
        return (sae.d_out,)
    n_heads = sweep.n_heads_of(model, name)
    return n_heads, sae.d_out // n_heads


def percentiles(values: metrics.Floats) -> metrics.Floats:
    """Of each row `[n, 1 + others]`, the share of the others that are smaller than the first, ties counting
    half.

    NaN stands for none; NaN where a row has no others.
    """
    own, others = values[:, :1], values[:, 1:]
    known = np.isfinite(others)
    below = np.where(known, (others < own) + 0.5 * (others == own), 0.0).sum(axis=1)
    n = known.sum(axis=1)
    return np.asarray(np.where(n > 0, below / np.maximum(n, 1), np.nan), dtype=np.float64)


def intervals(per_example: metrics.Floats) -> tuple[metrics.Floats, metrics.Floats] | None:
    """95 % intervals of the means over examples `[n, …]`; None below four examples."""
    found = mean_of(per_example)
    return None if found.low is None or found.high is None else (found.low, found.high)
