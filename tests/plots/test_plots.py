"""Figures: drawn without global state, readable as text, safe to put into a page."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from mlxterp import plots
from mlxterp.results import Bars
from mlxterp.results.views import Component, describe, heatmap
from mlxterp.results.views import bars as bars_of

HOSTILE = [
    "<script>alert(1)</script>",
    "</svg><img src=x onerror=alert(1)>",
    "$x^2$",
    r"$\frac{",
    "a\x00b\x1b[31m\u202eevil",
    "-->",
    "]]>",
    "&amp;\"'",
    "漢字🙂",
    "\ud800",
]
PNG = b"\x89PNG\r\n\x1a\n"


def a_heatmap(n_rows=3, n_columns=4, **changes):
    values = (
        np.arange(n_rows * n_columns, dtype=float).reshape(n_rows, n_columns) / (n_rows * n_columns) - 0.3
    )
    given = {
        "title": "Recovery",
        "rows": ("position", [f"p{i}" for i in range(n_rows)]),
        "columns": ("layer", [f"L{i}" for i in range(n_columns)]),
        "unit": "recovery",
    }
    return heatmap(values, **(given | changes))


def bars(**changes):
    given = {
        "title": "Heads",
        "labels": ("L9.H6", "L1.H1", "L3.mlp_out"),
        "values": (0.4, -0.1, 0.02),
        "unit": "logits",
    }
    return Bars(**(given | changes))


def texts(svg):
    return [
        "".join(element.itertext())
        for element in ElementTree.fromstring(svg).iter()
        if element.tag.endswith("}text")
    ]


def titles(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}title")]


def test_every_label_of_a_small_heatmap_is_text_in_the_svg():
    found = texts(plots.svg(a_heatmap()))

    assert {"p0", "p1", "p2", "L0", "L1", "L2", "L3", "layer", "position", "recovery"} <= set(found)


def test_every_cell_tells_its_place_and_value_on_hover():
    found = titles(plots.svg(a_heatmap()))

    assert len(found) == 12
    assert found[0] == "layer L0, position p0: −0.3"
    assert found[-1] == "layer L3, position p2: 0.617"


def test_every_bar_tells_its_value_on_hover():
    assert titles(plots.svg(bars())) == ["L9.H6: 0.4", "L1.H1: −0.1", "L3.mlp_out: 0.02"]


@pytest.mark.parametrize(
    "show",
    [
        a_heatmap(
            len(HOSTILE),
            4,
            rows=(HOSTILE[0], HOSTILE),
            columns=(HOSTILE[2], HOSTILE[:4]),
            unit=HOSTILE[3],
            title=HOSTILE[1],
        ),
        bars(labels=tuple(HOSTILE), values=(0.1,) * len(HOSTILE), unit=HOSTILE[3], title=HOSTILE[1]),
        bars(
            labels=tuple(HOSTILE),
            values=(0.1,) * len(HOSTILE),
            unit=HOSTILE[3],
            axis=HOSTILE[5],
            ordered=True,
        ),
        bars(unit=HOSTILE[4], references=((0.1, HOSTILE[0]), (0.2, HOSTILE[2]))),
    ],
    ids=["heatmap", "ranking", "columns", "references"],
)
def test_hostile_text_is_shown_as_text(show):
    svg = plots.svg(show)

    elements = list(ElementTree.fromstring(svg).iter())
    assert {each.tag.split("}")[1] for each in elements} <= {
        "svg",
        "g",
        "path",
        "text",
        "title",
        "rect",
        "defs",
        "pattern",
    }
    assert not [name for each in elements for name in each.attrib if name.startswith("on") or "href" in name]
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", svg)
    assert plots.png(show, dpi=40).startswith(PNG)


def test_mathematics_in_a_token_is_not_typeset():
    assert "$x^2$" in texts(plots.svg(bars(labels=("$x^2$", "b", "c"))))


def test_the_svg_takes_its_text_colour_from_the_page_and_loads_nothing():
    svg = plots.svg(a_heatmap())

    assert "currentColor" in svg
    assert plots.axes.INK not in svg
    assert not re.search(r"https?://(?!www\.w3\.org)", svg)
    assert "<style" not in svg
    assert "<!--" not in svg


def test_the_same_show_gives_the_same_bytes():
    assert plots.svg(a_heatmap()) == plots.svg(a_heatmap())


def test_the_figure_carries_its_alternative_text_with_the_strongest_numbers():
    show = a_heatmap()

    root = ElementTree.fromstring(plots.svg(show))

    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == plots.alt_text(show)
    assert "3 positions by 4 layers" in plots.alt_text(show)
    assert "L3 position p2: 0.617" in plots.alt_text(show)


def test_bars_are_described_by_their_largest_values():
    assert (
        plots.alt_text(bars())
        == "Bars of logits, 3 in all. Largest: L9.H6: 0.4; L1.H1: -0.1; L3.mlp_out: 0.02."
    )


def opacity(svg, place):
    cell = re.search(rf"<path ([^>]*)><title>[^<]*{re.escape(place)}[^<]*</title></path>", svg)
    assert cell
    match = re.search(r'fill-opacity="([\d.]+)"', cell[1])
    empty = 'fill="none"' in cell[1]
    return ("2b78d0" in cell[1], 0.0 if empty else float(match[1]) if match else 1.0)


def test_colour_says_the_sign_and_opacity_the_size():
    show = heatmap(
        np.array([[1.0, -1.0, 0.5, 0.0]]),
        title="t",
        rows=("r", ["a"]),
        columns=("c", ["w", "x", "y", "z"]),
        unit="u",
    )

    svg = plots.svg(show)

    assert opacity(svg, "c w") == (True, 1.0)
    assert opacity(svg, "c x") == (False, 1.0)
    assert opacity(svg, "c y") == (True, 0.5)
    assert opacity(svg, "c z")[1] == 0.0


def test_a_missing_value_is_hatched_and_named():
    show = heatmap(
        np.array([[1.0, math.nan]]), title="t", rows=("r", ["a"]), columns=("c", ["x", "y"]), unit="u"
    )

    svg = plots.svg(show)

    assert "c y, r a: n/a" in titles(svg)
    assert "<pattern" in svg


@pytest.mark.parametrize(
    "show",
    [
        a_heatmap(1, 1),
        heatmap(np.zeros((2, 2)), title="zeros", rows=("r", ["a", "b"]), columns=("c", ["x", "y"]), unit="u"),
        heatmap(
            np.full((2, 2), math.nan),
            title="none",
            rows=("r", ["a", "b"]),
            columns=("c", ["x", "y"]),
            unit="u",
        ),
        heatmap(np.zeros((0, 0)), title="empty", rows=("r", []), columns=("c", []), unit="u"),
        bars(labels=(), values=()),
        bars(labels=(), values=(), ordered=True),
        bars(values=(math.nan, math.inf, 0.1)),
        bars(values=(math.nan, math.inf, 0.1), ordered=True),
        bars(values=(0.0, 0.0, 0.0)),
        bars(values=(1e-9, 2e-9, 0.0)),
        bars(intervals=((0.3, 0.5), (-0.2, 0.0), (math.nan, math.nan))),
    ],
    ids=lambda show: f"{type(show).__name__}-{show.title}",
)
def test_a_degenerate_show_is_drawn_without_an_error(show):
    assert plots.png(show, dpi=30).startswith(PNG)
    assert plots.svg(show).startswith("<svg")


def test_a_large_matrix_is_a_picture_of_bounded_size():
    show = a_heatmap(200, 300)

    svg = plots.svg(show)

    assert len(svg) < 600_000
    assert set(re.findall(r'href="(.{22})', svg)) == {"data:image/png;base64,"}
    assert plots.png(show, dpi=60).startswith(PNG)


def test_a_ranking_of_thousands_draws_the_largest_and_stays_drawable():
    show = bars(labels=tuple(f"h{i}" for i in range(5000)), values=tuple(float(i) for i in range(5000)))

    svg = plots.svg(show)

    assert "h4999: 4,999" in titles(svg)
    assert len(titles(svg)) == 60


def test_drawing_changes_no_setting_and_never_loads_pyplot():
    code = (
        "import sys, matplotlib; from mlxterp import plots; from mlxterp.results import Bars;"
        "read = lambda: [matplotlib.rcParams[k] for k in sorted(matplotlib.rcParams) if k != 'backend'];"
        "before = read();"
        "plots.png(Bars(title='t', labels=('a',), values=(1.0,), unit='u'));"
        "print(read() == before, 'matplotlib.pyplot' in sys.modules)"
    )

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert told.split() == ["True", "False"]


def test_a_users_style_does_not_reach_the_figure():
    plain = plots.svg(bars())

    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        styled = plots.svg(bars())

    assert styled == plain


def test_a_figure_of_several_shows_holds_all_of_them_with_their_titles():
    figure = plots.figure([a_heatmap(), bars(title="Second")], title="Both")

    written = [text.get_text() for text in figure.texts]

    assert written == ["Both", "Recovery", "Second"]


def _map_of(values):
    rows, columns = (tuple(f"{i}" for i in range(n)) for n in values.shape)
    return heatmap(values, title="t", rows=("row", rows), columns=("column", columns), unit="u")


def test_cells_that_tie_with_an_outlined_one_are_outlined_too():
    values = np.zeros((3, 4))
    values[0, 0], values[1, 1], values[2, 2], values[0, 3], values[1, 3] = 1.0, 0.5, 0.5, 0.4999, 0.4

    assert set(_map_of(values).marks) == {(0, 0), (1, 1), (2, 2), (0, 3)}


def test_where_too_many_cells_tie_none_of_them_is_outlined_and_their_number_is_said():
    values = np.full((4, 5), 0.5)
    values[2, 2] = 1.0

    shown = _map_of(values)

    assert shown.marks == ((2, 2),)
    assert shown.reading == "Not outlined: 19 cells that are as strong as each other."


def _bars_of(*effects, **options):
    return bars_of(
        [Component(f"c{i}", effect) for i, effect in enumerate(effects)], title="t", unit="u", **options
    )


def test_grey_bars_are_explained_and_bars_that_tie_have_one_colour():
    shown = _bars_of(3.0, 2.0, 1.0, 1.0, 0.5)

    assert shown.accented == (0, 1, 2, 3)
    assert shown.reading == "Grey: the weaker ones."
    assert _bars_of(3.0, 2.0, accented=[1], grey="random sets").reading == "Grey: random sets."
    assert _bars_of(3.0, 2.0).reading == ""


def test_a_ranking_is_not_filled_up_with_zeros_and_says_how_many_there_are():
    shown = _bars_of(10.0, 1e-9, 0.0, zeros=False)

    assert shown.labels == ("c0",)
    assert shown.reading == "Not drawn: 2 that are 0 beside these."
    assert _bars_of(0.0, 0.0, zeros=False).labels == ("c0", "c1")
    assert _bars_of(1.0, 0.0).labels == ("c0", "c1")


@pytest.mark.parametrize(
    "show",
    [
        _bars_of(*range(1, 9)),
        bars_of([Component("a label of some length", 1.0)], title="t", unit="u"),
        _map_of(np.eye(9)),
    ],
)
def test_a_figure_that_needs_little_room_fits_a_telephone(show):
    style = re.search(r'style="max-width: (\d+)px; min-width: (\d+)px"', plots.svg(show))

    assert int(style[2]) <= 368 < int(style[1])


def test_a_description_of_many_cells_that_tie_stays_short():
    values = np.zeros((4, 4))
    values[:3, :] = 1.0

    assert describe(_map_of(values)).count(": 1") == 12
