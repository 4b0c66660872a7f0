"""A file of a person's prompt pairs: what is read, and what every mistake says, with its line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxterp.autointerpret import init_autointerpret
from mlxterp.autointerpret.prompt_file import (
    MOST_PAIRS,
    CheckedItem,
    PromptCheck,
    PromptItem,
    read_prompt_file,
)
from mlxterp.errors import PromptFileError, ScaffoldError

HEADER = "clean,corrupted,answer,foil"
TWO = "The capital of France is,The capital of Italy is, Paris, Rome\nA,B, c, d\n"


def written(directory: Path, text: str | bytes, name: str = "pairs.csv") -> Path:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\n{TWO}",
        f"\ufeff{HEADER}\n{TWO}",
        f"{HEADER}\n{TWO}".replace("\n", "\r\n"),
        '"clean","corrupted","answer","foil"\n"The capital of France is","The capital of Italy is"," Paris",'
        '" Rome"\n\n"A","B"," c"," d"\n',
        " Foil ,ANSWER,clean,corrupted\n Rome, Paris,The capital of France is,The capital of Italy is\n"
        " d, c,A,B",
    ],
    ids=["plain", "byte order mark", "Windows", "quoted", "other order"],
)
def test_what_spreadsheets_write_is_read(tmp_path, text):
    found = read_prompt_file(written(tmp_path, text))

    assert [(i.clean, i.corrupted, i.answer, i.foil) for i in found.items] == [
        ("The capital of France is", "The capital of Italy is", " Paris", " Rome"),
        ("A", "B", " c", " d"),
    ]


def test_json_lines_hold_the_same_and_null_is_no_cluster(tmp_path):
    row = {"clean": "A", "corrupted": "B", "answer": " c", "foil": " d"}
    lines = [{**row, "cluster": "x", "slice": "s"}, {**row, "clean": "C", "cluster": None}]

    found = read_prompt_file(written(tmp_path, "\n".join(map(json.dumps, lines)), "pairs.jsonl"))

    assert found.items == (
        PromptItem(1, "A", "B", " c", " d", "x", "s"),
        PromptItem(2, "C", "B", " c", " d"),
    )


@pytest.mark.parametrize(
    ("template", "clean", "prompt"),
    [
        ("The capital of {} is", "France", "The capital of France is"),
        ("The capital of {} is", "The capital of France is", "The capital of France is"),
        ("plain", "The capital of France is", "The capital of France is"),
        ("{}", "France", "France"),
    ],
    ids=["filled", "filled already", "a name", "only a place"],
)
def test_a_template_makes_prompts_or_names_their_form(tmp_path, template, clean, prompt):
    other = clean.replace("France", "Italy")
    text = f"{HEADER},template\n{clean},{other}, Paris, Rome,{template}\n{clean},{other}, x, y,{template}\n"

    item = read_prompt_file(written(tmp_path, text)).items[0]

    assert (item.clean, item.corrupted, item.slice) == (prompt, prompt.replace("France", "Italy"), template)


def test_a_column_that_is_not_read_is_named(tmp_path):
    found = read_prompt_file(written(tmp_path, f"{HEADER},clsuter\nA,B,c,d,1\nC,D,e,f,2\n"))

    assert found.notes == ("'clsuter' is no column that is read, and was left out",)


LONG = f"{HEADER}\n" + "".join(f"A{i},B{i},c,d\n" for i in range(MOST_PAIRS + 1))
MILLION = f"{HEADER}\n" + "The capital of France is,The,x,y\n" * 1_000_000


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (TWO, "a.csv", ["line 1: a header is needed", "'The capital of France is'", HEADER]),
        (f"clean,corrupted,answer\n{TWO}", "a.csv", ["line 1", "no column foil", "cluster, template, slice"]),
        (f"{HEADER};x".replace(",", ";"), "a.csv", ["line 1", "Separate the columns by commas"]),
        (f"{HEADER},clean\nA,B,c,d,e", "a.csv", ["line 1", "a column twice"]),
        ("", "a.csv", ["line 1: the file is empty", HEADER]),
        (HEADER, "a.csv", ["line 1: the file holds no pair"]),
        (f"{HEADER}\n\nA,B,c,d\n", "a.csv", ["line 3: the file holds one pair, on line 3", "24 independent"]),
        (f"{HEADER}\n{TWO}A,B, c, d\n", "a.csv", ["line 4 is the pair of line 3 again"]),
        (f"{HEADER}\n{TWO}A,,c,d\n", "a.csv", ["line 4: corrupted is empty"]),
        (f"{HEADER}\nyes, he said,B,c,d\n", "a.csv", ["line 2 has 5 values", "quotation marks"]),
        (f'{HEADER}\nA,B,c,d\n"A,B,c,d\n', "a.csv", ["line 3", "Close every quotation mark"]),
        (f"{HEADER}\n{TWO}".encode() + b"caf\xe9,B,c,d\n", "a.csv", ["line 4", "not UTF-8"]),
        (f"{HEADER}\n{TWO}".encode("utf-16"), "a.csv", ["line 1", "not UTF-8", "Save the file as UTF-8"]),
        (LONG, "a.csv", [f"line {MOST_PAIRS + 2}", "more than 1,000 pairs"]),
        (MILLION, "a.csv", ["after line", "at most 1,000 pairs"]),
        ('[{"clean": "A"}]', "a.jsonl", ["line 1", "an object is needed"]),
        ('{"clean": "A", "corrupted": "B"}', "a.jsonl", ["line 1 has no answer and no foil"]),
        ('\n{"clean": 1, "corrupted": "B", "answer": "c", "foil": "d"}', "a.jsonl", ["line 2: clean is 1"]),
        ('{"clean": "A"', "a.jsonl", ["line 1: it is not JSON"]),
        (f"{HEADER},template\nA,B,c,d,{{}} and {{}}\n", "a.csv", ["line 2", "more than one {}"]),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line_and_what_to_do(tmp_path, text, name, said):
    path = written(tmp_path, text, name)

    with pytest.raises(PromptFileError) as refused:
        read_prompt_file(path)

    message = str(refused.value)
    assert message.startswith(str(path))
    assert [each for each in said if each not in message] == []
    assert message.count(". ") >= 1


def test_what_is_no_file_is_said(tmp_path):
    with pytest.raises(PromptFileError, match="there is no such file"):
        read_prompt_file(tmp_path / "nothing.csv")
    with pytest.raises(PromptFileError, match="no regular file"):
        read_prompt_file(tmp_path)


@given(rows=st.lists(st.tuples(*[st.text(min_size=1)] * 4), min_size=2, max_size=4, unique=True))
def test_whatever_a_csv_writer_writes_is_read_back_or_refused_by_name(tmp_path_factory, rows):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([HEADER.split(","), *rows])
    path = tmp_path_factory.mktemp("csv") / "pairs.csv"
    try:
        path.write_text(out.getvalue(), encoding="utf-8", newline="")
    except UnicodeEncodeError:
        return

    try:
        found = read_prompt_file(path)
    except PromptFileError:
        return

    assert [(i.clean, i.corrupted, i.answer, i.foil) for i in found.items] == rows


def checked(*rows: CheckedItem, **more: object) -> PromptCheck:
    fields: dict[str, object] = {"n_clusters": len(rows), "n_tokens": 3, "gate": (), **more}
    return PromptCheck(name="pairs.csv", model="toy-induction", rows=rows, **fields)  # type: ignore[arg-type]


def row(line: int, use: str = "dataset", **more: object) -> CheckedItem:
    item = PromptItem(
        line, f'clean {line} {{{{ 7 * 7 }}}} """ \' \n', f"corrupted {line}", "x", "y", "c", "s"
    )
    return CheckedItem(item=item, use=use, answer=" x", foil=" y", **more)  # type: ignore[arg-type]


