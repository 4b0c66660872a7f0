"""How good an SAE is: reconstruction, sparsity, the model's losses with it, and recovery of planted features.

Sums are kept for each document in float64, and every ratio is a ratio of sums; intervals are the jackknife's
over documents, because the tokens of one document are no independent samples. `mlxterp.results.sae_quality`
is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import replace
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Padded, pad
from mlxterp.errors import SAEError, TooLittleData
from mlxterp.measurements import recorder
from mlxterp.results.sae_quality import Quality, SAEQualityResult
from mlxterp.sae.sae import SAE
from mlxterp.sae.texts import seen_share
from mlxterp.sae.training.activations import StreamedActivations
from mlxterp.statistics.intervals import Bounded, of_sums, wilson
from mlxterp.statistics.ratio import mean_of

Exact = NDArray[np.float64]
Sums = Mapping[str, Exact]  # name → [documents] or [documents, d]

DENSE = 0.1
FOUND = 0.9
COVERS = 0.25
_TOKENS_AT_ONCE = 2048
_ROWS_AT_ONCE = 8
_GROUPS = 200


def fvu(activations: ArrayLike, reconstruction: ArrayLike) -> float:
    """Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖², over all tokens, in float64.

    The mean as reconstruction gives 1, the activations themselves 0.

    Raises:
        SAEError: arrays of different shapes, or no variance.
    """
    x, rec = (np.asarray(a, dtype=np.float64) for a in (activations, reconstruction))
    if x.shape != rec.shape:
        raise SAEError(
            f"Activations of shape {x.shape}, a reconstruction of {rec.shape}. Give the same tokens."
        )
    x, rec = x.reshape(-1, x.shape[-1]), rec.reshape(-1, x.shape[-1])
    variance = float(((x - x.mean(axis=0)) ** 2).sum())
    if variance == 0:
        raise SAEError(f"{len(x)} tokens without any variance: FVU is undefined. Give different tokens.")
    return float(((x - rec) ** 2).sum()) / variance


def sae_quality(
    model: InterpretableModel,
    sae: SAE,
    texts: Sequence[str],
    *,
    losses: bool = True,
    context: int = 128,
    batch_tokens: int = 4096,
    seed: int = 0,  # noqa: ARG001 - of earlier versions, whose intervals were drawn
) -> SAEQualityResult:
    """FVU, L0, dead and dense shares of an SAE on texts; with `losses`, also the model's losses with it.

    For the losses the model runs with the reconstruction, with zeros and with the mean in place of the
    activation, at the tokens that count (`mlxterp.sae.texts`); other tokens are unchanged. CE recovered
    = (CE_ablated − CE_reconstructed) / (CE_ablated − CE_clean), 1 if nothing is lost; KL recovered likewise.
    For a transcoder, activation and reconstruction are those of where it writes.

    Cost: one forward of the texts to the hook point, and with `losses` four more to the logits; 8·d bytes a
    token.

    Args:
        texts: a document each; other texts than those it was trained on. The result says which share of them
            it was trained on, where the SAE has a record of that (`sae.training_texts`).
        seed: of earlier versions, whose intervals were drawn; changes nothing.

    Raises:
        TooLittleData: no token that counts.
        SAEError: the SAE reads another width than this model has.
    """
    read, written = str(sae.point), str(sae.point_out)
    places = (read,) if read == written else (read, written)
    source = StreamedActivations(model, texts, places, context=context, batch_tokens=batch_tokens)
    parts = [source.of_text(i) for i in range(len(texts))]
    arrays = {place: [part[place] for part in parts] for place in places}
    documents = np.repeat(np.arange(len(texts)), [len(part[read]) for part in parts])
    if not len(documents):
        raise TooLittleData(f"{len(texts)} texts without a token that counts. Give longer ones.")
    x, y = np.concatenate(arrays[read]), np.concatenate(arrays[written])
    extra: dict[str, Exact] = {}
    if losses:
        mean = mx.array(y.astype(np.float64).mean(axis=0).astype(np.float32))
        extra = model_losses(model, sae, source, len(texts), mean)
    measured_on = {
        "model": model.name,
        "prepend_bos": model.prepend_bos,
        "prompts": len(texts),
        "seen_in_training": seen_share(model, sae, texts),
    }
    return _measure(sae, _Tokens(x, y, documents), extra, measured_on)


def reconstruction_quality(
    sae: SAE,
    x: ArrayLike,
    *,
    y: ArrayLike | None = None,
    documents: ArrayLike | None = None,
    seed: int = 0,  # noqa: ARG001 - of earlier versions, whose intervals were drawn
) -> SAEQualityResult:
    """`sae_quality` of given activations: without a model, and so without losses.

    Args:
        x: [tokens, d_in].
        y: [tokens, d_out], a transcoder's targets; None: x.
        documents: [tokens], the document of each token, for the intervals; None: tokens are independent, and
            200 groups of them are resampled.
    """
    read = np.asarray(x, dtype=np.float32)
    written = read if y is None else np.asarray(y, dtype=np.float32)
    if read.ndim != 2 or len(read) != len(written) or not len(read):
        raise SAEError(
            f"Activations of shapes {read.shape} and {written.shape}. Give [tokens, d] of the same tokens."
        )
    of = np.arange(len(read)) % _GROUPS if documents is None else np.asarray(documents)
    _, of = np.unique(of, return_inverse=True)
    return _measure(sae, _Tokens(read, written, of), {}, {"model": sae.model})


class _Tokens(NamedTuple):
    """Activations [tokens, d] where the SAE reads and where it writes, and the document of each token."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    documents: NDArray[Any]


