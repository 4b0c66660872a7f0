"""The selftest passes the rule as it is, and fails it with any of its parts taken out."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.selftest import QUICK, Rule, run_selftest
from mlxterp.selftest.adversaries import STRATEGIES, WORLD_SPREADS, attack
from mlxterp.selftest.claims import KEEP_2, Counts, Night, judge_night, population
from mlxterp.selftest.measured import HeadTable, _kept_at, _read, _written, measure_world
from mlxterp.selftest.power import power
from mlxterp.selftest.sections import (
    SelftestResult,
    _judged_circuit,
    _judged_without,
    _named_cases,
)
from mlxterp.statistics import decisions, outcome, sequential
from mlxterp.statistics.configuration import rule_defaults
from mlxterp.worlds import (
    World,
    llama_with_preferred_answers,
    random_llama,
    shuffled_labels,
    toy_induction,
    weight_shuffled,
    with_effect,
)
from tests.tiny_models import VOCAB, tiny_module


def _table(n_heads=120, n=72, seed=0):
    """Heads without an effect, with heavy-tailed residuals that grow with the gap."""
    rng = np.random.default_rng(seed)
    gap = 10 + 2 * rng.normal(size=n)
    size = 0.03 * rng.lognormal(sigma=1.0, size=(n_heads, 1))
    change = gap * size * rng.standard_t(5, size=(n_heads, n))
    near = [[j for j in range(n_heads) if j != i][:24] for i in range(n_heads)]
    names = tuple(f"L0.z.h{i}" for i in range(n_heads))
    return HeadTable(names, change, gap, tuple(f"cluster {i}" for i in range(n)), np.array(near))


@pytest.fixture(scope="module")
def heads():
    table = _table()
    bare = np.stack([with_effect(change, table.gap, 0.0) for change in table.change])
    return population(dataclasses.replace(table, change=bare), "salt")


def _claims(heads, rule, nights=10, **counts):
    rng = np.random.default_rng(0)
    asked = Counts(**{"null": 10, "winner": 10, "planted": 5, "true_null": 5} | counts)
    return [each for _ in range(nights) for each in judge_night(heads, rng, rule, asked)]


def _result(claims=(), attacks=(), stopped=(), cases=()):
    return SelftestResult(tuple(claims), tuple(stopped), tuple(attacks), tuple(cases), {}, 1.0)


def _judge_against_0(cells, claim, alpha):
    """The rule with 0 for its null: the lower end must exceed 0, not S/2."""
    looks = [decisions.look(_first(cells, n), claim, alpha / 2) for n in (24, 48) if n <= len(cells)]
    for found in looks:
        sign = 1 if found.effect > 0 else -1
        end = found.low if sign > 0 else -found.high
        if end > 0 and abs(found.effect) >= claim.sesoi and abs(found.effect) > claim.bar:
            as_predicted = (sign > 0) == (claim.direction == "increase")
            return dataclasses.replace(found, outcome="supported" if as_predicted else "refuted")
        if found.outcome != "inconclusive":
            return found
    return looks[-1]


def _first(cells, n):
    return decisions.Cells(cells.change[:n], cells.gap[:n], cells.clusters[:n])


AGAINST_0 = Rule(judge=_judge_against_0)
WITHOUT_WEALTH = Rule(level=lambda judged, sites: 0.005)
WITHOUT_PAYING = Rule(
    level=lambda judged, sites: sequential.level(
        len(judged) + 1, [i for i, each in enumerate(judged, 1) if each.discovery]
    )
)
WITHOUT_A_GATE = Rule(gate=lambda *a, **k: dataclasses.replace(decisions.gate(*a, **k), passed=True))
TELLS_WHAT_IS_MISSING = Rule(
    level=WITHOUT_PAYING.level,
    told=lambda e: tuple(dict.fromkeys(each.partition(":")[0] for each in outcome.missing(e))),
)


def test_the_rule_keeps_nothing_false_and_finds_what_is_planted(heads):
    found = _result(_claims(heads, KEEP_2))

    assert found.failures() == []
    assert found.null[0] == 200
    assert found.planted == (50, 50)
    assert found.true_null[0] == 50


def test_a_rule_that_takes_0_for_its_null_is_noticed(heads):
    found = _result(_claims(heads, AGAINST_0, nights=20))

    n, kept = found.null
    assert kept > 0.01 * n
    assert f"{kept} of {n} claims about nothing were kept" in found.failures()[0]


def test_in_the_population_a_claim_has_the_effect_that_it_says(heads):
    night = Night(heads, np.arange(len(heads.explore)), np.arange(len(heads.confirm)))

    cells = night.cells(3, 0.075, 2.0)

    assert cells.change.sum() / cells.gap.sum() == pytest.approx(0.075, rel=1e-9)
    spread = (cells.change - 0.075 * cells.gap).std(ddof=1) / cells.gap.mean()
    assert spread == pytest.approx(2.0 * heads.spread()[3], rel=1e-9)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_an_adversary_gains_nothing(heads, strategy):
    worlds = range(len(WORLD_SPREADS))
    attacks = [attack(heads, world, strategy, seed=1, limit=150) for world in worlds]

    assert _result(attacks=attacks).failures() == []
    assert all(0 < each.claims <= 150 for each in attacks)


def test_without_wealth_an_adversary_is_noticed(heads):
    attacks = [
        attack(heads, world, "best on explore", seed, WITHOUT_WEALTH, limit=400)
        for world in (2, 3, 4)
        for seed in range(2)
    ]

    assert max(each.kept for each in attacks) > 1
    assert "claims kept in one world; 1 is allowed" in _result(attacks=attacks).failures()[0]


def test_to_tell_what_an_open_claim_lacks_is_noticed(heads):
    """Which heads fall short of the estimate, and which of the interval only, tells which to unite, where
    sets do not pay for what was told."""
    told, not_told = (
        [attack(heads, 4, "unites what was left open", seed, rule, limit=400).kept for seed in range(4)]
        for rule in (TELLS_WHAT_IS_MISSING, WITHOUT_PAYING)
    )

    assert max(told) > 1
    assert max(not_told) <= 1


def test_to_unite_what_was_left_open_for_nothing_is_noticed(heads):
    """That a head was left open, and not ruled out, tells of its clusters too."""
    free, paid = (
        attack(heads, 2, "unites what was left open", 25, rule, limit=400).kept
        for rule in (WITHOUT_PAYING, KEEP_2)
    )

    assert free > 1
    assert paid == 0


NULLS = {
    "selected answers": lambda: random_llama(0, 48),
    "first tokens": lambda: llama_with_preferred_answers(0, 48),
    "shuffled labels": lambda: shuffled_labels(toy_induction(48), 0),
    "shuffled weights": lambda: weight_shuffled(toy_induction(48), 0),
}


@pytest.mark.parametrize("name", sorted(NULLS))
def test_the_gate_stops_worlds_without_a_behaviour(name):
    found = _judged_without(measure_world(NULLS[name]()), KEEP_2)

    assert (found["n"], found["kept"], found["outcome"]) == (5, 0, "invalid:instrument")
    assert "preference behind a prefix" in found["lacking"]


@pytest.mark.parametrize(
    ("family", "answers"),
    [("gpt2", "first"), ("qwen2", "first"), ("qwen2", "furthest"), ("gemma2", "furthest")],
)
def test_the_gate_stops_answers_that_were_selected_for_other_random_networks(family, answers):
    """Its first tokens are called the answers, or those on which the two runs differ most. The first token of
    gemma2, whose embeddings are tied and scaled, is the prompt's last one in both runs."""
    model = InterpretableModel(tiny_module(family, seed=5))
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(120):
        clean = rng.integers(VOCAB, size=8)
        corrupted = clean.copy()
        corrupted[4] = (clean[4] + rng.integers(1, VOCAB)) % VOCAB
        both = model.logits(mx.array(np.stack([clean, corrupted])))
        last = np.array(both[:, -1].astype(mx.float32))
        answer, foil = last.argmax(axis=1).tolist()
        if answers == "furthest":
            answer, foil = int((last[0] - last[1]).argmax()), int((last[0] - last[1]).argmin())
        if answer != foil:
            prompts = tuple(clean.tolist()), tuple(corrupted.tolist())
            pairs.append(PromptPair(*prompts, answer=answer, foil=foil, cluster=f"random {i}"))
    world = World(f"random {family}", model, tuple(pairs[:24]), tuple(pairs[24:48]), behaviour=False)

    found = _judged_without(measure_world(world), KEEP_2)

    assert len(pairs) >= 48
    assert (found["kept"], found["outcome"]) == (0, "invalid:instrument")
    assert "preference behind a prefix" in found["lacking"]


