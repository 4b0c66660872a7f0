"""Judged labels: questions that give nothing away, scores that hold what their intervals promise."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlxterp.auto_interp.evidence.evidence import FeatureEvidence
from mlxterp.auto_interp.label import Proposal, Score
from mlxterp.auto_interp.llm.prompts import DECOYS, DESCRIPTION_WORDS, LABEL_WORDS
from mlxterp.auto_interp.llm.scorers import (
    LlmScorer,
    dealt,
    detection,
    fuzzing,
    judge,
)
from mlxterp.errors import LlmRejected
from mlxterp.llm import AnthropicCompleter, Reply, ScriptedCompleter, run
from tests.auto_interp.judges import FakeJudge, asked, data_of, evidence
from tests.messages_stub import MessagesStub

CAT = Proposal("cat", "Fires on cat.", "token")
DOG = Proposal("dog", "Fires on dog.", "token")


def score(
    completer: Any, feature: FeatureEvidence | None = None, proposal: Proposal = CAT, **options: Any
) -> Any:
    scorer = LlmScorer(completer, **{"decoys": (), **options})

    async def job() -> Any:
        try:
            return await scorer.score(feature or evidence(), proposal)
        finally:
            await completer.close()

    return run(job)


def test_a_right_label_and_a_right_judge_score_one_and_another_label_one_half():
    scores, baseline = score(FakeJudge()), score(FakeJudge(), proposal=DOG)

    for task in ("detection", "fuzzing"):
        assert scores[task].balanced_accuracy == 1.0
        assert scores[task].auroc == 1.0
        assert scores[task].confidence > 0.99
        assert baseline[task].balanced_accuracy == 0.5
        assert baseline[task].auroc == 0.5
        assert baseline[task].confidence < 0.01


def test_a_hundred_positives_and_negatives_take_ten_questions_a_task():
    fake = FakeJudge()

    score(fake, evidence(test=100))

    assert len(asked(fake, "detection")) == len(asked(fake, "fuzzing")) == 10
    assert {len(data_of(request)["texts"]) for request in fake.requests} == {20}


def test_only_test_texts_are_judged_each_once():
    fake, feature = FakeJudge(), evidence()

    score(fake, feature, tasks=("detection",))

    shown = [each["text"] for request in fake.requests for each in data_of(request)["texts"]]
    assert sorted(shown) == sorted(
        window.text for window in (*feature.test_positives, *feature.test_negatives)
    )


def test_a_question_shows_no_activation_no_mark_and_not_how_many_fit():
    fake = FakeJudge()

    score(fake, tasks=("detection",))

    shares = []
    for request in fake.requests:
        data = data_of(request)
        assert data.keys() == {"label", "description", "texts"}
        assert all(each.keys() == {"i", "text"} and "<<" not in each["text"] for each in data["texts"])
        shares.append(np.mean([" cat" in each["text"] for each in data["texts"]]))
    assert len(set(shares)) > 1
    assert min(shares) > 0.2
    assert max(shares) < 0.8


def test_the_order_depends_on_the_feature_and_the_seed_alone():
    def order(feature_id: int, seed: int) -> list[str]:
        fake = FakeJudge()
        score(fake, replace(evidence(), feature_id=feature_id), seed=seed, tasks=("fuzzing",))
        return [request.user for request in fake.requests]

    assert order(7, 0) == order(7, 0)
    assert order(7, 0) != order(7, 1)
    assert order(7, 0) != order(8, 0)


def test_wrong_marks_are_as_many_as_right_ones_and_never_where_the_feature_fires():
    feature = evidence()

    items = fuzzing(feature.test_positives, feature.test_negatives, np.random.default_rng(0))

    right, wrong = [item for item in items if item.fires], [item for item in items if not item.fires]
    assert len(right) == len(wrong) == 50
    assert all("<< cat>>" in item.text for item in right)
    assert all("<< cat>>" not in item.text and item.text.count("<<") == 1 for item in wrong)
    assert sum(" cat" in item.text for item in wrong) == 25


def test_a_window_without_room_for_wrong_marks_is_not_marked_wrongly():
    feature = evidence(test=10)
    everywhere = [
        replace(window, activations=(1.0,) * len(window.tokens)) for window in feature.test_positives
    ]

    items = fuzzing(everywhere, feature.test_negatives, np.random.default_rng(0))

    assert all(item.source >= 10 for item in items if not item.fires)


def test_two_versions_of_one_window_are_never_in_one_question():
    for seed in range(20):
        random = np.random.default_rng(seed)
        feature = evidence(test=100, seed=seed)
        items = fuzzing(feature.test_positives, feature.test_negatives, random)
        questions = dealt(items, 20, random)

        assert sorted(i for question in questions for i in question) == list(range(len(items)))
        assert len(questions) == 10
        for question in questions:
            sources = [items[i].source for i in question]
            assert len(sources) == len(set(sources)) <= 20


def test_few_texts_are_dealt_too():
    feature = evidence(test=3)
    random = np.random.default_rng(0)
    items = fuzzing(feature.test_positives, feature.test_negatives, random)

    questions = dealt(items, 20, random)

    assert sum(map(len, questions)) == len(items)
    assert all(len({items[i].source for i in question}) == len(question) for question in questions)


def test_a_label_of_another_feature_is_judged_beside_it_by_one_question():
    fake = FakeJudge()
    decoys = [("cat", "the right one by chance"), ("dog", "Fires on dog."), ("river", "Fires on river.")]

    scores = score(fake, tasks=("detection",), decoys=decoys)

    baseline = scores["random_label"]
    assert scores["detection"].balanced_accuracy == 1.0
    assert baseline.details["label"] in ("dog", "river")
    assert 0.2 < baseline.balanced_accuracy < 0.8
    assert baseline.true_positives + baseline.false_negatives == 10
    assert len(fake.requests) == 6


def test_the_decoys_come_with_the_library_and_keep_to_the_limits():
    assert set(score(FakeJudge(), decoys=DECOYS)) == {"detection", "fuzzing", "random_label"}
    for label, description in DECOYS:
        assert len(label.split()) <= LABEL_WORDS
        assert len(description.split()) <= DESCRIPTION_WORDS


def test_the_true_positive_rate_is_told_for_each_strength():
    by_quantile = score(FakeJudge())["detection"].by_quantile

    assert set(by_quantile) <= {str(i) for i in range(10)}
    assert set(by_quantile.values()) == {1.0}


def test_without_test_texts_nothing_is_asked():
    fake = FakeJudge()

    assert score(fake, replace(evidence(), test_negatives=())) == {}
    assert fake.requests == []


def judgement(*numbers: int, prob: Any = 90) -> str:
    return json.dumps({"p": [{"i": i, "prob": prob} for i in numbers]})


@pytest.mark.parametrize(
    "bad",
    [
        judgement(1, 2),
        judgement(1, 2, 2),
        judgement(1, 2, 3, 4),
        judgement(0, 1, 2),
        judgement(1, 2, 3, prob=101),
        judgement(1, 2, 3, prob=-1),
        judgement(1, 2, 3, prob="high"),
        judgement(1, 2, 3, prob=None),
        '{"p": [{"i": 1, "prob": NaN}, {"i": 2, "prob": 1}, {"i": 3, "prob": 1}]}',
        "1, 3",
        Reply("", "refusal"),
        Reply(judgement(1, 2, 3), "max_tokens"),
    ],
)
def test_judgements_that_are_not_one_for_each_text_are_asked_for_again_then_undecided(bad):
    texts = ["a", "b", "c"]
    twice, once = ScriptedCompleter([bad, bad]), ScriptedCompleter([bad, judgement(3, 1, 2)])

    failed = run(lambda: judge(twice, "detection", CAT, texts))
    found = run(lambda: judge(once, "detection", CAT, texts))

    assert failed.probabilities == (0.5, 0.5, 0.5)
    assert set(failed.failed) == {0, 1, 2}
    assert failed.usage.calls == found.usage.calls == 2
    assert found.probabilities == (0.9, 0.9, 0.9)
    assert not found.failed
    assert [request.attempt for request in once.requests] == [0, 1]


def test_judgements_are_matched_by_number_not_by_order():
    reply = json.dumps({"p": [{"i": 2, "prob": 20}, {"i": 1, "prob": 100.0}]})

    assert run(lambda: judge(ScriptedCompleter([reply]), "fuzzing", CAT, ["a", "b"])).probabilities == (
        1.0,
        0.2,
    )


def judged_with_failures(n: int, **options: Any) -> Score:
    """Detection where the answers to the first n questions cannot be used."""
    fake = FakeJudge()
    answer = fake._answer
    fake._answers = lambda request: (
        "nonsense"
        if request.user in list(dict.fromkeys(each.user for each in fake.requests))[:n]
        else answer(request)
    )
    return score(fake, tasks=("detection",), **options)["detection"]


def test_failed_questions_are_reported_and_count_neither_as_yes_nor_as_no():
    result = judged_with_failures(1)

    assert result.details["failed"] == 20
    assert result.details["failures"]
    assert result.coverage == 0.8
    assert result.balanced_accuracy == 1.0
    assert result.false_negatives == result.false_positives == 0
    assert result.true_positives + result.true_negatives == 80


def test_too_few_decided_texts_give_no_score_but_the_reason():
    result = judged_with_failures(2)

    assert (result.balanced_accuracy, result.interval, result.confidence) == (None, None, None)
    assert result.coverage == 0.6
    assert "60 of 100 texts were decided" in result.details["reason"]
    assert "a score needs 80 %" in result.details["reason"]


def test_a_rejection_ends_the_score_at_once():
    with pytest.raises(LlmRejected):
        score(ScriptedCompleter(lambda request: LlmRejected("no")))


def test_details_say_what_the_score_took():
    usage = {"input_tokens": 700, "output_tokens": 60, "cache_read_input_tokens": 1100}

    def answer(request: Any) -> dict[str, Any]:
        texts = len(re.findall(r'"i": ', request.messages))
        return {"text": judgement(*range(1, texts + 1))}

    step = {"thinking": "let me see", "usage": usage, "call": answer}
    with MessagesStub({"lanes": [{"then": step}]}) as stub:
        result = score(AnthropicCompleter(api_key=stub.key, base_url=stub.url), tasks=("detection",))
        stub.check()

    taken = result["detection"].details["usage"]
    assert (taken["calls"], taken["input_tokens"], taken["cache_read_tokens"]) == (5, 3500, 5500)
    assert taken["usd"] == pytest.approx(5 * (700 * 2 + 60 * 10 + 1100 * 0.1) / 1e6)


@pytest.mark.parametrize("accuracy", [0.8, 0.9, 1.0])
@pytest.mark.parametrize("task", ["detection", pytest.param("fuzzing", marks=pytest.mark.slow)])
def test_intervals_hold_the_truth_of_a_judge_of_known_accuracy(accuracy, task):
    """200 features with 50 + 50 texts each, a judge right with this probability: 95 % intervals."""
    features = [evidence(i) for i in range(10)]
    judges = [FakeJudge(accuracy, seed=1000 + i) for i in range(200)]

    async def job() -> list[Any]:
        return [
            (await LlmScorer(judge, (task,), per_call=50, decoys=()).score(features[i % 10], CAT))[
                task
            ].interval
            for i, judge in enumerate(judges)
        ]

    covered = sum(low <= accuracy <= high for low, high in run(job))

    assert covered >= 0.93 * 200


def test_items_of_detection_keep_their_texts():
    feature = evidence(test=2)

    items = detection(feature.test_positives, feature.test_negatives)

    assert [item.fires for item in items] == [True, True, False, False]
    assert items[0].text == feature.test_positives[0].text