def _measure(sae: SAE, tokens: _Tokens, extra: Sums, measured_on: dict[str, Any]) -> SAEQualityResult:
    x, y, documents = tokens
    n_documents = int(documents.max()) + 1
    sums = {name: np.zeros(n_documents) for name in ("n", "error", "square", "active", "shrink", "cosine")}
    sums["total"] = np.zeros((n_documents, y.shape[1]))
    fired = np.zeros(sae.d_sae)
    mean = y.astype(np.float64).mean(axis=0)
    for low in range(0, len(x), _TOKENS_AT_ONCE):
        part = mx.array(x[low : low + _TOKENS_AT_ONCE])
        acts = sae.encode(part)
        rec = sae.decode(acts)
        if sae.W_skip is not None:
            rec = rec + part @ sae.W_skip
        active = acts > 0
        mx.eval(rec, active)
        fired += np.array(active.sum(axis=0), dtype=np.float64)
        # Centred on the mean of all tokens, so that no difference of large sums loses digits.
        about = y[low : low + _TOKENS_AT_ONCE].astype(np.float64) - mean
        found = np.array(rec).astype(np.float64) - mean
        where = documents[low : low + _TOKENS_AT_ONCE]
        lengths, own = np.linalg.norm(found, axis=1), np.linalg.norm(about, axis=1)
        per_token = {
            "n": np.ones(len(where)),
            "error": ((about - found) ** 2).sum(axis=1),
            "square": own**2,
            "total": about,
            "active": np.array(active.sum(axis=1), dtype=np.float64),
            "shrink": lengths / np.maximum(own, 1e-12),
            "cosine": (about * found).sum(axis=1) / np.maximum(own * lengths, 1e-12),
        }
        for name, values in per_token.items():
            np.add.at(sums[name], where, values)
    density = fired / len(x)
    every = {**sums, **extra}
    rows = [_row(name, ratio, every) for name, ratio in _RATIOS.items() if _has(every, name)]
    rows += [_share("dead", density == 0), _share("dense", density > DENSE)]
    recorder.add_method("reconstruction_quality")
    return SAEQualityResult(
        rows=tuple(rows),
        density=density,
        tokens=len(x),
        documents=int((sums["n"] > 0).sum()),
        measured_on=measured_on | {"hook_point": sae.hook_point, "sae": sae.digest[:16]},
    )


def _fvu(s: Sums) -> Exact:
    variance = s["square"] - (s["total"] ** 2).sum(axis=-1) / s["n"]
    return _divided(s["error"], variance)


def _recovered(name: str, ablated: str) -> Callable[[Sums], Exact]:
    def ratio(s: Sums) -> Exact:
        if name == "kl":
            return 1 - _divided(s["kl_reconstructed"], s[f"kl_{ablated}"])
        return _divided(s[f"ce_{ablated}"] - s["ce_reconstructed"], s[f"ce_{ablated}"] - s["ce_clean"])

    return ratio


def _divided(a: Exact, b: Exact) -> Exact:
    return np.where(b != 0, a / np.where(b != 0, b, 1.0), np.nan)


def _per_token(name: str) -> Callable[[Sums], Exact]:
    return lambda s: _divided(s[name], s["predicted"] if name.startswith(("ce", "kl")) else s["n"])


_RATIOS: dict[str, Callable[[Sums], Exact]] = {
    "fvu": _fvu,
    "explained_variance": lambda s: 1 - _fvu(s),
    "l0": _per_token("active"),
    "shrinkage": _per_token("shrink"),
    "cosine": _per_token("cosine"),
    "ce_clean": _per_token("ce_clean"),
    "ce_reconstructed": _per_token("ce_reconstructed"),
    "ce_zero": _per_token("ce_zero"),
    "ce_mean": _per_token("ce_mean"),
    "ce_recovered_zero": _recovered("ce", "zero"),
    "ce_recovered_mean": _recovered("ce", "mean"),
    "kl_reconstructed": _per_token("kl_reconstructed"),
    "kl_recovered_zero": _recovered("kl", "zero"),
    "kl_recovered_mean": _recovered("kl", "mean"),
}


