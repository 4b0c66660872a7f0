"""Behaviour localisation: the planted heads are named, each step is the analysis, cautions are said."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import PromptPair, activation_patching, direct_logit_attribution, path_patching
from mlxterp.causal.batching import sweep
from mlxterp.datasets import repeated_random_pairs
from mlxterp.errors import CapabilityUnavailable, LengthMismatch, MetricError, NoGap, SweepError
from mlxterp.models import toy_circuit
from mlxterp.results import AnalysisResult, Bars, PatchingResult, mean_attribution
from mlxterp.statistics.multiple import max_t
from mlxterp.workflows import behavior_localization, narratives
from tests.rounding import backward_error

CLEAN, CORRUPTED = "the cat sat", "the dog sat"


@pytest.fixture(scope="module")
def found(toy_model, pairs):
    return behavior_localization(toy_model, pairs)


@pytest.fixture
def rows_run(monkeypatch):
    """How many patched rows and how many plain prompts are run."""
    counted = {"rows": 0, "prompts": 0}
    run_rows, run_prompts = sweep.run_rows, sweep.run_prompts

    def counting_rows(model, tokens, rows, *args, **kwargs):
        counted["rows"] += len(rows)
        return run_rows(model, tokens, rows, *args, **kwargs)

    def counting_prompts(model, tokens):
        counted["prompts"] += len(tokens)
        return run_prompts(model, tokens)

    monkeypatch.setattr(sweep, "run_rows", counting_rows)
    monkeypatch.setattr(sweep, "run_prompts", counting_prompts)
    return counted


def test_it_names_the_planted_heads_and_what_each_does(found):
    named = [component.label for component in found.top_components(2)]
    truth = toy_circuit.truth()

    assert sorted(named) == [truth["previous_token_head"], truth["induction_head"]] == ["L0.H2", "L1.H1"]
    assert "L0.H2 1, L1.H1 1 (of the gap)" in found.conclusion
    assert "L0.H2 acts through later components (direct effect 0 of 1)" in found.conclusion
    assert "L1.H1 acts on the logits directly (direct effect 1 of 1)" in found.conclusion
    assert "L0.H0" not in found.conclusion


@pytest.mark.usefixtures("pinned_threads")
def test_patching_steps_are_what_the_analyses_alone_return(tiny_llama):
    result = behavior_localization(tiny_llama, CLEAN, CORRUPTED, answer="x", foil="y")

    for step, component, by in (
        ("patch_mlp", "mlp_out", "layer"),
        ("patch_attn", "attn_out", "layer"),
        ("patch_heads", "z", "layer_head"),
    ):
        options = {"component": component, "by": by, "answer": "x", "foil": "y"}

        def alone(options=options):
            return activation_patching(tiny_llama, CLEAN, CORRUPTED, **options).effects

        rounding = backward_error(tiny_llama, alone)
        assert result.get_step(step).effects == pytest.approx(alone(), abs=rounding)
        assert result.get_step(step).component == component
    alone = direct_logit_attribution(tiny_llama, CLEAN, answer="x", foil="y")
    assert result.get_step("dla") == alone


def test_over_several_pairs_dla_is_the_mean_and_still_adds_up(tiny_llama):
    pairs = [
        PromptPair(CLEAN, CORRUPTED, answer="x", foil="y"),
        PromptPair("the cow ran", "the pig ran", answer="a", foil="b"),
    ]
    each = [direct_logit_attribution(tiny_llama, p.clean, answer=p.answer, foil=p.foil) for p in pairs]

    dla = behavior_localization(tiny_llama, pairs, steps=["dla"]).get_step("dla")

    for name in ("head", "attn", "mlp"):
        field = f"{name}_contributions"
        expected = np.mean([getattr(one, field) for one in each], axis=0)
        np.testing.assert_allclose(getattr(dla, field), expected, atol=1e-6)
        assert np.abs(expected - getattr(each[0], field)).max() > 0.01
    parts = dla.attn_contributions.sum() + dla.mlp_contributions.sum() + dla.embed_contribution
    assert dla.total == pytest.approx(parts + dla.bias_contribution, abs=1e-5)
    assert dla.total == pytest.approx(np.mean([one.logit for one in each]), abs=1e-3)
    assert dla.logit == pytest.approx(np.mean([one.logit for one in each]))
    assert (dla.target_token, dla.target_token_str) == (-1, "the answer")
    assert [prompt["text"] for prompt in dla.measured_on["prompts"]] == [p.clean for p in pairs]
    assert mean_attribution(each[:1]) is each[0]
    drawn = next(show for show in dla.shows() if isinstance(show, Bars))
    assert drawn.labels[0] == dla.top_components(1)[0].label
    assert "mean over 2 prompts" in drawn.reading


def test_without_an_answer_dla_is_about_what_the_model_says_first(tiny_llama):
    dla = behavior_localization(tiny_llama, CLEAN, CORRUPTED, steps=["dla"]).get_step("dla")
    first = [int(np.array(tiny_llama.logits(text))[0, -1].argmax()) for text in (CLEAN, CORRUPTED)]

    assert dla.target_token == first[0]
    assert dla.foil_token == (first[1] if first[1] != first[0] else None)


def test_both_prompts_run_once_for_all_steps_and_all_patches_run_together(tiny_llama, rows_run):
    result = behavior_localization(tiny_llama, CLEAN, CORRUPTED, answer="x", foil="y")

    sites = tiny_llama.n_layers * (tiny_llama.n_heads + 2)
    assert rows_run == {"rows": sites, "prompts": 2}
    ran = result.measured_on["ran"]
    assert ran["prompts"] == 2
    assert sum(count for name, count in ran.items() if "patched rows" in name) == sites


def test_only_the_steps_that_are_asked_for_run(tiny_llama, rows_run):
    result = behavior_localization(tiny_llama, CLEAN, CORRUPTED, steps=["patch_mlp", "dla"], metric="kl")

    assert result.step_names == ("dla", "patch_mlp")
    assert rows_run["rows"] == tiny_llama.n_layers
    assert [c.label for c in result.components()] == ["L0.mlp_out", "L1.mlp_out", "L2.mlp_out"]


def test_the_residual_stream_can_be_asked_for_and_shows_positions(tiny_llama):
    result = behavior_localization(tiny_llama, CLEAN, CORRUPTED, steps=["patch_resid"], answer="x", foil="y")

    assert result.get_step("patch_resid").axes == ("layer", "pos")
    assert result.get_step("patch_resid").effects[0, 4:7].any()


@pytest.mark.parametrize("steps", [["dla", "patch_everything"], []])
def test_an_unknown_step_or_none_is_refused_and_the_steps_are_listed(tiny_llama, steps):
    with pytest.raises(SweepError, match=r"dla, patch_resid, patch_mlp, patch_attn, patch_heads"):
        behavior_localization(tiny_llama, CLEAN, CORRUPTED, steps=steps)


def test_an_unknown_metric_is_refused_and_the_metrics_are_listed(tiny_llama):
    with pytest.raises(MetricError, match=r"'accuracy'.*logit_diff.*l2"):
        behavior_localization(tiny_llama, CLEAN, CORRUPTED, metric="accuracy")


def test_a_function_as_metric_gets_its_arguments(tiny_llama):
    def margin(logits, *, token):
        return logits[:, token] - logits[:, 0]

    result = behavior_localization(
        tiny_llama, CLEAN, CORRUPTED, metric=margin, metric_kwargs={"token": 7}, steps=["patch_heads"]
    )

    alone = activation_patching(
        tiny_llama, CLEAN, CORRUPTED, component="z", metric=lambda logits: logits[:, 7] - logits[:, 0]
    )
    np.testing.assert_allclose(result.get_step("patch_heads").effects, alone.effects, atol=1e-6)
    assert result.measured_on["metric"] == "margin"


def test_answer_and_foil_may_be_arguments_of_the_metric(tiny_llama):
    options = {"steps": ["patch_mlp"], "metric": "logit_diff"}
    given = behavior_localization(
        tiny_llama, CLEAN, CORRUPTED, metric_kwargs={"answer": "x", "foil": "y"}, **options
    )

    assert given.get_step("patch_mlp") == behavior_localization(
        tiny_llama, CLEAN, CORRUPTED, answer="x", foil="y", **options
    ).get_step("patch_mlp")


@pytest.mark.parametrize("kwargs", [{"token": 7}, {"answer": "z"}])
def test_arguments_that_a_named_metric_does_not_take_are_refused(tiny_llama, kwargs):
    with pytest.raises(MetricError, match="metric_kwargs"):
        behavior_localization(
            tiny_llama, CLEAN, CORRUPTED, metric="logit_diff", answer="x", foil="y", metric_kwargs=kwargs
        )


def test_a_pair_without_a_gap_is_refused_and_never_has_an_effect_of_zero(tiny_llama):
    with pytest.raises(NoGap, match="nothing to recover"):
        behavior_localization(tiny_llama, CLEAN, CORRUPTED, metric=lambda logits: 0 * logits[:, 0])


def test_pairs_without_a_gap_of_their_own_are_counted(toy_model, pairs):
    same = PromptPair(pairs[0].clean, pairs[0].corrupted, answer=" sun", foil=" wolf")
    result = behavior_localization(toy_model, [*pairs, same], steps=["patch_heads"])

    assert any("1 of 5 pairs have no gap of their own" in text for text in result.cautions)
    assert np.isnan(result.get_step("patch_heads").per_example[4]).all()


def test_a_head_that_matters_in_few_pairs_only_is_said_not_to_replicate():
    per_example = np.array([[0.0, 2.0, 0.5], [0.0, 0.0, 0.4], [0.0, -0.1, 0.6], [0.0, 0.1, 0.5]])
    result = PatchingResult(
        effects=per_example.mean(axis=0)[None],
        axes=("layer", "head"),
        component="z",
        by="layer_head",
        direction="denoising",
        metric="logit_diff",
        clean_metric=1.0,
        corrupted_metric=0.0,
        per_example=per_example[:, None],
    )

    (caution,) = narratives.replication(result, 3)

    assert caution.startswith("L0.H1 does not replicate: its effect of 0.5 holds in 1 of 4 pairs")


def test_pairs_that_move_the_other_way_are_counted(toy_model, pairs):
    """`prob` rises from clean to corrupted where the two prompts have changed places."""
    flipped = PromptPair(pairs[1].corrupted, pairs[1].clean, pairs[1].answer, pairs[1].foil)
    result = behavior_localization(toy_model, [*pairs, flipped], steps=["patch_heads"])

    assert any("In 1 of 5 pairs logit_diff moves the other way" in text for text in result.cautions)
    assert any("On 1 of 5 clean prompts the model itself" in text for text in result.cautions)


def test_one_pair_is_said_to_be_one_pair_and_a_distance_to_see_everything(tiny_llama):
    told = behavior_localization(tiny_llama, CLEAN, CORRUPTED, metric="l2", steps=["patch_mlp"])

    assert "One pair was measured" in told.narrative
    assert "l2 sees every change" in told.narrative
    assert "Euclidean distance of the mean-centred logits" in told.narrative


def test_prompts_of_different_lengths_are_aligned_and_the_account_says_so(tiny_llama):
    eiffel, colosseum = "The Eiffel Tower is in", "The Colosseum is in"
    result = behavior_localization(tiny_llama, eiffel, colosseum, metric="l2")

    assert result.measured_on["alignment"]["kind"] == "auto"
    assert "The prompts have 22 and 19 tokens" in result.narrative
    assert "21→18" in result.narrative
    with pytest.raises(LengthMismatch, match="22 tokens"):
        behavior_localization(tiny_llama, eiffel, colosseum, metric="l2", align="strict")


def test_a_step_that_the_model_cannot_do_is_left_out_and_said_so_unless_it_was_named(toy_model, pairs, found):
    assert found.step_names == ("dla", "patch_attn", "patch_heads", "direct_effects")
    assert any(text.startswith("patch_mlp was left out") for text in found.cautions)
    with pytest.raises(CapabilityUnavailable, match="mlp_out"):
        behavior_localization(toy_model, pairs, steps=["patch_mlp"])


def test_noising_is_another_question(toy_model, pairs):
    result = behavior_localization(toy_model, pairs, direction="noising", steps=["patch_heads"])

    assert result.get_step("patch_heads").direction == "noising"
    assert "removes 1 of the gap" in result.narrative


def test_it_survives_json_and_says_how_far_it_is(tiny_llama):
    heard = []
    result = behavior_localization(tiny_llama, CLEAN, CORRUPTED, progress=heard.append)

    assert AnalysisResult.from_json(result.to_json()) == result
    rows = [each for each in heard if each.step == "patch_mlp + patch_attn + patch_heads"]
    assert rows[-1].done == rows[-1].total == tiny_llama.n_layers * (tiny_llama.n_heads + 2)
    assert heard[-1].done == heard[-1].total == 5
    assert {each.workflow for each in heard} == {"behavior_localization"}


def test_verbose_tells_stderr_and_nothing_else(tiny_llama, capsys):
    behavior_localization(tiny_llama, CLEAN, CORRUPTED, steps=["patch_mlp"], verbose=True)

    said = capsys.readouterr()
    assert said.out == ""
    assert "patch_mlp: 3 of 3 patched rows" in said.err


def test_a_role_is_a_direct_effect_and_not_what_a_component_writes_in_the_clean_run(tiny_llama):
    """L0.mlp_out writes 1.04 logits on clean, near to the most; but as much on corrupted."""
    result = behavior_localization(tiny_llama, CLEAN, CORRUPTED, answer="x", foil="y")

    dla = {c.label: c.effect for c in result.get_step("dla").components()}
    direct = path_patching(
        tiny_llama,
        CLEAN,
        CORRUPTED,
        receivers="logits",
        senders=["L0.mlp"],
        freeze_mlps=True,
        answer="x",
        foil="y",
    )
    assert abs(dla["L0.mlp_out"]) > max(map(abs, dla.values())) / 4
    assert direct.effects[0] < 0
    assert result.get_step("direct_effects").find("L0.mlp").effect == pytest.approx(direct.effects[0])
    assert "L0.mlp_out acts through later components" in result.conclusion
    assert "itself" not in result.conclusion
    assert "says what is written, not what matters" in result.narrative


def test_the_summary_has_the_cautions_of_its_steps(tiny_llama):
    result = behavior_localization(tiny_llama, CLEAN, CORRUPTED, answer="x", foil="y")

    assert result.top_components(1)[0].label == "L0.mlp_out"
    assert "Caution (patch_mlp): L0.mlp_out sees little but the words themselves" in result.summary()
    assert "near to exchanging the prompts" in result.summary()


def test_with_few_pairs_nothing_is_called_established_and_the_conclusion_says_why(toy_model, pairs):
    few = behavior_localization(toy_model, pairs[:3], steps=["patch_heads"])
    four = behavior_localization(toy_model, pairs, steps=["patch_heads"])

    assert "none is called established" in few.conclusion
    assert "3 independent clusters of pairs, and it takes 4" in few.conclusion
    at_once = "with intervals that hold for all 8 sites searched at once"
    assert f"Established, beyond 0.05 {at_once}: L0.H2, L1.H1." in four.conclusion


def test_winners_are_measured_on_pairs_that_did_not_choose_them_and_the_account_says_on_which(toy_model):
    pairs = repeated_random_pairs(toy_model, n=9, period=6, seed=1)

    result = behavior_localization(toy_model, pairs, steps=["patch_heads"])

    sweep_ = result.get_step("patch_heads")
    others = [i for i in range(9) if i not in sweep_.chosen_on]
    alone = activation_patching(toy_model, [pairs[i] for i in others], component="z")
    assert len(sweep_.chosen_on) == 4
    for each in sweep_.measured_again:
        assert each.effect == pytest.approx(alone.find(each.label).effect)
    assert "Measured on the same pairs that the search used" in result.narrative
    assert "The strongest on 4 pairs, measured on 5 other pairs: L0.H2 1" in result.narrative


def test_sites_of_several_sweeps_are_established_among_all_that_were_searched(tiny_llama):
    pairs = [PromptPair(f"{c}bcdx", f"{c}bcdy", answer="x", foil="y") for c in "abcdefgh"]

    result = behavior_localization(tiny_llama, pairs, steps=["patch_mlp", "patch_heads"])

    sweeps = [result.get_step(step) for step in ("patch_mlp", "patch_heads")]
    gap = np.array([one - zero for one, zero in _baselines(tiny_llama, pairs)])
    shares = np.concatenate([sweep_.per_example.reshape(8, -1) for sweep_ in sweeps], axis=1)
    together = max_t(shares * gap[:, None], gap).beyond(0.05)
    labels = [c.label for sweep_ in sweeps for c in sweep_.components()]
    expected = [label for label, beyond in zip(labels, together, strict=True) if beyond]
    said = result.conclusion.partition("all 15 sites searched at once: ")[2].rstrip(".")
    assert sorted(said.split(", ")) == sorted(expected)
    assert len(expected) == 3


def _baselines(model, pairs):
    for pair in pairs:
        rows = [np.array(model.logits(text))[0, -1] for text in (pair.clean, pair.corrupted)]
        yield tuple(float(row[ord("x")] - row[ord("y")]) for row in rows)


def test_direct_effects_follow_a_sweep_and_need_prompts_of_one_length(tiny_llama):
    with pytest.raises(SweepError, match="it follows patch_mlp or patch_heads"):
        behavior_localization(tiny_llama, CLEAN, CORRUPTED, steps=["dla", "direct_effects"])
    with pytest.raises(SweepError, match="different lengths"):
        behavior_localization(tiny_llama, "the cats sat", CORRUPTED, steps=["patch_mlp", "direct_effects"])

    left_out = behavior_localization(tiny_llama, "the cats sat", CORRUPTED)

    assert "direct_effects" not in left_out.step_names
    assert any(text.startswith("direct_effects was left out: paths carry") for text in left_out.cautions)


def test_direct_effects_of_many_pairs_are_those_of_the_first_eight_and_say_so(toy_model):
    pairs = repeated_random_pairs(toy_model, n=9, period=6, seed=1)

    result = behavior_localization(toy_model, pairs, steps=["patch_heads", "direct_effects"])

    assert len(result.get_step("direct_effects").per_example) == 8
    assert "over the first 8 of 9 pairs" in result.step("direct_effects").narrative
