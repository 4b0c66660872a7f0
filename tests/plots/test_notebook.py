"""What a notebook shows when a result, its figure, a trace or a model is a cell's last line."""

from __future__ import annotations

import pytest

from mlxterp.core.model import InterpretableModel
from tests.results.every_kind import EXAMPLES, patching


@pytest.fixture(scope="module")
def toy() -> InterpretableModel:
    return InterpretableModel("toy-induction")


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_a_result_is_three_short_lines(kind):
    lines = repr(EXAMPLES[kind]()).splitlines()

    assert len(lines) == 3
    assert max(map(len, lines)) <= 165
    assert type(EXAMPLES[kind]()).__name__ in lines[0]


def test_a_results_lines_name_its_strongest_component():
    result = patching()

    assert f"strongest: {result.top_components(1)[0].label} " in repr(result)


def test_a_figure_carries_its_picture():
    assert patching().plot()._repr_png_().startswith(b"\x89PNG")


def test_a_trace_is_three_lines_and_a_table(toy):
    trace = toy.trace(["cat dog cat", "bird dog"], capture=["z"])

    lines, html = repr(trace).splitlines(), trace._repr_html_()

    assert lines[0] == "Trace: 2 rows of 2 and 3 tokens, logits (2, 3, 40)"
    assert "L0.z (2, 3, 4, 40), L1.z (2, 3, 4, 40)" in lines[1]
    assert len(lines) == 3
    assert html.count("<table>") == 2
    assert "L1.z" in html
    assert ">bird<" in html


def test_text_in_a_traces_view_is_text(toy):
    class Hostile:
        bos_token_id = None

        def encode(self, text):
            return [1, 2]

        def decode(self, ids):
            return "<script>alert(1)</script>" * len(ids)

    model = InterpretableModel(toy.model, Hostile())

    assert "<script" not in model.trace("x")._repr_html_()


def test_a_trace_of_a_model_without_a_tokenizer_has_a_view(toy):
    assert "<table>" in InterpretableModel(toy.model).trace([1, 2])._repr_html_()


def test_a_models_view_has_every_hook_point_with_what_limits_it(toy):
    html = toy._repr_html_()

    assert "a block has no MLP" in html
    assert "resid_post" in html


@pytest.mark.slow
def test_a_notebook_shows_the_picture_of_a_plot_in_its_last_line():
    nbformat = pytest.importorskip("nbformat", reason="install the extra `dev` to run this")
    nbclient = pytest.importorskip("nbclient", reason="install the extra `dev` to run this")
    cell = nbformat.v4.new_code_cell(
        "from mlxterp import InterpretableModel\n"
        "from mlxterp.causal import activation_patching\n"
        "model = InterpretableModel('toy-induction')\n"
        "result = activation_patching(model, 'cat dog cat', 'bird dog cat', answer='dog', foil='cat')\n"
        "result.plot()"
    )
    views = nbformat.v4.new_code_cell("model.trace('cat dog cat')")

    done = nbclient.NotebookClient(nbformat.v4.new_notebook(cells=[cell, views])).execute()

    assert [list(each.outputs[-1]["data"]) for each in done.cells] == [
        ["text/plain", "image/png"],
        ["text/plain", "text/html"],
    ]
