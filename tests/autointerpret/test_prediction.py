"""A prediction is read without running anything, and held against what is logged."""

from __future__ import annotations

import pytest

from mlxterp.autointerpret.prediction import compare_predictions, predictions_digest, read_predictions
from mlxterp.errors import DeclarationError

ONE = 'PREDICTION = {"name": "L1.H1", "value": 0.8, "interval": [0.6, 1.0]}'


def read(text: str):
    return read_predictions(text.encode())


def test_a_literal_is_read_and_nothing_runs():
    (found,) = read(f"raise SystemExit\n{ONE}\n")

    assert (found.name, found.value, found.low, found.high) == ("L1.H1", 0.8, 0.6, 1.0)
    assert read("x = 1\n") == ()
    assert read("PREDICTION = None\n") == ()


def test_two_spellings_of_one_prediction_have_one_digest_and_another_interval_another():
    spelled = read("PREDICTION = [{'interval': (0.6, 1), 'value': 0.80, 'name': 'L1.H1'}]")

    assert predictions_digest(spelled) == predictions_digest(read(ONE))
    assert predictions_digest(read(ONE.replace("0.6", "0.5"))) != predictions_digest(read(ONE))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\nPREDICTION = 0.8", "line 2: PREDICTION is `0.8`. Its fields are name, value and interval"),
        ('PREDICTION = {"name": "a", "value": 1}', "Its fields are name, value and interval"),
        ('PREDICTION = {"name": "", "value": 1, "interval": [0, 2]}', "has the name ''"),
        ('PREDICTION = {"name": "a", "value": 3, "interval": [0, 2]}', "a number inside its interval"),
        ('PREDICTION = {"name": "a", "value": 1, "interval": [2]}', "Write two numbers"),
        ('PREDICTION = {"name": "a", "value": 1, "interval": [0, "2"]}', "Write two numbers"),
        ('PREDICTION = {"name": "a", "value": True, "interval": [0, 2]}', "has the value True"),
        ("PREDICTION = []", "lists 0 predictions. Write 1 to 8"),
        ("PREDICTION = predict()", "would have to be run"),
        (f"{ONE}\n{ONE}", "line 2: PREDICTION is declared a second time"),
        (f"{ONE}\nif x:\n    PREDICTION = 1", "line 3: PREDICTION is bound here"),
        (f"PREDICTION = [{ONE[13:]}, {ONE[13:]}]", "predicts 'L1.H1' twice"),
    ],
)
def test_what_is_no_prediction_is_refused_with_its_line_and_an_example(text, says):
    with pytest.raises(DeclarationError) as refused:
        read(text)

    assert says in str(refused.value)
    assert str(refused.value).startswith("experiment.py, line ")


@pytest.mark.parametrize(
    ("value", "held"),
    [(0.6, True), (1.0, True), (0.599, False), (1.001, False), ("NaN", False), (True, True)],
)
def test_it_held_if_the_number_lies_in_the_interval_the_ends_included(value, held):
    (found,) = compare_predictions(read(ONE), [{"numbers": {"L1.H1": value}}], 0)

    assert found["held"] is held


def test_a_number_may_stand_beside_the_numbers():
    (found,) = compare_predictions(read(ONE), [{"L1.H1": 0.7, "numbers": {"other": 1.0}}], 0)

    assert (found["measured"], found["held"]) == (0.7, True)


def test_a_prediction_belongs_to_the_first_entry_that_holds_its_number():
    results = [{"numbers": {}}, {"numbers": {"L1.H1": 0.7}}, {"numbers": {"L1.H1": 0.1}}]

    found = [compare_predictions(read(ONE), results, entry) for entry in range(3)]

    assert [len(each) for each in found] == [0, 1, 0]
    assert found[1][0]["held"] is True


def test_a_number_that_was_predicted_and_not_logged_has_failed():
    (found,) = compare_predictions(read(ONE), [{"numbers": {"other": 0.7}}, {}], 0)

    assert (found["measured"], found["held"]) == (None, False)
