"""`SAEQualityResult`: how well an SAE reconstructs, how sparsely, and what the model loses by it.

`mlxterp.sae.evaluation` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.views import Bars, Floats, Note, Show, Table, cautions
from mlxterp.text import number, percent

MEANINGS = {
    "fvu": "fraction of variance unexplained; 0 is perfect, 1 is the mean",
    "explained_variance": "1 − fvu",
    "l0": "active features a token",
    "shrinkage": "mean length of the reconstruction over that of the activation, both about the mean",
    "cosine": "mean cosine between activation and reconstruction, both about the mean",
    "dead": "share of features that fired on no token",
    "dense": "share of features that fired on more than a tenth of the tokens",
    "ce_clean": "cross-entropy of the model, nats a token",
    "ce_reconstructed": "with the reconstruction in place of the activation",
    "ce_zero": "with zeros in its place",
    "ce_mean": "with the mean in its place",
    "ce_recovered_zero": "share of the loss of zero ablation that the reconstruction avoids; 1 loses nothing",
    "ce_recovered_mean": "the same against mean ablation",
    "kl_reconstructed": "KL(model ‖ with the reconstruction), nats a token",
    "kl_recovered_zero": "1 − KL with the reconstruction / KL with zeros",
    "kl_recovered_mean": "the same against the mean",
}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One number with its 95 % interval; NaN where there is none, as for a single document."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, kw_only=True)
class SAEQualityResult(AnalysisResult):
    """What was measured of one SAE on texts; `measured_on["seen_in_training"]` is the share of them that it
    was trained on, None where that is not recorded.

    Attributes:
        rows: the numbers by name; `MEANINGS` says what each is.
        density: [d_sae], on which share of the tokens each feature fired.
        tokens, documents: how many were looked at.
    """

    kind: ClassVar[str] = "sae_quality"
    rows: tuple[Quality, ...]
    density: Floats
    tokens: int
    documents: int

    def _check(self) -> None:
        unknown = [row.name for row in self.rows if row.name not in MEANINGS]
        if unknown:
            raise ResultError(f"unknown numbers {unknown}. Known: {', '.join(MEANINGS)}.")

    def __getitem__(self, name: str) -> Quality:
        """The number of this name; an unknown one raises ResultError, listing those that were measured."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ResultError(f"no {name!r} was measured. There are: {', '.join(row.name for row in self.rows)}.")

    @property
    def seen(self) -> float | None:
        """The share of the texts that the SAE was trained on; None where that is not known."""
        share = self.measured_on.get("seen_in_training")
        return None if share is None else float(share)

    @property
    def title(self) -> str:
        return f"Quality of the SAE at {self.measured_on.get('hook_point', 'an unnamed place')}"

    def summary(self) -> str:
        lines = [
            f"{self._headline()}, {self.tokens:,} tokens of {self.documents} documents.",
            f"FVU {_with_interval(self['fvu'])}, L0 {_with_interval(self['l0'])}.",
            *([seen_sentence(self.seen)] if "seen_in_training" in self.measured_on else []),
        ]
        if any(row.name == "ce_recovered_zero" for row in self.rows):
            lines.append(
                f"Loss recovered: {_with_interval(self['ce_recovered_zero'])} against zero ablation, "
                f"{_with_interval(self['ce_recovered_mean'])} against mean ablation."
            )
        lines.append(f"{percent(self['dead'].value)} of {len(self.density)} features fired on none of them.")
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        rows = tuple((row.name, row.value, row.low, row.high, MEANINGS[row.name]) for row in self.rows)
        fired = self.density[self.density > 0]
        edges = np.arange(-7, 1)
        counts, _ = np.histogram(np.log10(fired), bins=edges) if len(fired) else (np.zeros(7), edges)
        return (
            Table(
                title="How good it is",
                columns=("number", "value", "low", "high", "meaning"),
                rows=rows,
                caption="Intervals: 95 %, over documents.",
            ),
            Bars(
                title="How often features fire",
                labels=tuple(f"10^{low} to 10^{low + 1}" for low in edges[:-1]),
                values=tuple(float(count) for count in counts),
                unit="features",
                axis="share of tokens",
                ordered=True,
                reading="Features by the share of tokens on which they fire; dead ones are left out.",
            ),
            *cautions([seen_sentence(self.seen)] if self.seen else []),
            Note(
                "First tokens of rows and special tokens are not counted; tokens with a norm above ten times "
                "the median are not counted in the reconstruction."
            ),
        )


def seen_sentence(seen: float | None) -> str:
    """Whether texts were of the SAE's training, as `mlxterp.sae.training_texts.seen_in_training` found."""
    if seen is None:
        return "Whether the SAE was trained on these texts is not recorded."
    if seen == 0:
        return "The SAE was not trained on these texts."
    share = "all" if seen == 1 else f"{100 * seen:.2g} %"
    return f"The SAE was trained on {share} of these texts; on others it may do worse."


def _with_interval(row: Quality) -> str:
    return f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"
