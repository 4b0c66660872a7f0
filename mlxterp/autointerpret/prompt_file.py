"""A person's prompt pairs: the file they come in, and what a check of them with a model found.

Lives here: reading CSV and JSON lines with the line of every mistake, the table of a check. Does not live
here: the check itself, which runs a model (`mlxterp.workflows.check_prompts`); the setup.py that is written
from it (`scaffold.py`). No mlx.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlxterp.autointerpret.encoding import LineError, decode_object
from mlxterp.errors import PromptFileError
from mlxterp.statistics.decisions import CLUSTERS_NEEDED
from mlxterp.text import visible

REQUIRED = ("clean", "corrupted", "answer", "foil")
OPTIONAL = ("cluster", "template", "slice")
MOST_PAIRS = 1000
"""A run explores 24 clusters and decides on 48 more, so that further pairs would only cost time."""
_MOST_BYTES = 8_000_000
_EXAMPLE = "clean,corrupted,answer,foil"


@dataclass(frozen=True)
class PromptItem:
    """One pair of a file.

    Attributes:
        line: where it begins in the file, from 1.
        clean, corrupted: whole prompts, a template's place filled.
        answer, foil: as the file has them.
        cluster: pairs with the same one are one piece of evidence; None stands for pairs that share a prompt.
        slice: the form of the sentence; the sign of an effect must hold in each.
    """

    line: int
    clean: str
    corrupted: str
    answer: str
    foil: str
    cluster: str | None = None
    slice: str | None = None


class PromptFile(NamedTuple):
    """The pairs of a file in its order, and what was noticed while reading it."""

    name: str
    items: tuple[PromptItem, ...]
    notes: tuple[str, ...] = ()


def read_prompt_file(path: str | Path) -> PromptFile:
    """The prompt pairs of a CSV file with a header, or of a file with one JSON object a line.

    Each has clean, corrupted, answer and foil; cluster, template and slice are optional. A template with one
    `{}` makes the prompts, from `clean` and `corrupted` as what is put there; any other is the name of the
    sentence's form. UTF-8, with or without a byte order mark; lines may end as Windows ends them.

    Raises:
        PromptFileError: with the line of the first thing that cannot be read: no header, a missing column or
            value, an open quotation mark, a pair twice, another encoding, fewer than two pairs, or more than
            `MOST_PAIRS`.
    """
    if not isinstance(path, str | os.PathLike):
        raise PromptFileError(
            f"prompts are {path!r}: the path of a file is expected. Give a CSV file that begins with "
            f"{_EXAMPLE}, or one JSON object a line."
        )
    file = Path(path)
    text = _text_of(file)
    as_json = file.suffix.lower() in (".jsonl", ".ndjson", ".json") or (
        file.suffix.lower() != ".csv" and text.lstrip().startswith("{")
    )
    unread: list[str] = []
    items: list[PromptItem] = []
    first: dict[tuple[str, ...], int] = {}
    for line, row in _json_rows(file, text, unread) if as_json else _csv_rows(file, text, unread):
        if len(items) == MOST_PAIRS:
            raise PromptFileError(
                f"{file}, line {line}: there are more than {MOST_PAIRS:,} pairs. An investigation explores "
                "24 independent clusters and decides on 48 others: leave the pairs that you trust most."
            )
        item = _item(file, line, row)
        key = (item.clean, item.corrupted, item.answer, item.foil)
        if key in first:
            raise PromptFileError(
                f"{file}, line {line} is the pair of line {first[key]} again. A pair counts once: remove one "
                "of the two."
            )
        first[key] = line
        items.append(item)
    if len(items) < 2:
        found = "no pair" if not items else f"one pair, on line {items[0].line}"
        raise PromptFileError(
            f"{file}, line {items[0].line if items else 1}: the file holds {found}. A behaviour is explored "
            f"on two pairs at least, and declared claims are decided from {CLUSTERS_NEEDED} independent ones "
            "on: add more."
        )
    notes = [f"{name!r} is no column that is read, and was left out" for name in dict.fromkeys(unread)]
    return PromptFile(file.name, tuple(items), tuple(notes))


def _text_of(file: Path) -> str:
    if not file.is_file():
        there = "it is no regular file" if file.exists() else "there is no such file"
        raise PromptFileError(
            f"{file} cannot be read as prompt pairs: {there}. Give a CSV file that begins with {_EXAMPLE}, "
            "or one JSON object a line."
        )
    size = file.stat().st_size
    if size > _MOST_BYTES:
        with file.open("rb") as opened:
            lines = opened.read(_MOST_BYTES).count(b"\n")
        raise PromptFileError(
            f"{file} has {size / 1e6:,.0f} MB, and after line {lines:,} it is longer than can be used: at "
            f"most {MOST_PAIRS:,} pairs are read. Leave the pairs that you trust most."
        )
    try:
        data = file.read_bytes()
    except OSError as problem:
        raise PromptFileError(
            f"{file} cannot be read: {problem.strerror}. Give a file that you may read."
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise PromptFileError(
            f"{file}, line {line}: byte {problem.start + 1} of the file is not UTF-8. Save the file as UTF-8."
        ) from None
    if not text.strip():
        raise PromptFileError(
            f"{file}, line 1: the file is empty. Begin it with {_EXAMPLE}, or write one JSON object a line."
        )
    return text


def _csv_rows(file: Path, text: str, unread: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    began = 1
    try:
        for cells in reader:
            line, began = began, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(file, line, cells)
                unread += [name for name in header if name not in REQUIRED + OPTIONAL]
                continue
            if len(cells) != len(header):
                raise PromptFileError(
                    f"{file}, line {line} has {len(cells)} values, and the header names {len(header)} "
                    "columns. Give one value for each, and put a prompt with a comma in quotation marks."
                )
            yield line, dict(zip(header, cells, strict=True))
    except csv.Error as problem:
        raise PromptFileError(
            f"{file}, line {began}: {problem}. Close every quotation mark, and write one inside a quoted "
            'value twice: "He said ""yes"" and".'
        ) from None


def _header(file: Path, line: int, cells: Sequence[str]) -> list[str]:
    names = [cell.strip().lower() for cell in cells]
    missing = [name for name in REQUIRED if name not in names]
    if not missing and len(set(names)) == len(names):
        return names
    shown = ", ".join(repr(visible(cell)[:40]) for cell in cells[:6])
    if not missing:
        raise PromptFileError(
            f"{file}, line {line}: the header {shown} names a column twice. Name each column once."
        )
    if len(missing) == len(REQUIRED):
        separated = " Separate the columns by commas." if len(cells) == 1 and "clean" in names[0] else ""
        raise PromptFileError(
            f"{file}, line {line}: a header is needed, and this line holds {shown}. Make the first line "
            f"{_EXAMPLE}.{separated}"
        )
    raise PromptFileError(
        f"{file}, line {line}: the header has no column {' and no column '.join(missing)}; it has {shown}. "
        f"Needed are {', '.join(REQUIRED)}; {', '.join(OPTIONAL)} are optional."
    )


def _json_rows(file: Path, text: str, unread: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            row = decode_object(written.encode())
        except LineError as problem:
            raise PromptFileError(
                f"{file}, line {line}: {problem}. Write one JSON object a line, such as "
                '{"clean": "…", "corrupted": "…", "answer": " Paris", "foil": " Rome"}.'
            ) from None
        for name, value in row.items():
            if name not in REQUIRED + OPTIONAL:
                unread.append(visible(name)[:40])
            elif not isinstance(value, str) and not (value is None and name in OPTIONAL):
                raise PromptFileError(
                    f"{file}, line {line}: {name} is {json.dumps(value)[:60]}, and a text is needed. Write "
                    "it in quotation marks."
                )
        missing = [name for name in REQUIRED if name not in row]
        if missing:
            raise PromptFileError(
                f"{file}, line {line} has no {' and no '.join(missing)}; it has "
                f"{', '.join(visible(name)[:40] for name in row) or 'nothing'}. Needed are "
                f"{', '.join(REQUIRED)}; {', '.join(OPTIONAL)} are optional."
            )
        yield line, row


def _item(file: Path, line: int, row: Mapping[str, Any]) -> PromptItem:
    empty = [name for name in REQUIRED if not str(row[name]).strip()]
    if empty:
        raise PromptFileError(
            f"{file}, line {line}: {' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty. Give "
            "every pair both prompts, an answer and a foil."
        )
    clean, corrupted = str(row["clean"]), str(row["corrupted"])
    template = row.get("template") or None
    before, place, after = (template or "").partition("{}")
    filled = all(each.startswith(before) and each.endswith(after) for each in (clean, corrupted))
    if place and not ((before or after) and filled):
        if "{}" in after:
            raise PromptFileError(
                f"{file}, line {line}: the template {template!r} has more than one {{}}. Give it one place, "
                "which clean and corrupted fill."
            )
        clean, corrupted = before + clean + after, before + corrupted + after
    return PromptItem(
        line,
        clean,
        corrupted,
        str(row["answer"]),
        str(row["foil"]),
        row.get("cluster") or None,
        row.get("slice") or template,
    )


Use = Literal["dataset", "candidate", "dropped"]


@dataclass(frozen=True, kw_only=True)
class CheckedItem:
    """What a model does with one pair.

    Attributes:
        use: "dataset" is explored and decided on; a "candidate" can be measured, but the model does not show
            the behaviour on it; "dropped" cannot be measured beside the others.
        answer, foil: as they are measured, perhaps with a space in front that the file has not.
        reason: why it is not in the dataset, and what to change; "" if it is.
        clean, corrupted: logit of the answer minus that of the foil, after each prompt; None if not measured.
        answer_rank, foil_rank: their places after their own prompts, 1 the first.
    """

    item: PromptItem
    use: Use
    answer: str
    foil: str
    reason: str = ""
    clean: float | None = None
    corrupted: float | None = None
    answer_rank: int | None = None
    foil_rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class PromptCheck:
    """A file of prompt pairs, checked with a model: what setup.py is written from.

    Attributes:
        n_clusters: independent clusters of the dataset.
        n_tokens: of each of its prompts.
        gate: what the behaviour gate lacks, in sentences; empty if it passes.
        notes: what was noticed about the file as a whole.
    """

    name: str
    model: str
    rows: tuple[CheckedItem, ...]
    n_clusters: int
    n_tokens: int | None
    gate: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def used_as(self, *uses: Use) -> tuple[CheckedItem, ...]:
        """The pairs of these uses, in the file's order."""
        return tuple(row for row in self.rows if row.use in uses)

    def summary(self) -> str:
        """How many pairs count, how many independent clusters they are, what is missing, what to change."""
        n, used, candidates = len(self.rows), self.used_as("dataset"), self.used_as("candidate")
        dropped = self.used_as("dropped")
        lines = [f"{visible(self.name)}: {n} pairs, checked with {self.model}"]
        lengths = f" of {self.n_tokens} tokens" if self.n_tokens is not None else ""
        lines.append(
            f"  {len(used)} used: the model prefers the answer after the clean prompt and the foil after the "
            f"corrupted one; {_clusters(self.n_clusters)}{lengths}"
        )
        if candidates:
            lines.append(f"  {len(candidates)} on which the model does not do it; they count against it")
        if dropped:
            lines.append(f"  {len(dropped)} dropped: they cannot be measured beside the others")
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  no behaviour to explain: {reason}" for reason in self.gate]
        if self.gate:
            lines.append(
                "  As they are, every declared claim would end as invalid:instrument. Use prompts on which "
                "the model shows the behaviour, or another model."
            )
        if self.n_clusters < CLUSTERS_NEEDED:
            lines.append(
                f"  {CLUSTERS_NEEDED} independent clusters are the least on which a declared claim is "
                f"decided: {CLUSTERS_NEEDED - self.n_clusters} more are needed. Until then a run explores, "
                "and decides nothing."
            )
        return "\n".join(lines)

    def table(self, *, most: int = 120) -> str:
        """One line for each pair, those that are not used first, at most this many."""
        order = sorted(self.rows, key=lambda row: (row.use == "dataset", row.item.line))
        lines = [f"{'line':>6}  {'clean':>6}  {'corr.':>6}  {'rank':>9}  pair"]
        for row in order[:most]:
            ranks = "" if row.answer_rank is None else f"{row.answer_rank}/{row.foil_rank}"
            pair = f"{_cut(row.item.clean, 44)} →{_cut(row.answer, 14)} |{_cut(row.foil, 14)}"
            why = f"\n{'':35}{row.use}: {visible(row.reason)}" if row.reason else ""
            lines.append(
                f"{row.item.line:>6}  {_signed(row.clean)}  {_signed(row.corrupted)}  {ranks:>9}  {pair}{why}"
            )
        if len(order) > most:
            lines.append(f"        … and {len(order) - most} more")
        lines.append(
            "clean, corr.: logit of the answer minus that of the foil after each prompt; rank: of the answer "
            "after the clean prompt, of the foil after the corrupted one"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> PromptCheck:
        """The inverse of `to_dict`."""
        rows = tuple(CheckedItem(**{**row, "item": PromptItem(**row["item"])}) for row in values["rows"])
        others = {each.name: values[each.name] for each in fields(PromptCheck) if each.name != "rows"}
        return PromptCheck(
            rows=rows, **{**others, "gate": tuple(others["gate"]), "notes": tuple(others["notes"])}
        )


def _clusters(n: int) -> str:
    return f"{n} independent cluster{'s' * (n != 1)}"


def _signed(value: float | None) -> str:
    return f"{'' if value is None else f'{value:+.1f}':>6}"


def _cut(text: str, most: int) -> str:
    text = " ".join(visible(text).split("\n"))
    return text if len(text) <= most else f"…{text[1 - most :]}"