def _has(sums: Sums, name: str) -> bool:
    return not name.startswith(("ce_", "kl_")) or "predicted" in sums


def _row(name: str, ratio: Callable[[Sums], Exact], sums: Sums) -> Quality:
    there = sums["n"] > 0
    return _quality(name, of_sums(ratio, {key: values[there] for key, values in sums.items()}))


def _quality(name: str, bounded: Bounded) -> Quality:
    return Quality(name=name, value=bounded.value, low=bounded.low, high=bounded.high)


def _share(name: str, which: NDArray[np.bool_]) -> Quality:
    """A share of the features with its Wilson interval."""
    return _quality(name, wilson(int(which.sum()), len(which)))


def model_losses(
    model: InterpretableModel, sae: SAE, source: StreamedActivations, n_texts: int, mean: mx.array
) -> dict[str, Exact]:
    """Cross-entropy and KL sums of each document: of the model, and with the activation replaced.

    An attention sink keeps its activation: no SAE is trained on them, and later layers attend to them.
    """
    found: dict[str, Exact] = {}

    def add(name: str, documents: NDArray[np.int64], values: NDArray[Any]) -> None:
        np.add.at(found.setdefault(name, np.zeros(n_texts)), documents, values.astype(np.float64))

    rows = [(i, row) for i in range(n_texts) for row in source.rows_of_text(i)]
    rows.sort(key=lambda pair: -len(pair[1]))
    for low in range(0, len(rows), _ROWS_AT_ONCE):
        texts, tokens = zip(*rows[low : low + _ROWS_AT_ONCE], strict=True)
        batch = pad(tokens)
        counted = source.counted(batch)
        predicts = counted.copy()
        predicts[:, :-1] &= batch.mask[:, 1:]
        predicts[:, -1] = False
        if not predicts.any():
            continue
        row, pos = np.nonzero(predicts)
        documents, answers = np.array(texts)[row], batch.tokens[row, pos + 1]
        clean, seen = _log_probs(model, sae, batch, predicts, None)
        add("predicted", documents, np.ones(len(documents)))
        add("ce_clean", documents, -clean[np.arange(len(answers)), answers])
        flat = {str(p): np.array(x.astype(mx.float32)).reshape(counted.size, -1) for p, x in seen.items()}
        here = mx.array(counted & source.usual(flat).reshape(counted.shape))[:, :, None]
        activation = seen[sae.point_out]
        replacements = {
            "reconstructed": sae.reconstruct(seen[sae.point]),
            "zero": mx.zeros_like(activation),
            "mean": mx.broadcast_to(mean, activation.shape),
        }
        for name, value in replacements.items():
            value = mx.where(here, value.astype(activation.dtype), activation)
            edited, _ = _log_probs(model, sae, batch, predicts, value)
            add(f"ce_{name}", documents, -edited[np.arange(len(answers)), answers])
            add(f"kl_{name}", documents, (np.exp(clean) * (clean - edited)).sum(axis=1))
    return found


def _log_probs(
    model: InterpretableModel, sae: SAE, batch: Padded, at: NDArray[np.bool_], value: mx.array | None
) -> tuple[NDArray[np.float32], dict[HookPoint, mx.array]]:
    """Log probabilities [n, d_vocab] at these positions, with `value` where the SAE writes; without it,
    also the activations where the SAE reads and writes."""
    edits = [] if value is None else [replace(sae.point_out, value)]
    capture = [] if value is not None else list({sae.point, sae.point_out})
    with fast_math.used(model.architecture):
        logits, seen = model.run(batch.tokens, interventions=edits, capture=capture, lengths=batch.lengths)
        chosen = logits.reshape(-1, logits.shape[-1])[mx.array(np.flatnonzero(at))].astype(mx.float32)
        mx.eval(chosen, seen)
    scores = np.array(chosen)
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return scores, seen


@dataclass(frozen=True, eq=False)
class Recovery:
    """True directions matched one to one with features so that the sum of cosines is largest.

    Attributes:
        mcc: mean cosine of the matched pairs.
        recovered: share of true directions whose match has a cosine above 0.9.
        features: [true], the matched feature of each, −1 where there are fewer features.
        cosines: [true], 0 where there is none.
    """

    mcc: Quality
    recovered: Quality
    features: NDArray[np.int64]
    cosines: NDArray[np.float64]