def test_without_the_gate_claims_about_random_networks_are_kept():
    kept = [
        _judged_without(measure_world(llama_with_preferred_answers(seed, 48)), WITHOUT_A_GATE)["kept"]
        for seed in range(2)
    ]
    result = _result(stopped=[{"n": 5, "kept": each} for each in kept])

    assert sum(kept) >= 1
    assert "claims about nothing were kept" in result.failures()[0]


def test_of_the_toy_both_heads_are_supported_and_the_six_others_ruled_out():
    found = _judged_circuit(measure_world(toy_induction(72), twin=True), KEEP_2)

    assert [each.outcome for each in found if each.kind == "planted"] == ["supported"] * 2
    assert [each.outcome for each in found if each.kind == "true_null"] == ["ruled_out"] * 6


def test_a_gate_that_lets_nothing_through_is_noticed_at_what_is_planted():
    closed = Rule(gate=lambda *a, **k: dataclasses.replace(decisions.gate(*a, **k), passed=False))
    found = _judged_circuit(measure_world(toy_induction(72)), closed)

    assert {each.outcome for each in found} == {"invalid:instrument"}
    assert len(_result(found).failures()) == 2


def test_every_named_case_ends_with_its_reason_and_one_that_does_not_is_noticed():
    cases = list(_named_cases(KEEP_2))

    assert _result(cases=cases).failures() == []
    assert len(cases) == 10
    wrong = dataclasses.replace(cases[0], found="another claim")
    (said,) = _result(cases=[wrong]).failures()
    assert said.endswith("directions: ended as 'another claim' and not as 'the same claim'")


