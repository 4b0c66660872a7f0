"""Training sparse autoencoders and transcoders on a source of activations: the loop over batches, its
progress, and the warning of a run that ended too early.

One step is in `step.py`, the loss in `objective.py`; how good the result is, `mlxterp.sae.evaluation`
measures.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.core.linux_blas import blas
from mlxterp.errors import SAEError, TooLittleData, UnderTrained
from mlxterp.sae.config import Plan, SAEConfig, plan
from mlxterp.sae.sae import SAE
from mlxterp.sae.training import checkpoints, scaling
from mlxterp.sae.training.checkpoints import Checkpoint
from mlxterp.sae.training.learning_rate_search import find_learning_rate
from mlxterp.sae.training.scaling import Scalings
from mlxterp.sae.training.source import ActivationSource, Block, Cursor, batches
from mlxterp.sae.training.step import State, Stepped, Stepper

REPORT_EVERY = 50
STILL_IMPROVING = 0.10
_SAMPLE = 16_384  # tokens that means and start values are measured on


@dataclass(frozen=True)
class TrainingProgress:
    """How a training stands: means over the steps since the last report.

    `fvu` is of the tokens being trained on, before each step; `dead` the share of features that have not
    fired for a while; `eta_seconds` until the end of the run at the present speed.
    """

    name: str
    step: int
    steps: int
    tokens: int
    loss: float
    fvu: float
    l0: float
    dead: float
    learning_rate: float
    tokens_per_second: float
    eta_seconds: float


Progress = Callable[[TrainingProgress], None]


def still_falling(history: Sequence[TrainingProgress], decay: float) -> float | None:
    """The share by which the FVU fell between the last two 15 % of the run before the decay, if too large.

    Too much is more than a tenth of what it was, or of all that the run had gained: a rate that is far too
    low falls slowly, but as fast at the end as at the beginning.
    """
    if not history or history[-1].step < (1 - decay) * history[-1].steps:
        return None
    steps = history[-1].steps
    end = (1 - decay) * steps
    before = [line.fvu for line in history if end - 0.3 * steps < line.step <= end - 0.15 * steps]
    after = [line.fvu for line in history if end - 0.15 * steps < line.step <= end]
    if not before or not after:
        return None
    start, finish = float(np.mean(before)), float(np.mean(after))
    fell, gained = start - finish, history[0].fvu - finish
    return fell / start if fell > STILL_IMPROVING * max(0.0, min(start, gained)) else None


@dataclass(frozen=True, eq=False)
class Trained:
    """An SAE and how its training went."""

    sae: SAE
    history: tuple[TrainingProgress, ...]
    under_trained: bool


@dataclass(eq=False)
class Run:
    """One SAE being trained: its functions, its state, its scalings."""

    config: SAEConfig
    plan: Plan
    scalings: Scalings
    stepper: Stepper
    state: State
    history: list[TrainingProgress]
    waiting: list[Stepped]

    @property
    def points(self) -> tuple[str, str]:
        point = self.config.hook_point or ""
        return point, self.config.hook_point_out or point

    def batch(self, block: Block) -> tuple[mx.array, mx.array]:
        read, written = self.points
        x = self.scalings.read(mx.array(block[read]))
        return x, x if read == written else self.scalings.written(mx.array(block[written]))


def train_sae(
    source: ActivationSource,
    config: SAEConfig,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Trained:
    """Trains one SAE (or transcoder); see `train_saes`."""
    return train_saes(
        source,
        [config],
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        stop=stop,
        clock=clock,
    )[0]


@blas.pinned_threads()
def train_saes(
    source: ActivationSource,
    configs: Sequence[SAEConfig],
    *,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Trained]:
    """Trains several SAEs on the same batches: the model's forwards are paid once.

    Recipe: one scalar scale and the mean taken off, both folded into the weights at the end; decoder rows of
    norm 1 with the gradient along them removed; encoder = decoder transposed at the start; Adam (0.9, 0.999)
    without weight decay; warm-up, and decay to 0; dead features learn to explain what is left over
    (auxiliary loss of Gao et al. 2024, arXiv:2406.04093, section A.2). A learning rate that is not given is
    found by short runs of this very training (`learning_rate_search.py`).

    Cost: 10 · d · d_sae operations a token, and for the learning rate as much as a fifth of the run.

    Args:
        source: activations; `StreamedActivations`, `cached_activations(…)`, or arrays.
        configs: what to train; batch size and epochs must be the same for all.
        checkpoint: a directory. If it holds a checkpoint of this very training, it goes on from there and
            ends with the same bits as without the interruption, on the same machine: products are computed
            with one BLAS thread, or with OPENBLAS_NUM_THREADS of them where that is set.
        checkpoint_every: steps between two checkpoints.
        progress: called every 50 steps, or twenty times in a short run, for each SAE.
        stop: called after each step; once it returns True, a checkpoint is written (with `checkpoint`), and
            the SAEs are returned as they are, before their learning rate has decayed.
        clock: seconds, for the speeds in reports.

    Returns:
        one for each config; `sae.metadata` holds the config and the facts of the training, of the source
        too: from texts, their digest.

    Raises:
        TooLittleData: it would be fewer than 50 steps.
        SAEError: options that do not go together, NaN among the activations, a checkpoint of another
            training.

    Warns:
        UnderTrained: before the decay, the FVU was still falling by more than a tenth within 15 % of the run.
    """
    configs = [_with_hook_points(config, source) for config in configs]
    plans = _one_batching([plan(config, source.n_tokens) for config in configs])
    size, seed, epochs = plans[0].batch_tokens, configs[0].seed, configs[0].epochs
    if len({config.epochs for config in configs}) > 1:
        raise SAEError(
            f"SAEs trained together with epochs {[config.epochs for config in configs]}. Give all the same."
        )
    folder = None if checkpoint is None else Path(checkpoint)
    saved = None if folder is None else checkpoints.read(folder, configs, source.digest)
    cursor = Cursor() if saved is None else saved.cursor
    runs = [
        _begin(source, config, planned, seed, saved, i)
        for i, (config, planned) in enumerate(zip(configs, plans, strict=True))
    ]
    since = clock()
    stopped = False
    every = max(1, min(REPORT_EVERY, plans[0].steps // 20))
    for block, here in batches(source, size, seed=seed, epochs=epochs, cursor=cursor):
        for run in runs:
            x, y = run.batch(block)
            run.waiting.append(run.stepper.advance(run.state, x, y))
        step = runs[0].state.step
        stopped = stop is not None and stop()
        if step % every == 0 or stopped:
            now = clock()
            for run in runs:
                _report(run, now - since, progress)
            since = now
        if folder is not None and (step % checkpoint_every == 0 or stopped):
            checkpoints.write(folder, configs, source.digest, _checkpoint(runs, here))
        if stopped:
            break
    for run in runs:
        if run.waiting:
            _report(run, clock() - since, progress)
        if run.state.step == 0:
            raise TooLittleData(f"The source gave no batch of {size} tokens. Give it more texts.")
    return [_finished(run, source, stopped=stopped) for run in runs]


def _with_hook_points(config: SAEConfig, source: ActivationSource) -> SAEConfig:
    """The config with its hook points named."""
    there = source.points
    if config.hook_point is None:
        if len(there) > 1:
            raise SAEError(
                f"The source holds {', '.join(there)}. Name in SAEConfig(hook_point=…) the one to read."
            )
        config = replace(config, hook_point=there[0])
    needed = {config.hook_point, config.hook_point_out or config.hook_point}
    if not needed <= set(there):
        raise SAEError(
            f"An SAE at {', '.join(sorted(map(str, needed)))} from a source that holds "
            f"{', '.join(there)}. Make the source with these hook points."
        )
    return config


def _one_batching(plans: list[Plan]) -> list[Plan]:
    if len({each.batch_tokens for each in plans}) > 1:
        raise SAEError(
            f"SAEs trained together in batches of {[each.batch_tokens for each in plans]} tokens. Give all "
            "the same batch_tokens."
        )
    return plans


def _begin(
    source: ActivationSource,
    config: SAEConfig,
    planned: Plan,
    seed: int,
    saved: Checkpoint | None,
    index: int,
) -> Run:
    """A run before its first step, with a learning rate; or as it was saved as SAE number `index`."""
    read = str(config.hook_point)
    written = config.hook_point_out or read
    rows = source.sample(_SAMPLE, seed=seed)
    if not len(rows[read]):
        raise TooLittleData(f"The source holds no token to train on at {read}. Give it more texts.")
    of_read = scaling.measure(rows[read], read, config.k)
    of_written = of_read if written == read else scaling.measure(rows[written], written, config.k)
    rate = saved.rates[index] if saved is not None else config.learning_rate or 1e-3
    stepper = Stepper(config, planned, rate)
    state = stepper.begin(rows[read].shape[1], rows[written].shape[1], of_read(mx.array(rows[read][:2048])))
    run = Run(config, planned, Scalings(of_read, of_written), stepper, state, [], [])
    if saved is not None:
        history = [TrainingProgress(**line) for line in saved.histories[index]]
        return replace(run, state=saved.states[index], history=history)
    if config.learning_rate is not None:
        return run
    x, y = run.batch(source.sample(4 * _SAMPLE, seed=seed))
    stepper = Stepper(config, planned, find_learning_rate(config, planned, x, y))
    return replace(run, stepper=stepper, state=stepper.begin(x.shape[1], y.shape[1], x[:2048]))


def _report(run: Run, seconds: float, progress: Progress | None) -> None:
    steps, run.waiting = run.waiting, []
    tokens = sum(each.tokens for each in steps)
    error = float(mx.stack([each.squared_error for each in steps]).sum())
    variance = float(mx.stack([each.variance for each in steps]).sum())
    active = float(sum(float(each.active.sum()) for each in steps))
    since = np.array(run.state.since)
    speed = tokens / seconds if seconds > 0 else 0.0
    left = max(0, run.plan.steps - run.state.step) * run.plan.batch_tokens
    report = TrainingProgress(
        name=run.config.name or str(run.config.hook_point),
        step=run.state.step,
        steps=run.plan.steps,
        tokens=min(run.state.step * run.plan.batch_tokens, run.plan.tokens),
        loss=float(mx.stack([each.loss for each in steps]).mean()),
        fvu=error / variance if variance else 0.0,
        l0=active / tokens,
        dead=float((since >= run.plan.dead_after).mean()),
        learning_rate=run.stepper.rate(run.state.step - 1),
        tokens_per_second=speed,
        eta_seconds=left / speed if speed else 0.0,
    )
    run.history.append(report)
    if progress is not None:
        progress(report)


def _checkpoint(runs: list[Run], cursor: Cursor) -> Checkpoint:
    return Checkpoint(
        [run.state for run in runs],
        [run.stepper.learning_rate for run in runs],
        [[vars(line) for line in run.history] for run in runs],
        cursor,
    )


def _finished(run: Run, source: ActivationSource, *, stopped: bool) -> Trained:
    falling = still_falling(run.history, run.config.decay)
    if falling is not None:
        warnings.warn(
            f"{run.config.name or run.config.hook_point}: the FVU was still falling by {falling:.0%} before "
            f"the learning rate came down; it is {run.history[-1].fvu:.3f} at the end. "
            f"Train on more tokens, or try another learning rate than {run.stepper.learning_rate:.2g}.",
            UnderTrained,
            stacklevel=4,
        )
    last = run.history[-1]
    facts: dict[str, Any] = {
        "config": run.config.to_dict(),
        "source": source.facts(),
        "learning_rate": run.stepper.learning_rate,
        "batch_tokens": run.plan.batch_tokens,
        "steps": run.state.step,
        "tokens": last.tokens,
        "stopped_early": stopped,
        "training_fvu": last.fvu,
        "training_l0": last.l0,
        "dead": last.dead,
    }
    threshold = float(run.state.threshold) / run.state.threshold_weight if run.state.threshold_weight else 0.0
    sae = scaling.folded(
        run.config,
        run.state.params,
        run.scalings,
        threshold=threshold,
        model=source.model_name,
        metadata={"training": facts},
    )
    mx.eval(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    return Trained(sae, tuple(run.history), under_trained=falling is not None)
