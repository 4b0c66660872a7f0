"""Whether a person's prompt pairs can be investigated with a model: what it does on each of them.

Lives here: tokens, both runs, the behaviour gate, the reason for every pair that does not count. Does not
live here: reading the file and the table (`mlxterp.autointerpret.prompt_file`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlxterp import metrics
from mlxterp.autointerpret.prompt_file import (
    CheckedItem,
    PromptCheck,
    PromptFile,
    PromptItem,
    Use,
    read_prompt_file,
)
from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import Ids, Logits
from mlxterp.causal.prompts.encoding import require_model
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MlxterpError, PromptFileError, TokenError
from mlxterp.remeasure import GateCells, gate_cells
from mlxterp.statistics.clusters import clusters, mean_by_cluster
from mlxterp.statistics.decisions import Prefixed, gate

_AT_ONCE = 64
"""Prompts that run together: progress is shown after each of these."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Encoded:
    """One pair in tokens; `reason` says why there are none that can be measured."""

    item: PromptItem
    clean: Ids
    corrupted: Ids
    reason: str = ""


@dataclass(frozen=True)
class _Runs:
    """The logits at the end of both prompts of one pair, each `[d_vocab]`."""

    clean: Logits
    corrupted: Logits


def check_prompts(
    model: InterpretableModel,
    prompts: str | Path | PromptFile,
    *,
    progress: Progress | None = None,
) -> PromptCheck:
    """What a model does on each pair of a file, and which pairs can be investigated.

    Answer and foil must be one token each: of a longer one the pair is dropped, with what to write instead.
    Where no answer of the file begins with a space and the model expects one, all are read with it. Prompts
    of a pair must have the same number of tokens; of the lengths, the one with the most independent clusters
    is kept, because a position must mean the same in all prompts. Costs two forwards per pair, and for those
    that are kept four more, with which the behaviour gate is looked at.

    Args:
        prompts: the path of a CSV or JSON lines file, or what `read_prompt_file` made of it.
        progress: gets a line after each batch.

    Raises:
        PromptFileError: the file cannot be read; or the model shows the behaviour on fewer than two pairs,
            with the table.
        ModelError: this is no InterpretableModel.
    """
    require_model(model)
    file = prompts if isinstance(prompts, PromptFile) else read_prompt_file(prompts)
    say = progress or (lambda _: None)
    encoded = [_encode(model, item) for item in file.items]
    runs = _run(model, [each for each in encoded if not each.reason], say)
    spaced, note = _with_space(model, file.items, runs)
    rows = [_row(model, each, runs.get(each.item.line), spaced=spaced) for each in encoded]
    rows, n_tokens = _one_length(rows, {each.item.line: len(each.clean) for each in encoded})
    found = PromptCheck(
        name=file.name,
        model=model.name,
        rows=tuple(rows),
        n_clusters=len(clusters(_pairs(rows, "dataset"))),
        n_tokens=n_tokens,
        gate=(),
        notes=(*file.notes, *note, *_ends_in_space(file.items)),
    )
    if len(found.used_as("dataset")) < 2:
        n = len(found.used_as("dataset"))
        raise PromptFileError(
            f"{file.name}: {model.name} shows the behaviour on {'no pair' if not n else 'one pair'} of "
            f"{len(rows)}, and a dataset takes two at least.\n{found.table()}\nChange the prompts as the "
            "table says, or choose another model."
        )
    say("measuring the behaviour behind an unrelated prefix")
    return replace(found, gate=_gate(model, rows))


def pairs_of(check: PromptCheck) -> list[PromptPair]:
    """The dataset of a check, as setup.py will hold it."""
    return _pairs(check.rows, "dataset")


def _pairs(rows: Sequence[CheckedItem], *uses: Use) -> list[PromptPair]:
    return [
        PromptPair(
            row.item.clean,
            row.item.corrupted,
            row.answer,
            row.foil,
            name=f"line {row.item.line}",
            cluster=row.item.cluster,
            slice=row.item.slice,
        )
        for row in rows
        if row.use in uses
    ]