def test_bounds_hold_at_their_limit_and_not_beyond(heads):
    (one,) = _claims(heads, KEEP_2, nights=1, null=1, winner=0, planted=0, true_null=0)
    kept, not_kept = (dataclasses.replace(one, outcome=each) for each in ("refuted", "inconclusive"))
    planted, lost = (
        dataclasses.replace(one, kind="planted", outcome=each) for each in ("supported", "ruled_out")
    )
    ruled_out, left = (
        dataclasses.replace(one, kind="true_null", outcome=each) for each in ("ruled_out", "supported")
    )

    assert _result([kept, *[not_kept] * 99]).failures() == []
    assert len(_result([kept, *[not_kept] * 98]).failures()) == 1
    assert _result([lost, *[planted] * 19]).failures() == []
    assert len(_result([lost, *[planted] * 18]).failures()) == 1
    assert _result([left, *[ruled_out] * 9]).failures() == []
    assert len(_result([left, *[ruled_out] * 8]).failures()) == 1


def test_power_falls_with_the_level_and_with_the_spread(heads):
    rng = [np.random.default_rng(0) for _ in range(3)]

    clear = power(heads, 2.0, 0.3, 0.005, rng[0], draws=40)
    wide = power(heads, 1.5, 1.0, 0.005, rng[1], draws=40)
    late = power(heads, 1.5, 1.0, sequential.level(1000), rng[2], draws=40)

    assert clear == 1.0
    assert clear > wide > late


def test_a_table_is_kept_and_read_again_and_a_broken_one_is_measured_anew(tmp_path):
    table, path = _table(5), tmp_path / "table.npz"

    path.write_bytes(_written(table))
    again = _read(path)

    assert (again.sites, again.clusters) == (table.sites, table.clusters)
    assert np.array_equal(again.change, table.change)
    assert np.array_equal(again.placebos, table.placebos)
    path.write_bytes(_written(table)[:-50])
    assert _read(path) is None
    assert _read(tmp_path / "none.npz") is None


def test_tables_of_other_models_and_seeds_are_kept_apart():
    models = [random_llama(seed, 2).model for seed in (0, 1)]

    assert len({_kept_at(model, seed) for model in models for seed in (0, 1)}) == 4


def test_the_defaults_are_those_of_the_rule():
    found = rule_defaults()

    assert (found["N_MIN"], found["N_FIRST"], found["N_MOST"]) == (16, 24, 48)
    assert (found["LEVEL_CAP"], found["FDR"], found["W0"]) == (0.005, 0.05, 0.025)
    assert found["SESOI"] == [0.05, 0.1, 0.2, 0.3, 0.5]


@pytest.mark.slow
def test_the_quick_selftest_passes_and_its_numbers_are_those_of_its_seed():
    one, other = ({**run_selftest(3, QUICK).to_dict(), "seconds": None} for _ in range(2))

    assert one["failures"] == []
    assert one["quick"] is True
    assert one["null"]["n"] >= 200
    assert {k: v for k, v in one.items() if k != "seconds"} == {
        k: v for k, v in other.items() if k != "seconds"
    }


@pytest.mark.slow
def test_a_small_selftest_in_its_own_process_writes_progress_and_one_result():
    code = (
        "import mlxterp.selftest.__main__ as m; from mlxterp.selftest import Size; "
        "m.QUICK = Size(smollm2=False, nights=2, networks=1, adversary_claims=5); m.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--quick", "--seed", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
    )

    *progress, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(line) == {"progress"} for line in progress)
    assert last["result"]["seed"] == 1
    assert last["result"]["rule"] == "keep/2"
    assert last["result"]["null"]["n"] == 40 + 20
    assert last["result"]["planted"]["n"] == 10 + 8
    assert last["result"]["adversarial"]["n"] <= 125


def test_a_result_without_claims_of_a_kind_has_no_interval():
    assert _result().to_dict()["null"]["interval"] is None
