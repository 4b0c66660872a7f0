"""Test texts written from a label: what is asked, what is kept, and that they test the label."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxterp.auto_interp import FeatureLabel, minimal_pairs, sensitivity_test
from mlxterp.auto_interp.llm.prompts import instructions
from mlxterp.errors import LabelingError, LlmRejected
from mlxterp.llm import AnthropicCompleter, Reply, ScriptedCompleter
from tests.auto_interp.judges import data_of
from tests.auto_interp.planted import plants
from tests.messages_stub import MessagesStub

LABEL = FeatureLabel(feature_id=7, label="cat", description="Fires on cat.")


def pairs(*texts: tuple[Any, Any]) -> str:
    return json.dumps({"pairs": [{"positive": yes, "negative": no} for yes, no in texts]})


def test_the_label_alone_is_shown():
    fake = ScriptedCompleter([pairs(("a cat", "a dog"))])

    minimal_pairs(fake, LABEL, n=12)

    request = fake.requests[0]
    assert request.system == instructions("pairs")
    assert data_of(request) == {"label": "cat", "description": "Fires on cat.", "wanted": 12}


def test_pairs_that_test_nothing_and_texts_that_come_again_are_left_out():
    answer = pairs(
        ("a cat", "a dog"),
        ("the cat", "the cat "),
        (" ", "x"),
        ("a cat", "a wolf"),
        ("her cat", "her dog"),
        ("one cat too many", "one dog too many"),
    )

    found = minimal_pairs(ScriptedCompleter([answer]), LABEL, n=2)

    assert found.positives == ("a cat", "her cat")
    assert found.negatives == ("a dog", "her dog")
    assert found.usage.calls == 1


@pytest.mark.parametrize(
    "bad", ["prose", pairs((1, 2)), pairs(), pairs(("x", "x")), Reply("{", "max_tokens")]
)
def test_an_answer_without_pairs_is_asked_for_again_and_then_an_error(bad):
    twice, once = ScriptedCompleter([bad, bad]), ScriptedCompleter([bad, pairs(("a cat", "a dog"))])

    with pytest.raises(LabelingError, match=r"asked for 20 pairs of texts on 'cat'"):
        minimal_pairs(twice, LABEL)

    assert len(minimal_pairs(once, LABEL).positives) == 1


def test_a_refusal_is_an_error_at_once():
    fake = ScriptedCompleter([Reply("", "refusal")])

    with pytest.raises(LabelingError, match="refused"):
        minimal_pairs(fake, LABEL)

    assert len(fake.requests) == 1


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(LabelingError, match="status is 'dead'"):
        minimal_pairs(ScriptedCompleter([]), FeatureLabel(feature_id=7, status="dead"))
    with pytest.raises(LabelingError, match="n=0"):
        minimal_pairs(ScriptedCompleter([]), LABEL, n=0)
    with pytest.raises(LlmRejected):
        minimal_pairs(ScriptedCompleter([LlmRejected("no")]), LABEL)


def test_a_true_label_passes_on_texts_written_from_it_and_a_false_one_does_not(model, sae):
    word, other = plants()[5].words[0], plants()[6].words[0]

    def written(about: str, instead: str) -> str:
        words = [each for plant in plants()[8:38] for each in plant.words]
        return pairs(*((f"sun {w} {about} {w}", f"sun {w} {instead} {w}") for w in words[:20]))

    outcomes = []
    for about, instead in ((word, other), (other, word)):
        with MessagesStub([{"thinking": "hm", "text": written(about, instead)}]) as stub:
            claude = AnthropicCompleter(api_key=stub.key, base_url=stub.url)
            label = FeatureLabel(feature_id=5, label=about, description=f"Fires on {about}.")
            found = minimal_pairs(claude, label)
        tested = sensitivity_test(model, sae, label, positives=found.positives, negatives=found.negatives)
        outcomes.append(tested.sensitivity_passed)

    assert outcomes == [True, False]