def _encode(model: InterpretableModel, item: PromptItem) -> _Encoded:
    none = np.zeros(0, dtype=np.int64)
    try:
        clean, corrupted = (
            np.asarray(model.to_tokens(text), dtype=np.int64).reshape(-1)
            for text in (item.clean, item.corrupted)
        )
    except TokenError as problem:
        return _Encoded(item, none, none, f"the tokenizer cannot encode it: {problem}")
    reason = ""
    if len(clean) != len(corrupted):
        shown = " and ".join(
            "|".join(model.to_str_tokens([int(t) for t in row])) for row in (clean, corrupted)
        )
        reason = (
            f"clean has {len(clean)} tokens and corrupted {len(corrupted)}, so positions do not correspond "
            f"({shown}): choose words with as many tokens"
        )
    elif np.array_equal(clean, corrupted):
        reason = "clean and corrupted are the same tokens: change what is asked about in one of them"
    elif item.answer.strip() == item.foil.strip():
        reason = f"answer and foil are both {item.answer!r}: give what each prompt is continued with"
    return _Encoded(item, clean, corrupted, reason)


def _run(model: InterpretableModel, encoded: Sequence[_Encoded], say: Progress) -> dict[int, _Runs]:
    """Both runs of each pair, by line."""
    groups: dict[int, list[_Encoded]] = defaultdict(list)
    for each in encoded:
        groups[len(each.clean)].append(each)
    found: dict[int, _Runs] = {}
    for group in groups.values():
        for first in range(0, len(group), _AT_ONCE):
            part = group[first : first + _AT_ONCE]
            rows = [each.clean for each in part] + [each.corrupted for each in part]
            logits = sweep.answer_logits(model, np.stack(rows))
            for i, each in enumerate(part):
                found[each.item.line] = _Runs(logits[i], logits[len(part) + i])
            say(f"ran {len(found)} of {len(encoded)} pairs")
    return found


def _with_space(
    model: InterpretableModel, items: Sequence[PromptItem], runs: Mapping[int, _Runs]
) -> tuple[bool, list[str]]:
    """Whether answers and foils are read with a space in front, which none of the file has."""
    if any(text[:1].isspace() for item in items for text in (item.answer, item.foil)):
        return False, []
    votes, example = 0, None
    for item in items:
        run = runs.get(item.line)
        with_space, without = _token(model, f" {item.answer}"), _token(model, item.answer)
        if run is None or with_space == without or item.clean[-1:].isspace():
            continue
        likelier = with_space is not None and (
            without is None or bool(run.clean[with_space] > run.clean[without])
        )
        votes += 1 if likelier else -1
        if likelier and example is None:
            example = item.answer
    if votes <= 0 or example is None:
        return False, []
    return True, [
        f"answers and foils are read with a space in front ({f' {example}'!r} for {example!r}): that is how "
        "the model continues these prompts"
    ]


def _token(model: InterpretableModel, text: str) -> int | None:
    try:
        return model.to_single_token(text)
    except TokenError:
        return None