def test_a_check_survives_json():
    check = checked(row(2, clean=1.5, corrupted=-2.0, answer_rank=1, foil_rank=3), row(3, "dropped"))

    assert PromptCheck.from_dict(json.loads(json.dumps(check.to_dict()))) == check


def test_setup_py_holds_the_pairs_as_data_and_the_unselected_ones_as_candidates(tmp_path):
    check = checked(row(2), row(3), row(4, "candidate"), row(5, "dropped"))

    path = init_autointerpret(tmp_path / "p", research_question="Why?", prompts=check)

    source = (path / "setup.py").read_text().replace("InterpretableModel(MODEL_NAME)", "None")
    setup: dict[str, object] = {}
    exec(compile(source, "setup.py", "exec"), setup)
    assert [(p.clean, p.answer, p.cluster, p.slice, p.name) for p in setup["dataset"]] == [
        (each.item.clean, " x", "c", "s", f"line {each.item.line}") for each in check.rows[:2]
    ]
    assert [p.name for p in setup["candidates"]] == ["line 2", "line 3", "line 4"]
    assert setup["MODEL_NAME"] == "toy-induction"


def test_only_what_was_checked_is_written_and_not_beside_another_scaffolds_pairs(tmp_path):
    with pytest.raises(ScaffoldError, match="check_prompts"):
        init_autointerpret(tmp_path / "p", prompts="pairs.csv")  # type: ignore[arg-type]
    with pytest.raises(ScaffoldError, match="'generic'"):
        init_autointerpret(tmp_path / "p", scaffold="induction", prompts=checked(row(2), row(3)))
    assert not (tmp_path / "p").exists()


def test_the_summary_says_how_many_pairs_are_missing_for_a_decision():
    assert "22 more are needed" in checked(row(2), row(3)).summary()
    assert "more are needed" not in checked(*map(row, range(24))).summary()


def test_the_table_shows_what_is_not_used_first_and_why():
    lines = checked(row(2), row(3, "dropped", reason="it is of another length")).table().splitlines()

    assert lines[1].split()[0] == "3"
    assert lines[2].strip() == "dropped: it is of another length"