def recovery(
    sae: SAE,
    directions: ArrayLike,
    *,
    seed: int = 0,  # noqa: ARG001 - of earlier versions, whose intervals were drawn
) -> Recovery:
    """Matches the rows of `directions` [true, d_out] with decoder rows (Hungarian method).

    A feature stands for one direction only, so that a feature between two does not count twice.
    Intervals are over the true directions.

    Raises:
        SAEError: directions of another width.
    """
    true: NDArray[Any] = np.asarray(directions, dtype=np.float64)
    if true.ndim != 2 or true.shape[1] != sae.d_out:
        raise SAEError(
            f"Directions of shape {true.shape} for an SAE that writes {sae.d_out} values; give [true, d_out]."
        )
    # Every process that measures with an SAE imports this module, and scipy.optimize takes half a second.
    from scipy.optimize import linear_sum_assignment

    rows = np.array(sae.W_dec).astype(np.float64)
    cosines = _unit(true) @ _unit(rows).T
    of, feature = linear_sum_assignment(-cosines)
    matched, features = np.zeros(len(true)), np.full(len(true), -1, dtype=np.int64)
    matched[of], features[of] = cosines[of, feature], feature
    return Recovery(
        _mean("mcc", matched),
        _quality("recovered", wilson(int((matched > FOUND).sum()), len(matched))),
        features,
        matched,
    )


def absorption(
    sae: SAE,
    x: ArrayLike,
    directions: ArrayLike,
    fires: ArrayLike,
    parents: ArrayLike,
    *,
    seed: int = 0,  # noqa: ARG001 - of earlier versions, whose intervals were drawn
) -> Quality:
    """How often a general feature does not fire because a specific one has absorbed it; 0 is best.

    A parent is a true feature that others, its children, only fire together with. On a token where it fires
    in truth, it is absorbed if the feature matched with it (`recovery`) does not fire, and a feature matched
    with one of its children fires that writes the parent too: the cosine of its decoder row with the part of
    the parent's direction that is orthogonal to that child's is at least 0.25. (Of a clean child it is 0; of
    a sum of orthogonal parent and child 0.71.)

    The value is the share of such tokens among those where the parent fires, averaged over the parents; the
    interval is over them, from four on.

    Args:
        x: activations [tokens, d_in].
        directions: [true, d_out].
        fires: [tokens, true], whether each true feature fires.
        parents: [true], the index of each feature's parent, −1 where it has none.

    Raises:
        SAEError: shapes that do not go together; no parent, or one that never fires.

    Source: Chanin et al. 2024, "A is for Absorption", arXiv:2409.14507. Deviations: truth is planted, so it
    stands in for their probe and for the choice of the feature's own latents; a child's latent stands in for
    the one with the largest effect.
    """
    true, on = np.asarray(directions, dtype=np.float64), np.asarray(fires, dtype=bool)
    of, rows_in = np.asarray(parents, dtype=np.int64), np.asarray(x, dtype=np.float32)
    if on.shape != (len(rows_in), len(true)) or of.shape != (len(true),):
        raise SAEError(
            f"Absorption of {len(true)} features on {len(rows_in)} tokens with fires {on.shape} and parents "
            f"{of.shape}; give [tokens, true] and [true]."
        )
    every = [int(parent) for parent in np.unique(of[of >= 0])]
    silent = [parent for parent in every if not on[:, parent].any()]
    if not every or silent:
        raise SAEError(
            f"Absorption of parents {every}, of which {silent} never fire. Give features with children "
            "(parents[child] = parent), and tokens on which they fire."
        )
    matched = recovery(sae, true).features
    active = _active(sae, rows_in)
    rows, unit = _unit(np.array(sae.W_dec).astype(np.float64)), _unit(true)
    shares = []
    for parent in every:
        own = matched[parent]
        missed = on[:, parent] & (~active[:, own] if own >= 0 else True)
        covered = np.zeros(len(on), dtype=bool)
        for child in np.flatnonzero(of == parent):
            rest = unit[parent] - (unit[parent] @ unit[child]) * unit[child]
            feature = matched[child]
            if feature >= 0 and rows[feature] @ _unit(rest[None])[0] >= COVERS:
                covered |= active[:, feature]
        shares.append((missed & covered).sum() / on[:, parent].sum())
    return _mean("absorption", np.array(shares))


def _active(sae: SAE, x: NDArray[np.float32]) -> NDArray[np.bool_]:
    starts = range(0, len(x), _TOKENS_AT_ONCE)
    return np.concatenate(
        [np.array(sae.encode(mx.array(x[low : low + _TOKENS_AT_ONCE])) > 0) for low in starts]
    )


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def _mean(name: str, values: NDArray[np.float64]) -> Quality:
    found = mean_of(values)
    low, high = (float("nan") if each is None else float(each) for each in (found.low, found.high))
    return Quality(name=name, value=float(found.effect), low=low, high=high)