def _row(model: InterpretableModel, encoded: _Encoded, run: _Runs | None, *, spaced: bool) -> CheckedItem:
    item = encoded.item
    answer, foil = (f" {text}" if spaced else text for text in (item.answer, item.foil))
    reason = encoded.reason
    ids = {}
    for what, text in (("answer", answer), ("foil", foil)):
        token = _token(model, text)
        if token is not None:
            ids[what] = token
        elif not reason:
            reason = _several_tokens(model, what, text)
    if not reason and ids["answer"] == ids["foil"]:
        reason = f"answer {answer!r} and foil {foil!r} are the same token: give two that differ"
    if reason or run is None:
        return CheckedItem(item=item, use="dropped", answer=answer, foil=foil, reason=reason)
    clean, corrupted = (
        float(logits[ids["answer"]] - logits[ids["foil"]]) for logits in (run.clean, run.corrupted)
    )
    problems = []
    if not clean > 0:
        problems.append("after the clean prompt the model prefers the foil")
    if not corrupted < 0:
        problems.append("after the corrupted prompt it prefers the answer")
    if not np.isfinite([clean, corrupted]).all():
        problems = ["the logits are not finite"]
    reason = " and ".join(problems)
    return CheckedItem(
        item=item,
        use="candidate" if problems else "dataset",
        answer=answer,
        foil=foil,
        reason=f"{reason}: ask about something that it knows" if problems else "",
        clean=clean,
        corrupted=corrupted,
        answer_rank=int(metrics.rank(run.clean[None], [ids["answer"]])[0]),
        foil_rank=int(metrics.rank(run.corrupted[None], [ids["foil"]])[0]),
    )


def _several_tokens(model: InterpretableModel, what: str, text: str) -> str:
    try:
        pieces = [model.to_string([int(t)]) for t in model.to_tokens(text)[0]]
    except MlxterpError as problem:
        return f"{what} {text!r} cannot be encoded: {problem}"
    pieces = pieces[1:] if model.prepend_bos and len(pieces) > 1 else pieces
    return (
        f"{what} {text!r} is {len(pieces)} tokens ({'|'.join(pieces)}), and one is measured: choose a word "
        f"of one token, or write its first, {pieces[0]!r}, if that tells answer from foil"
    )


def _one_length(
    rows: Sequence[CheckedItem], lengths: Mapping[int, int]
) -> tuple[list[CheckedItem], int | None]:
    """Only pairs of the token length with the most independent clusters; the others are dropped."""
    groups: dict[int, list[CheckedItem]] = defaultdict(list)
    for row in rows:
        if row.use == "dataset":
            groups[lengths[row.item.line]].append(row)
    if not groups:
        return list(rows), None
    kept = max(groups, key=lambda n: (len(clusters(_pairs(groups[n], "dataset"))), -n))
    return [
        row
        if row.use == "dropped" or lengths[row.item.line] == kept
        else replace(
            row,
            use="dropped",
            reason=f"its prompts have {lengths[row.item.line]} tokens, and the dataset's {kept}, so a "
            f"position means another thing in it: use words with which it has {kept}",
        )
        for row in rows
    ], kept


def _gate(model: InterpretableModel, rows: Sequence[CheckedItem]) -> tuple[str, ...]:
    """What the judge's behaviour gate would lack on the dataset."""
    pairs, unselected = _pairs(rows, "dataset"), _pairs(rows, "dataset", "candidate")
    of_pair = clusters(pairs).of_pair
    if len(set(of_pair)) < 2:
        return ("all pairs are one cluster",)
    cells: GateCells = gate_cells(model, pairs, "logit_diff", unselected)
    both, others, behind = cells.pairs, cells.candidates, cells.prefixed
    assert others is not None, "the candidates hold the pairs"
    found = gate(
        mean_by_cluster(both.gap, of_pair),
        np.concatenate([both.answer_preferred, both.foil_preferred]).astype(float),
        np.concatenate([both.answer_rank, both.foil_rank]).astype(float),
        cells.d_vocab,
        candidates=(others.answer_preferred & others.foil_preferred).astype(float),
        prefixed=None
        if behind is None
        else Prefixed(
            mean_by_cluster(behind.gap, of_pair),
            np.concatenate([behind.answer_preferred, behind.foil_preferred]).astype(float),
        ),
    )
    return found.reasons


def _ends_in_space(items: Sequence[PromptItem]) -> list[str]:
    lines = [str(item.line) for item in items if item.clean[-1:].isspace() or item.corrupted[-1:].isspace()]
    if not lines:
        return []
    shown = ", ".join(lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
    return [
        f"prompts end in a space (line {shown}), which models read as an unfinished word: let the answer "
        "begin with it instead"
    ]
