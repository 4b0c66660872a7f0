"""Labels by Claude from texts to confidence: the real client, a stub of the service, planted features."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxterp.auto_interp import FeatureLabel, auto_label_feature, auto_label_features
from mlxterp.auto_interp.label import Usage
from mlxterp.auto_interp.llm.prompts import instructions
from mlxterp.errors import DeprecatedModel, LlmRejected
from mlxterp.llm import AnthropicCompleter, BatchCompleter, CachedCompleter, ReplyCache
from tests.auto_interp.judges import candidate, holds
from tests.auto_interp.planted import plants
from tests.messages_stub import MessagesStub, Request

FEATURES = [3, 11, 20]
USAGE = {"input_tokens": 900, "output_tokens": 90, "cache_read_input_tokens": 1400}


def reader(request: Request) -> dict[str, Any]:
    """A step: names the token that a feature fires on most, and judges texts by whether they have it."""
    data = json.loads(request.last_user.splitlines()[1])
    if request.system == instructions("label"):
        first, second = (str(token).strip() for token, _ in [*data["tokens"], *data["tokens_after"]][:2])
        return {"text": json.dumps({"candidates": [candidate(second), candidate(first)]})}
    fuzzing = request.system == instructions("fuzzing")
    said = [
        {"i": each["i"], "prob": 95 if holds(data, f" {each['text']}", fuzzing=fuzzing) else 5}
        for each in data["texts"]
    ]
    return {"text": json.dumps({"p": said})}


def serving(answer: Callable[[Request], dict[str, Any]] = reader, **step: Any) -> MessagesStub:
    return MessagesStub({"lanes": [{"then": {"thinking": "hm", "usage": USAGE, "call": answer, **step}}]})


@pytest.fixture
def labelled(model, sae, store) -> Callable[..., list[FeatureLabel]]:
    def label(llm: Any, **options: Any) -> list[FeatureLabel]:
        return auto_label_features(model, sae, store=store, llm=llm, **{"feature_ids": FEATURES, **options})

    return label


def claude(stub: MessagesStub, **options: Any) -> AnthropicCompleter:
    return AnthropicCompleter(api_key=stub.key, base_url=stub.url, **options)


def test_planted_words_are_named_scored_and_paid_for(labelled):
    with serving() as stub:
        labels = labelled(claude(stub))
        stub.check()

    for label, feature_id in zip(labels, FEATURES, strict=True):
        assert (label.feature_id, label.status, label.method) == (feature_id, "ok", "llm")
        assert label.label == plants()[feature_id].words[0]
        assert label.confidence > 0.95
        assert label.llm_confidence == 0.8
        assert label.scores["detection"].balanced_accuracy == 1.0
        assert label.scores["fuzzing"].balanced_accuracy > 0.9
        assert label.scores["random_label"].balanced_accuracy < 0.7
        assert label.evidence
    calls = sum(label.usage.calls for label in labels)
    assert calls == len(stub.requests)
    assert sum(label.usage.usd or 0 for label in labels) == pytest.approx(calls * 0.00284)


def test_what_is_sent_keeps_instructions_and_texts_apart(labelled):
    with serving() as stub:
        labelled(claude(stub))

    known = {instructions(what) for what in ("label", "detection", "fuzzing")}
    for request in stub.requests:
        assert request.system in known
        assert request.body["system"][0]["cache_control"] == {"type": "ephemeral"}
        assert request.messages.startswith("<data>\n{")
        assert request.messages.endswith("}\n</data>")


def test_a_second_run_makes_no_call_and_gives_the_same_labels(labelled, tmp_path):
    with serving() as stub:
        runs = []
        for _ in range(2):
            runs.append(labelled(CachedCompleter(claude(stub), ReplyCache(tmp_path / "replies.sqlite"))))
            asked = len(stub.requests)
        first, second = runs

    assert asked == sum(label.usage.calls for label in first)
    assert all(label.usage == Usage(usd=0.0) for label in second)
    assert [_without_usage(label) for label in first] == [_without_usage(label) for label in second]
    for path in tmp_path.iterdir():
        assert stub.key.encode() not in path.read_bytes()


def _without_usage(label: FeatureLabel) -> FeatureLabel:
    scores = {
        name: replace(score, details={key: value for key, value in score.details.items() if key != "usage"})
        for name, score in label.scores.items()
    }
    return replace(label, usage=Usage(), scores=scores)


def test_labels_beyond_max_usd_are_errors_that_say_so(labelled):
    with serving() as stub:
        asker = claude(stub, max_usd=0.12, max_concurrency=2)
        labels = labelled(asker)

    assert asker.spending.spent <= 0.12
    assert len(stub.requests) == asker.usage.calls
    stopped = [label for label in labels if label.status == "error"]
    assert stopped
    for label in stopped:
        assert label.label is None
        assert label.confidence == 0
        assert "max_usd=0.12" in str(label.error)


def test_a_wrong_key_ends_the_run_at_once_and_nothing_is_labelled_offline(labelled):
    def refused(request: Request) -> dict[str, Any]:
        return {"status": 401, "error": "authentication_error", "message": "invalid x-api-key"}

    with serving(refused) as stub, pytest.raises(LlmRejected, match="ANTHROPIC_API_KEY"):
        labelled(claude(stub))

    assert len(stub.requests) <= len(FEATURES)


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ({"text": "", "stop_reason": "refusal"}, "refused"),
        ({"text": '{"candidates": [{"la', "stop_reason": "max_tokens"}, "error"),
        ({"text": "api_error"}, "error"),
        ({"text": json.dumps({"candidates": [candidate("?", kind="unclear")]})}, "uninterpretable"),
    ],
)
def test_an_answer_that_is_no_label_never_becomes_one(labelled, step, status):
    with serving(lambda request: step) as stub:
        labels = labelled(claude(stub))

    assert [label.status for label in labels] == [status] * len(FEATURES)
    assert all(label.label is None and label.confidence == 0 for label in labels)
    assert all(label.usage.calls for label in labels)


def test_in_batches_every_step_of_all_features_is_one_batch(labelled, tmp_path):
    async def no_wait(_: float) -> None:
        pass

    with serving() as stub:
        cache = ReplyCache(tmp_path / "replies.sqlite")
        asker = BatchCompleter(cache, api_key=stub.key, base_url=stub.url, pause=no_wait)
        labels = labelled(asker, max_concurrency=100)

    assert [label.label for label in labels] == [plants()[i].words[0] for i in FEATURES]
    sizes = [len(results) for results in stub.batches.values()]
    assert sizes[:2] == [len(FEATURES), 2 * len(FEATURES)]
    assert len(sizes) == 3
    assert sum(label.usage.usd or 0 for label in labels) == pytest.approx(sum(sizes) * 0.00284 / 2)


def test_judges_whose_answers_cannot_be_used_give_no_label_but_the_reason(labelled):
    def vague(request: Request) -> dict[str, Any]:
        return (
            reader(request) if request.system == instructions("label") else {"text": "Most of them, I think."}
        )

    with serving(vague) as stub:
        labels = labelled(claude(stub))

    for label in labels:
        assert (label.status, label.label, label.confidence) == ("error", None, 0.0)
        assert "no score: detection: 0 of " in label.error
        assert label.scores["detection"].details["failed"] > 0


def test_the_call_of_the_guide_asks_claude_where_there_is_a_key(model, sae, store, monkeypatch, tmp_path):
    with serving() as stub:
        monkeypatch.setenv("ANTHROPIC_API_KEY", stub.key)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", stub.url)
        monkeypatch.setenv("MLXTERP_CACHE", str(tmp_path))

        async def notebook() -> FeatureLabel:
            return auto_label_feature(
                model, sae, feature_id=11, store=store, layer=0, llm_model="claude-sonnet-4-20250514"
            )

        with pytest.warns(DeprecatedModel, match="claude-sonnet-5-5"):
            label = asyncio.run(notebook())

    assert label.label == plants()[11].words[0]
    assert {request.body["model"] for request in stub.requests} == {"claude-sonnet-4-20250514"}
    assert Path(tmp_path / "replies.sqlite").exists()
