"""A label in words, read by a language model: which tokens have what it says, for `sensitivity_test`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlxterp.auto_interp.label import FeatureLabel, Proposal
from mlxterp.auto_interp.scores import UNDECIDED
from mlxterp.auto_interp.sensitivity.examples import FreshTexts, Items, around

if TYPE_CHECKING:
    from mlxterp.llm import Completer

_OF_EACH = 60  # tokens at which the feature fires, and at which it does not
_BEFORE, _AFTER = 16, 8


def by_reader(texts: FreshTexts, label: FeatureLabel, reader: Completer) -> Items:
    """Tokens that the reader says have what the label says, and tokens that it says have not.

    The reader sees the label and each token, marked within its text, not where the feature fires. As many
    tokens are drawn at which it fires as at which it does not, half of the latter other occurrences of one
    of the former; so the rates are those of a balanced draw, as in scoring. Tokens that the reader leaves
    undecided are neither.

    Costs one question for each 20 of at most 120 tokens.

    Raises:
        LlmError: the service rejected a question, did not answer, or its budget is spent.
    """
    from mlxterp.auto_interp.llm.prompts import marked
    from mlxterp.auto_interp.llm.scorers import PER_CALL, judge
    from mlxterp.llm import run, together

    store, random, activation = texts.store, texts.random, texts.activation
    index = np.flatnonzero(store.counted & texts.fresh[store.document])
    fires = random.permutation(index[activation[index] > 0])[:_OF_EACH]
    silent = random.permutation(index[activation[index] <= 0])
    alike = silent[np.isin(store.word[silent], store.word[fires])][: _OF_EACH // 2]
    others = np.setdiff1d(silent, alike)
    every = np.concatenate([fires, alike, random.permutation(others)[: _OF_EACH - len(alike)]])
    every = random.permutation(every)
    shown = []
    for at in every.tolist():
        span = store.window(at, _BEFORE, _AFTER)
        shown.append(marked(store.str_tokens(span.start, span.stop), {at - span.start}))
    proposal = Proposal(label.label or "", label.description, label.kind)

    async def job() -> list[float]:
        try:
            parts = [shown[low : low + PER_CALL] for low in range(0, len(shown), PER_CALL)]
            answers = await together(*(judge(reader, "fuzzing", proposal, part) for part in parts))
        finally:
            await reader.close()
        return [each for answer in answers for each in answer.probabilities]

    said = np.array(run(job) if shown else [], dtype=np.float64)
    yes, no = every[said > UNDECIDED], every[said < UNDECIDED]
    chosen = np.concatenate([yes, no])
    own = activation.astype(np.float64)
    return Items(
        own[yes],
        own[no],
        "token",
        f"{reader.model}, reading the label",
        lambda i: around(store, int(chosen[i])),
        store,
        np.where(own[yes] > 0, yes, -1),
        texts.removed,
        coverage=len(chosen) / len(every) if len(every) else 0.0,
    )
