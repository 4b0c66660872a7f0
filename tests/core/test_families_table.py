"""The table of architectures is what its command writes, and nothing in it is silently wrong."""

from __future__ import annotations

import pytest

from tests import families_table


@pytest.mark.slow
def test_the_table_of_families_is_what_the_command_writes_and_nothing_is_silently_wrong():
    rows = families_table.all_rows()

    assert [(row.name, row.wrong) for row in rows if row.wrong] == []
    assert families_table.page(rows) == families_table.PAGE.read_text(encoding="utf-8"), (
        "docs/reference/families.md is older than the code: run `python -m tests.families_table`"
    )


@pytest.mark.parametrize("name", ["talkie", "gemma4_text", "qwen3_next", "lfm2", "afm7"])
def test_what_an_unusual_architecture_is_said_to_have_is_right(name):
    pytest.importorskip(f"mlx_lm.models.{name}", reason="this mlx-lm does not have the architecture")
    row = families_table.row_of(name)

    assert row.verdict == "partly"
    assert row.wrong == ()


def test_a_stream_that_is_cut_before_the_last_block_is_not_read_as_a_whole():
    from mlxterp.core.model import InterpretableModel
    from tests.small_models import small_module

    model = InterpretableModel(small_module("afm7"))  # two lists of blocks, of which one is read

    assert not model.capabilities["resid_post"].available
    assert not model.capabilities["decomposed"].available
