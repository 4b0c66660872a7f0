"""Which features fire on a text, and how much of it the SAE leaves out."""

from __future__ import annotations

import numpy as np

from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Positions
from mlxterp.errors import SAEError
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats
from mlxterp.results import ActiveFeaturesResult
from mlxterp.sae.analysis.runs import Ablation, activity, decoder_norms, deltas, view
from mlxterp.sae.analysis.texts import Given, Texts, read_texts, shown_tokens
from mlxterp.sae.sae import SAE
from mlxterp.sae.texts import OUTLIER


def active_features(
    model: InterpretableModel,
    sae: SAE,
    text: Given,
    *,
    top_k: int = 20,
    positions: Positions = None,
) -> ActiveFeaturesResult:
    """The features that write most on a text: their activations, and where.

    Args:
        text: a text or token ids, or several; of prompt pairs, the clean prompts.
        top_k: how many features; fewer if fewer fire.
        positions: which count; by default all but the first, where there is a beginning-of-sequence token or
            an attention sink, so that features there say little about the text.

    Returns:
        features by their size, the largest activation times ‖W_dec[f]‖, with largest and mean activation
        over the counted positions, and the share of variance (about the mean over these positions) that the
        reconstruction leaves out.

    Costs a forward of each text and one more of the first, no deeper than the SAE.

    Raises:
        SAEError: the model is not as wide there as the SAE.
        TokenError: no position counts, as in a text of one token.
    """
    if top_k < 1:
        raise SAEError(f"top_k={top_k}: ask for at least one feature.")
    texts = read_texts(model, text, positions=positions)
    found = fired_features(model, sae, texts)
    order = found.strongest(top_k)
    batch = texts.batches[0]  # the first text is the first of the first batch
    seen = view(model, batch.clean[:1], sae).acts[0]
    recorder.add_method("active_features")
    return ActiveFeaturesResult(
        features=tuple(order),
        maxima=found.maxima[order],
        means=found.totals[order] / found.n_counted,
        sizes=found.sizes[order],
        fired=tuple(int(found.fired[f]) for f in order),
        at_token=tuple(_token(model, texts, *found.where[f]) for f in order),
        at_text=tuple(int(found.where[f][0]) for f in order),
        at_position=tuple(int(found.where[f][1]) for f in order),
        activations=np.array(seen)[:, order].T,
        tokens=tuple(shown_tokens(model, batch, 0)),
        n_active=int((found.fired > 0).sum()),
        d_sae=sae.d_sae,
        n_counted=found.n_counted,
        l0=float(found.fired.sum() / found.n_counted),
        fvu=found.fvu,
        hook_point=sae.hook_point,
        measured_on=texts.measured_on(model, sae) | ({"norm_outliers": found.sinks} if found.sinks else {}),
    )


class FiredFeatures:
    """How each feature fires on some texts, at the positions that count.

    Attributes:
        maxima, totals: `[d_sae]`, the largest activation and the sum of all; fired: at how many positions.
        where: `[d_sae, 2]`, example and position of the largest.
        changes: the largest change by the ablation, in magnitude; for zero ablation, the largest activation.
        sinks: counted positions with an activation longer than ten times the median: attention sinks, which
            SAEs are trained without.
        fvu: error over variance, both summed over positions and dimensions; None without variance.
    """

    def __init__(self, sae: SAE) -> None:
        self.maxima = np.zeros(sae.d_sae)
        self.totals = np.zeros(sae.d_sae)
        self.fired = np.zeros(sae.d_sae, dtype=np.int64)
        self.where = np.zeros((sae.d_sae, 2), dtype=np.int64)
        self.changes = np.zeros(sae.d_sae)
        self.n_counted = 0
        self.sinks = 0
        self.fvu: float | None = None
        self._norms = decoder_norms(sae)

    @property
    def sizes(self) -> Floats:
        """The largest change of each feature times the norm of its decoder row."""
        return self.changes * self._norms

    @property
    def active(self) -> list[int]:
        """The features that fire at all and write something, ascending."""
        return [int(f) for f in np.flatnonzero((self.fired > 0) & (self._norms > 0))]

    def strongest(self, k: int) -> list[int]:
        """The k features whose ablation changes the activation most, strongest first; fewer if fewer do."""
        order = np.argsort(-self.sizes, kind="stable")
        return [int(f) for f in order[:k] if self.sizes[f] > 0]


def fired_features(
    model: InterpretableModel, sae: SAE, texts: Texts, ablation: Ablation = "zero"
) -> FiredFeatures:
    """One pass over the texts, as deep as the SAE; two where features are compared with corrupted prompts."""
    found = FiredFeatures(sae)
    written, errors = [], 0.0
    for batch, seen, acts in activity(model, sae, texts):
        change = acts if ablation == "zero" else deltas(model, sae, batch, seen, ablation)
        found.changes = np.maximum(found.changes, np.abs(change).max(axis=(0, 1)))
        n, length, _ = acts.shape
        flat = acts.reshape(n * length, -1)
        best = flat.argmax(axis=0)
        peaks = flat[best, np.arange(sae.d_sae)]
        better = np.flatnonzero(peaks > found.maxima)
        found.maxima[better] = peaks[better]
        found.where[better, 0] = batch.examples[best[better] // length]
        found.where[better, 1] = best[better] % length
        found.totals += flat.sum(axis=0, dtype=np.float64)
        found.fired += (flat != 0).sum(axis=0)
        mask = batch.counted
        found.n_counted += int(mask.sum())
        written.append(np.array(seen.written, dtype=np.float64)[mask])
        errors += float(np.square(np.array(seen.error, dtype=np.float64)[mask]).sum())
    every = np.concatenate(written)
    variance = float(np.square(every - every.mean(axis=0)).sum())
    lengths = np.linalg.norm(every, axis=1)
    usual = np.median(lengths)
    found.sinks = int((lengths > OUTLIER * usual).sum()) if usual > 0 else 0
    found.fvu = errors / variance if len(every) > 1 and variance > 0 else None
    return found


def _token(model: InterpretableModel, texts: Texts, example: int, position: int) -> str:
    for batch in texts.batches:
        rows = np.flatnonzero(batch.examples == example)
        if len(rows):
            return shown_tokens(model, batch, int(rows[0]))[int(position)]
    raise AssertionError(f"example {example} is in no batch")
