"""A world: a model and pairs on which it is known which sites matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel


@dataclass(frozen=True)
class SiteTruth:
    """What is known of a site.

    Attributes:
        matters: whether patching it alone from the clean run moves the metric.
        effect: the share of the gap that this recovers, where it is known.
    """

    matters: bool
    effect: float | None = None


MATTERS_NOT = SiteTruth(matters=False, effect=0.0)


@dataclass(frozen=True, eq=False)
class World:
    """A model with known truth, for testing whatever makes claims about it.

    Attributes:
        pairs: independent ones, each a cluster.
        candidates: drawn like the pairs, and not selected by what the model does.
        truth: by site, as "L1.z.h1"; sites that are not in it are not known.
        behaviour: whether there is a behaviour to explain. Where there is none, no effect means anything, and
            no claim may be kept.
        metric: the one that `truth` is about.
    """

    name: str
    model: InterpretableModel
    pairs: tuple[PromptPair, ...]
    candidates: tuple[PromptPair, ...]
    truth: Mapping[str, SiteTruth] = field(default_factory=dict)
    behaviour: bool = True
    metric: str = "logit_diff"

    @property
    def planted(self) -> tuple[str, ...]:
        """The sites that matter."""
        return tuple(site for site, known in self.truth.items() if known.matters)

    @property
    def inert(self) -> tuple[str, ...]:
        """The sites that do not."""
        return tuple(site for site, known in self.truth.items() if not known.matters)
