"""The options of a training as a value, with their checks, and the plan that follows from them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlxterp.errors import SAEError, TooLittleData

Variant = Literal["topk", "batchtopk", "jumprelu", "relu", "matryoshka"]
VARIANTS: tuple[str, ...] = get_args(Variant)

MIN_STEPS = 50
_STEPS = 3_000
_BATCHES = (256, 4096)


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """How one SAE is trained.

    Attributes:
        d_sae: how many features.
        k: active features a token: exactly for "topk", on average for the others. For "relu" the penalty is
            raised until k is reached, which takes thousands of steps, and shrinks activations as L1 does.
        variant: "topk" (Gao et al. 2024), "batchtopk" (Bussmann et al. 2024: the k·batch largest of a batch;
            a running threshold stands in at inference), "matryoshka" (Bussmann et al. 2025: batchtopk whose
            prefixes reconstruct too), "jumprelu" (Rajamanoharan et al. 2024), "relu" (L1 penalty).
        learning_rate: None finds one by short trial runs.
        batch_tokens: tokens a step; None: as many as leave 3,000 steps, between 256 and 4,096.
        epochs: how often each token is trained on.
        seed: of the initial weights; of the shuffling unless the source has its own.
        warmup, decay: shares of the run: the rate rises linearly, and falls linearly to 0 at the end.
        aux_weight: weight of the loss by which features that do not fire explain what is left over; 0: off.
        aux_k: how many of them a token may use; None: half the width of the input.
        dead_after: tokens without firing after which a feature counts as dead; None: a tenth of the run, 1 M
            at most.
        prefixes: for "matryoshka", shares of d_sae, rising, ending in 1.
        skip: a linear path beside the features, for transcoders.
        name: in progress reports; None: its hook point.
        hook_point, hook_point_out: where it reads and, for a transcoder, where it writes. None: the source's
            only hook point.
    """

    d_sae: int
    k: int = 32
    variant: Variant = "batchtopk"
    learning_rate: float | None = None
    batch_tokens: int | None = None
    epochs: int = 1
    seed: int = 0
    warmup: float = 0.05
    decay: float = 0.2
    aux_weight: float = 1 / 32
    aux_k: int | None = None
    dead_after: int | None = None
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    skip: bool = False
    name: str | None = None
    hook_point: str | None = None
    hook_point_out: str | None = None

    def __post_init__(self) -> None:
        wrong = {
            f"variant {self.variant!r}; choose one of {', '.join(VARIANTS)}": self.variant not in VARIANTS,
            f"k = {self.k} of d_sae = {self.d_sae}; k is 1 to d_sae": not 1 <= self.k <= self.d_sae,
            f"epochs = {self.epochs}; at least 1": self.epochs < 1,
            f"batch_tokens = {self.batch_tokens}; at least 2": (self.batch_tokens or 2) < 2,
            f"learning_rate = {self.learning_rate}; a positive number or None": (
                self.learning_rate is not None and not 0 < self.learning_rate < math.inf
            ),
            f"warmup = {self.warmup} and decay = {self.decay}; shares of the run, together at most 1": (
                min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1
            ),
            f"prefixes = {self.prefixes}; rising shares of d_sae that end in 1": (
                list(self.prefixes) != sorted(set(self.prefixes))
                or not self.prefixes
                or self.prefixes[0] * self.d_sae < 1
                or self.prefixes[-1] != 1
            )
            and self.variant == "matryoshka",
            "skip=True without hook_point_out; only a transcoder has a skip path": (
                self.skip and self.hook_point_out is None
            ),
        }
        problems = [text for text, is_wrong in wrong.items() if is_wrong]
        if problems:
            raise SAEError(f"A training with {'; with '.join(problems)}.")

    @property
    def is_transcoder(self) -> bool:
        return self.hook_point_out is not None and self.hook_point_out != self.hook_point

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metadata and checkpoints."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclass(frozen=True)
class Plan:
    """What follows from a config and the number of tokens there are."""

    batch_tokens: int
    steps: int
    tokens: int
    dead_after: int


def plan(config: SAEConfig, n_tokens: int) -> Plan:
    """Batch size, steps, and the tokens after which a feature counts as dead, for a source of this size.

    Raises:
        TooLittleData: it would make fewer than 50 steps.
    """
    total = n_tokens * config.epochs
    batch = config.batch_tokens or batch_for(total)
    steps = math.ceil(total / batch)
    if steps < MIN_STEPS:
        raise TooLittleData(
            f"{n_tokens:,} tokens, {config.epochs} time{'s' if config.epochs > 1 else ''}, in batches of "
            f"{batch}: {steps} steps, and below {MIN_STEPS} an SAE is little better than its random start. "
            f"Give at least {MIN_STEPS * batch:,} tokens, or more epochs, or a smaller batch_tokens."
        )
    dead_after = config.dead_after or min(1_000_000, max(batch, total // 10))
    return Plan(batch, steps, total, dead_after)


def batch_for(total: int) -> int:
    """The power of two that leaves about 3,000 steps, between 256 and 4,096."""
    low, high = _BATCHES
    batch = 1 << round(math.log2(max(1, total / _STEPS)))
    return max(low, min(high, batch))
