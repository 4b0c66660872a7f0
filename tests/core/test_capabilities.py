"""The table of what a model can be asked, by library, by program, and by command."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mlxterp.core import capabilities as check
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable
from tests.tiny_models import ByteTokenizer, tiny_module


def test_the_table_says_what_the_model_has_and_why_it_lacks_the_rest():
    model = InterpretableModel(tiny_module("gpt_neox"), ByteTokenizer())

    rows = {row.name: row for row in check.capability_table(model)}

    assert rows["z"] == check.CapabilityRow("z", available=True)
    assert not rows["resid_mid"].available
    assert "in parallel" in rows["resid_mid"].reason
    for row in rows.values():
        if not row.available:
            with pytest.raises(CapabilityUnavailable):
                model.architecture.require(row.name)


def test_the_program_prints_a_line_for_each(capsys):
    assert check.main(["toy-induction"]) == 0

    first, *lines = capsys.readouterr().out.splitlines()
    rows = check.capability_table(InterpretableModel("toy-induction"))
    assert first.startswith("toy-induction: toy, 2 layers, d_model 160, 40 tokens; ")
    assert f"{sum(row.available for row in rows)} of {len(rows)} available" in first
    assert [line.split()[:2] for line in lines] == [
        [row.name, "yes" if row.available else "no"] for row in rows
    ]


def test_a_name_that_nothing_answers_to_ends_with_the_commands_number(capsys):
    assert check.main(["no/such-thing.gguf"]) == check.CANNOT_BE_USED

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("ModelNotFound: ")


def test_the_command_asks_another_process_and_ends_with_its_number(capfd):
    from mlxterp_agent.cli import app

    done = CliRunner().invoke(app, ["models", "check", "toy-induction", "--json"])

    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert done.exit_code == 0
    assert [row["name"] for row in rows] == [
        row.name for row in check.capability_table(InterpretableModel("toy-induction"))
    ]


def test_the_command_gives_an_unknown_model_the_number_for_it(capfd):
    from mlxterp_agent import exit_codes
    from mlxterp_agent.cli import app

    done = CliRunner().invoke(app, ["models", "check", "no/such-thing.gguf"])

    assert done.exit_code == check.CANNOT_BE_USED == exit_codes.PROJECT
    assert "ModelNotFound" in capfd.readouterr().err
