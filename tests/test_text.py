"""Numbers, durations and foreign text as a person reads them."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from mlxterp.text import (
    clip,
    decimals_of,
    duration,
    fixed,
    number,
    percent,
    shortened,
    typeset,
    visible,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.41234, "0.412"),
        (-3.0, "-3"),
        (-0.0, "0"),
        (12345.6, "12,346"),
        (1204, "1,204"),
        (np.int64(1204), "1,204"),
        (np.float32(0.5), "0.5"),
        (1.2e-5, "1.2e-05"),
        (math.nan, "n/a"),
        (-math.inf, "-infinity"),
        (True, "yes"),
    ],
)
def test_a_number_is_rounded_to_what_a_person_reads(value, text):
    assert number(value) == text


def test_a_typeset_number_has_a_minus_and_no_hyphen():
    assert typeset(-0.8123) == "−0.812"
    assert typeset(-1.2e-5, 2) == "−1.2e−05"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.944, "94 %"),
        (1.5, "150 %"),
        (math.nan, "n/a"),
        (0.0, "0 %"),
        (-0.0, "0 %"),
        (2.76e-6, "<1 %"),
        (0.0049, "<1 %"),
        (0.0051, "1 %"),
        (0.9949, "99 %"),
        (0.99999, ">99 %"),
        (1.0, "100 %"),
    ],
)
def test_a_share_is_a_whole_percentage(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.254, "0.25 s"),
        (8.24, "8.2 s"),
        (41.4, "41 s"),
        (59.7, "1 min"),
        (192.3, "3 min 12 s"),
        (3599.8, "1 h 0 min"),
        (25_920.0, "7 h 12 min"),
    ],
)
def test_a_duration_is_two_units_at_most_and_never_sixty_of_one(seconds, text):
    assert duration(seconds) == text


def test_a_text_that_is_cut_says_so():
    assert clip("a short one", 20) == "a short one"
    assert clip("a longer one", 8) == "a longer …"


def test_hidden_characters_become_visible_and_terminal_codes_go():
    text = visible("a\x1b[31mred\x1b[0m \u202egnp.exe\x00\ud800\u200b\r\nend")

    assert text == "ared ⟨U+202E⟩gnp.exe␀⟨U+D800⟩⟨U+200B⟩\nend"


def test_formatting_text_loads_neither_numpy_nor_mlx():
    code = "import sys, mlxterp.text; print([m for m in ('mlx', 'numpy') if m in sys.modules])"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0.5, 2, "0.50"),
        (-0.001, 2, "0.00"),
        (-0.006, 2, "−0.01"),
        (1204.0, 1, "1,204.0"),
        (math.nan, 2, "n/a"),
    ],
)
def test_numbers_that_are_compared_have_equally_many_decimals_and_no_negative_zero(value, decimals, text):
    assert fixed(value, decimals) == text


@pytest.mark.parametrize(
    ("low", "high", "decimals"),
    [
        (0.33, 0.48, 2),
        (-0.0077, 0.0187, 3),
        (0.9982, 1.0018, 4),
        (2.0, 5.0, 2),
        (0.5, 0.5, 2),
        (0.0, 1e-9, 6),
    ],
)
def test_the_ends_of_a_narrow_interval_are_told_apart(low, high, decimals):
    assert decimals_of(low, high) == decimals


@pytest.mark.parametrize(
    ("text", "longest", "cut"),
    [
        ("the garden gate", 15, "the garden gate"),
        ("the garden gates", 15, "the garden…"),
        ("the garden gate", 11, "the garden…"),
        ("x" * 30, 10, "xxxxxxxxx…"),
        ("a " + "x" * 30, 10, "a xxxxxxx…"),
    ],
)
def test_a_label_is_cut_after_a_word_unless_one_word_is_too_long(text, longest, cut):
    assert shortened(text, longest) == cut
    assert len(shortened(text, longest)) <= longest
