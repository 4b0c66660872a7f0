"""The behaviour itself: how a model answers clean and corrupted prompts, before anything is patched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import sweep
from mlxterp.causal.finite import require_finite_runs
from mlxterp.causal.prompts.encoding import (
    Prompt,
    facts_of,
    prompt_text,
    require_model,
    str_tokens,
    token_id,
    token_rows,
)
from mlxterp.causal.prompts.pair import PromptPair, describe, listed_pairs
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import PromptPairError
from mlxterp.measurements import recorder
from mlxterp.results import MetricsResult, MetricsRow


def behaviour(model: InterpretableModel, pairs: PromptPair | Sequence[PromptPair]) -> MetricsResult:
    """Logit difference, probability and rank of the answer, on each clean and each corrupted prompt.

    Costs two forwards per pair. Prompts may differ in length: nothing is compared position by position.

    Returns:
        for each pair a row for its clean and one for its corrupted run, both about the pair's answer against
        its foil; a corrupted prompt that does its work prefers the foil. `totals` holds the share of pairs
        for which the clean run prefers the answer and the corrupted one the foil.

    Raises:
        PromptPairError: a pair without an answer.
    """
    require_model(model)
    listed = listed_pairs(pairs)
    rows: list[MetricsRow] = []
    for i, pair in enumerate(listed):
        if pair.answer is None:
            raise PromptPairError(
                f"pair {i} has no answer, so its rank and probability mean nothing. Give one."
            )
        rows.append(_row(model, pair.clean, pair.answer, pair.foil, "clean"))
        rows.append(_row(model, pair.corrupted, pair.answer, pair.foil, "corrupted"))
    totals: dict[str, float] = {}
    diffs = [
        [r.logit_diff for r in rows if r.run == run and r.logit_diff is not None]
        for run in ("clean", "corrupted")
    ]
    if diffs[0]:
        both = [c > 0 > x for c, x in zip(*diffs, strict=True)]
        totals["clean prefers the answer, corrupted the foil"] = float(np.mean(both))
    recorder.add_method("behaviour", pairs=len(listed))
    return MetricsResult(
        rows=tuple(rows),
        totals=totals,
        measured_on=facts_of(model) | {"prompts": [describe(model, pair) for pair in listed]},
    )


def _row(
    model: InterpretableModel, prompt: Prompt, answer: str | int, foil: str | int | None, run: str
) -> MetricsRow:
    tokens = token_rows(model, [prompt], run)
    logits = sweep.answer_logits(model, tokens)
    require_finite_runs(model, logits, tokens, run)
    right = token_id(model, answer)
    wrong = None if foil is None else token_id(model, foil)
    return MetricsRow(
        prompt=prompt_text(model, prompt),
        answer=_shown(model, right),
        foil=None if wrong is None else _shown(model, wrong),
        logit_diff=None if wrong is None else float(metrics.logit_diff(logits, [right], [wrong])[0]),
        prob=float(metrics.prob(logits, [right])[0]),
        rank=int(metrics.rank(logits, [right])[0]),
        top_token=_shown(model, int(logits[0].argmax())),
        run=run,
    )


def _shown(model: InterpretableModel, token: int) -> str:
    return str_tokens(model, [token])[0]
