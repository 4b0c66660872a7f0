"""Dashboards of features: what stands in the page's data, and that no word in it can leave it."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.auto_interp.dashboard import save_dashboard
from mlxterp.auto_interp.label import FeatureLabel, Score
from mlxterp.errors import LabelingError, ResultError
from mlxterp.reports.dashboard import Accuracy, Examples, Excerpt, FeatureEntry, dashboard
from mlxterp.sae.feature_store.build import build_store
from mlxterp.sae.sae import SAE, Relu
from tests.payloads import PAYLOADS, Seen, assert_harmless

TEXTS = ["bird book bread bridge cat bird book bread bridge cat", "cat bird cat bird book", "bread cat bread"]


@pytest.fixture(scope="module")
def model():
    from mlxterp import InterpretableModel

    return InterpretableModel("toy-induction")


@pytest.fixture(scope="module")
def sae(model):
    """Feature 0 fires at " cat", 1 at " bird", 2 nowhere: their difference, in which positions cancel."""
    ids = [[model.to_single_token(text)] * 6 for text in (" cat", " bird")]
    cat, bird = np.array(model.trace(ids, capture=["L0.resid_pre"])["L0.resid_pre"]).mean(axis=1)
    apart = (cat - bird) / ((cat - bird) @ cat)
    directions = np.stack([apart, -apart, np.zeros_like(apart)])
    weights = {"W_enc": mx.array(directions.T), "W_dec": mx.array(directions), "b_dec": mx.zeros(len(apart))}
    bias = mx.array([-0.5, -0.5, -1.0])
    return SAE(**weights, b_enc=bias, activation=Relu(), hook_point="L0.resid_pre", model=model.name)


@pytest.fixture(scope="module")
def store(model, sae):
    return build_store(model, sae, TEXTS)


def labels():
    score = Score(0.9, (0.8, 0.95), 0.97, 40, 5, 45, 5, auroc=0.93)
    given = {"scores": {"detection": score}, "confidence": 0.97, "sensitivity_passed": True}
    return [
        FeatureLabel(feature_id=0, label='token " cat"', sensitivity_details="19 of 20", **given),
        FeatureLabel(feature_id=2, status="dead"),
    ]


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1])


def saved(path, *given, **options):
    return data_of(save_dashboard(path, *given, **options).read_text(encoding="utf-8"))


def entry(word="cat", **changes):
    given = {
        "feature_id": 7,
        "label": word,
        "description": word,
        "status": word,
        "facts": ((word, word),),
        "confidence": 0.9,
        "accuracies": (Accuracy(word, 0.9, 0.8, 0.95, 0.9),),
        "sensitivity": word,
        "sensitivity_details": word,
        "density": 0.01,
        "max_activation": 2.0,
        "mean_activation": 1.0,
        "counts": (3, 1),
        "examples": (Examples(word, (Excerpt((word, "b"), (2.0, 0.0), 0, word),)),),
        "top_tokens": ((word, 0.5),),
        "promoted": ((word, 1.5),),
        "suppressed": ((word, -1.5),),
        "neighbours": (8,),
    }
    return FeatureEntry(**(given | changes))


def test_a_feature_is_shown_where_it_fires_with_its_activations(tmp_path, model, sae, store):
    data = saved(tmp_path / "new" / "page.html", model, sae, store, features=[0, 1])

    texts, (cat, bird) = data["texts"], data["features"]
    assert (cat["id"], bird["id"]) == (0, 1)
    assert [texts[text] for text, _ in cat["tokens"]] == [" cat"]
    assert cat["tokens"][0][1] == 1.0
    assert sum(cat["counts"]) == store.counts[0]
    _, activations = store.feature(0)
    assert cat["max"] == pytest.approx(activations.max(), rel=1e-2)
    for _, excerpts in cat["examples"]:
        for tokens, fired, peak, _ in excerpts:
            assert texts[tokens[peak]] == " cat"
            assert {texts[tokens[at]] for at, _ in fired} == {" cat"}
            assert [at for at, value in fired if value == max(v for _, v in fired)].count(peak) == 1


def test_the_text_of_an_excerpt_is_that_of_the_corpus(tmp_path, model, sae, store):
    data = saved(tmp_path / "page.html", model, sae, store, features=[0])

    excerpts = [each for _, group in data["features"][0]["examples"] for each in group]
    shown = ["".join(data["texts"][i] for i in tokens) for tokens, *_ in excerpts]
    assert shown
    assert all(any(text in " " + whole for whole in TEXTS) for text in shown)


def test_a_label_comes_with_its_scores_and_a_feature_without_one_says_why(tmp_path, model, sae, store):
    cat, dead = saved(tmp_path / "page.html", model, sae, store, labels())["features"]

    assert cat["label"] == 'token " cat"'
    assert cat["accuracies"] == [["detection", "0.9", "0.8 to 0.95", "0.93"]]
    assert (cat["sensitivity"], cat["sensitivityDetails"]) == ("passed", "19 of 20")
    assert cat["numbers"][:2] == [
        ["confidence", "97 %"],
        ["balanced accuracy, detection", "0.9 (0.8 to 0.95)"],
    ]
    assert (dead["label"], dead["status"], dead["counts"], dead["examples"]) == (None, "dead", [], [])


def test_without_labels_the_features_that_fire_most_are_shown(tmp_path, model, sae, store):
    data = saved(tmp_path / "page.html", model, sae, store)

    order = np.argsort(-store.counts * store.mean_activation)
    assert [each["id"] for each in data["features"]] == [int(f) for f in order if store.counts[f]]


def test_what_does_not_belong_together_is_refused(tmp_path, model, sae, store):
    other = SAE(
        **{name: getattr(sae, name) for name in ("W_enc", "W_dec", "b_dec")},
        b_enc=sae.b_enc + 1.0,
        activation=Relu(),
        hook_point=sae.hook_point,
        model=sae.model,
    )

    with pytest.raises(LabelingError, match="another SAE"):
        save_dashboard(tmp_path / "page.html", model, other, store)
    with pytest.raises(LabelingError, match="2 labels of 1 features"):
        save_dashboard(tmp_path / "page.html", model, sae, store, [labels()[0]] * 2)
    with pytest.raises(ResultError, match=r"page\.md"):
        save_dashboard(tmp_path / "page.md", model, sae, store)
    with pytest.raises(ResultError, match="no features"):
        dashboard([])
    with pytest.raises(ResultError, match="a feature twice"):
        dashboard([entry(), entry()])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_words_stay_in_the_data(payload):
    page = dashboard([entry(payload)], title=payload, about={payload: payload})

    assert_harmless(page, scripts=1)
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert not set(block) & set("<>&\u2028\u2029")
    assert data_of(page)["features"][0]["id"] == 7


def test_the_policy_names_the_one_script_and_nothing_else():
    page = dashboard([entry()])

    (policy,) = [v for tag, name, v in Seen(page).attributes if name == "content" and "default-src" in v]
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'" in policy
    assert "http" not in policy


def test_a_token_is_held_once_however_often_it_stands_in_excerpts():
    excerpt = Excerpt(("same",) * 30, (0.0,) * 29 + (1.0,), 29)
    page = dashboard([entry(feature_id=i, examples=(Examples("t", (excerpt,) * 30),)) for i in range(40)])

    assert page.count('"same"') == 1
    assert len(page) / 40 < 150_000


def test_numbers_that_are_not_finite_do_not_break_the_data():
    bad = float("nan")
    page = dashboard(
        [entry(confidence=bad, density=bad, max_activation=float("inf"), top_tokens=(("a", bad),))]
    )

    assert data_of(page)["features"][0]["confidence"] is None


def test_continuations_are_those_of_the_model_with_the_feature_added(tmp_path, model, sae, store):
    from mlxterp.sae import feature_add

    prompt, times = "bird book", (-2.0, 0.0, 1.0, 2.0, 4.0)
    (cat,) = saved(tmp_path / "page.html", model, sae, store, features=[0], steer_from=prompt)["features"]
    (bare,) = saved(tmp_path / "other.html", model, sae, store, features=[0])["features"]

    largest = float(store.max_activation[0])
    assert (bare["steering"], cat["prompt"]) == ([], prompt)
    assert [amount for amount, _ in cat["steering"]] == pytest.approx([t * largest for t in times], rel=1e-2)
    for each, (_, text) in zip(times, cat["steering"], strict=True):
        edits = [feature_add(sae, 0, each * largest)] if each else []
        assert text == model.generate(prompt, max_new_tokens=24, interventions=edits).text


def test_a_confidence_is_shown_as_a_share_and_never_with_seven_decimals():
    (shown,) = data_of(dashboard([entry(confidence=2.76e-6, density=2.5e-6)]))["features"]

    assert shown["shown"]["confidence"] == "<1 %"
    assert shown["shown"]["density"] == "0.00025 %"
    assert ["confidence", "<1 %"] in shown["numbers"]


def test_a_feature_leads_to_the_report_that_names_it(tmp_path, model, sae, store):
    report = tmp_path / "report.html"
    report.write_text('<a id="feature-0" href="features.html#f0">f0</a>', encoding="utf-8")

    cat, bird = saved(tmp_path / "features.html", model, sae, store, features=[0, 1], report=report)[
        "features"
    ]

    assert (cat["report"], bird["report"]) == ("report.html#feature-0", "")
