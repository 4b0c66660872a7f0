"""How often the keep rule keeps something false, and finds what is there, in worlds with known truth.

All heads of a world are measured once, and claims are judged by lookup, by the functions that the judge uses:
`statistics.decisions`, `sequential.level`, `outcome.told`. Sections:

    null           worst nulls (an effect of exactly S/2) on real residuals; winners of a search over them;
                   claims in worlds without a behaviour, which the gate must stop
    planted        effects of 1.5 to 3 S on real residuals; the heads of the toys' circuits
    true_null      effects below S/4 with a spread of up to S/2; the toys' other heads
    adversarial    five adversaries with a thousand claims each, in five worlds
    named          cases that must end with their own reason
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxterp._version import __version__
from mlxterp.autointerpret.fingerprint import claim_fingerprint
from mlxterp.autointerpret.keep_rule import RULE
from mlxterp.errors import StatisticsError
from mlxterp.selftest.adversaries import CLAIMS, STRATEGIES, WORLD_SPREADS, Attack, attack
from mlxterp.selftest.claims import KEEP_2, Counts, Judged, Rule, Wealth, judge_night, population
from mlxterp.selftest.measured import (
    MODEL,
    MeasuredWorld,
    Progress,
    decide_gate,
    measure_heads,
    measure_world,
    measured_smollm2,
    smollm2_world,
)
from mlxterp.statistics import decisions
from mlxterp.statistics.configuration import rule_defaults
from mlxterp.statistics.decisions import SESOI, Cells, Claim
from mlxterp.statistics.duplicates import fingerprint, same_numbers
from mlxterp.statistics.intervals import exact_rate
from mlxterp.text import percent
from mlxterp.worlds import (
    llama_with_preferred_answers,
    random_llama,
    shuffled_labels,
    toy_induction,
    toy_with_moved_heads,
    weight_shuffled,
    with_effect,
)

SCHEMA = "selftest/1"
NULL_BOUND = 0.01
PLANTED_BOUND = 0.95
TRUE_NULL_BOUND = 0.9
ADVERSARY_BOUND = 1
"""Effects kept by one adversary in one world."""

_N = decisions.N_FIRST + decisions.N_MOST
_INVALID = "invalid:instrument"
_RANDOM_SHARE = 0.05
"""Of a random network's spread, for the quick selftest: its heads then vary by about .005 of the gap."""


@dataclass(frozen=True)
class Size:
    """How much is simulated; `smollm2` False takes the heads of a random network for residuals."""

    smollm2: bool = True
    nights: int = 40
    networks: int = 6
    adversary_claims: int = CLAIMS


FULL = Size()
QUICK = Size(smollm2=False, nights=10, networks=2, adversary_claims=200)


@dataclass(frozen=True)
class Case:
    """A case that must end with its own reason."""

    name: str
    expected: str
    found: str

    @property
    def holds(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True)
class SelftestResult:
    """What became of every claim.

    Attributes:
        claims: of the nights and of the toys' circuits.
        stopped: per world without a behaviour, its name, how many claims were made and how many kept, and
            what its gate lacked.
        attacks: one for each adversary in each world.
        cases: the named reasons.
        facts: configuration: rule, defaults, version, model, seed.
    """

    claims: tuple[Judged, ...]
    stopped: tuple[Mapping[str, Any], ...]
    attacks: tuple[Attack, ...]
    cases: tuple[Case, ...]
    facts: Mapping[str, Any]
    seconds: float

    def of(self, *kinds: str) -> list[Judged]:
        return [each for each in self.claims if each.kind in kinds]

    @property
    def null(self) -> tuple[int, int]:
        """Claims about nothing, and how many of them were kept as an effect."""
        mine = self.of("null", "winner")
        n = len(mine) + sum(each["n"] for each in self.stopped)
        return n, sum(each.kept for each in mine) + sum(each["kept"] for each in self.stopped)

    @property
    def planted(self) -> tuple[int, int]:
        mine = self.of("planted")
        return len(mine), sum(each.outcome == "supported" for each in mine)

    @property
    def true_null(self) -> tuple[int, int]:
        mine = self.of("true_null")
        return len(mine), sum(each.outcome == "ruled_out" for each in mine)

    @property
    def adversarial(self) -> tuple[int, int]:
        return sum(each.claims for each in self.attacks), sum(each.kept for each in self.attacks)

    def failures(self) -> list[str]:
        """The bounds that do not hold, each as a sentence."""
        found = []
        (n, kept), (planted, supported), (nulls, ruled_out) = self.null, self.planted, self.true_null
        if not kept <= NULL_BOUND * n:
            found.append(f"{kept} of {n} claims about nothing were kept; {percent(NULL_BOUND)} are allowed")
        if not supported >= PLANTED_BOUND * planted:
            found.append(
                f"{supported} of {planted} planted effects were supported; {percent(PLANTED_BOUND)} are "
                "needed"
            )
        if not ruled_out >= TRUE_NULL_BOUND * nulls:
            found.append(
                f"{ruled_out} of {nulls} true nulls were ruled out; {percent(TRUE_NULL_BOUND)} are needed"
            )
        found += [
            f"an adversary ({each.strategy}, spread {each.spread:g} S) had {each.kept} of {each.claims} "
            f"claims kept in one world; {ADVERSARY_BOUND} is allowed"
            for each in self.attacks
            if each.kept > ADVERSARY_BOUND
        ]
        found += [
            f"{each.name}: ended as {each.found!r} and not as {each.expected!r}"
            for each in self.cases
            if not each.holds
        ]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; rates with exact 95 % intervals."""
        return {
            "schema": SCHEMA,
            **dict(self.facts),
            "null": _rate(*self.null, "kept") | {"by_kind": self._null_by_kind()},
            "planted": _rate(*self.planted, "supported"),
            "true_null": _rate(*self.true_null, "ruled_out"),
            "adversarial": _rate(*self.adversarial, "kept")
            | {"most_in_one_world": max((each.kept for each in self.attacks), default=0)},
            "attacks": [dataclasses.asdict(each) for each in self.attacks],
            "without_behaviour": [dict(each) for each in self.stopped],
            "named": [dataclasses.asdict(each) | {"holds": each.holds} for each in self.cases],
            "failures": self.failures(),
            "seconds": round(self.seconds, 1),
        }

    def _null_by_kind(self) -> dict[str, Any]:
        found = {
            kind: _rate(len(self.of(kind)), sum(each.kept for each in self.of(kind)), "kept")
            for kind in ("null", "winner")
        }
        n = sum(each["n"] for each in self.stopped)
        return found | {"without_behaviour": _rate(n, sum(e["kept"] for e in self.stopped), "kept")}


def run_selftest(
    seed: int = 0, size: Size = FULL, rule: Rule = KEEP_2, progress: Progress = lambda *_: None
) -> SelftestResult:
    """Measures the worlds and judges every claim. Costs, on two cores, two to four minutes, half of them for
    measuring SmolLM2's heads, which is kept in the cache directory; seconds where it is left out.

    Args:
        seed: of data, nights and adversaries.
        size: `QUICK` leaves SmolLM2 out: it shows that the rule works, and no rates of real residuals.
        rule: the functions that decide.
        progress: called with what is done, how much of it and how much in all.
    """
    began = time.perf_counter()
    claims: list[Judged] = []
    stopped: list[Mapping[str, Any]] = []
    facts: dict[str, Any]
    if size.smollm2:
        world = smollm2_world(seed)
        measured = measured_smollm2(world, seed, progress)
        of, facts = population(measured.table, f"{seed}"), {"model": MODEL, "digest": world.model.digest}
        passed = _passes(measured, rule)
        heads = [(23, 3), (20, 0), (29, 1), (24, 4), (19, 2)]
        for null in (shuffled_labels(world, seed), weight_shuffled(world, seed)):
            progress(f"measuring {null.name}", 0, 1)
            stopped.append(_judged_without(measure_world(null, position="@-1", heads=heads, seed=seed), rule))
        del world
    else:
        network = random_llama(seed, _N)
        table = measure_heads(network)
        # Its heads have effects, and vary as much: placebos as large as what is planted. Those of a model
        # that was trained do not, so the effects are taken out and what is left is made small.
        change = _RANDOM_SHARE * np.stack([with_effect(a, table.gap, 0.0) for a in table.change])
        table = dataclasses.replace(table, change=change)
        of, facts = population(table, f"{seed}"), {"model": network.name, "digest": None}
        passed = True
    rng = np.random.default_rng(seed)
    for night in range(size.nights):
        found = judge_night(of, rng, rule, Counts())
        claims += found if passed else [dataclasses.replace(each, outcome=_INVALID) for each in found]
        progress("judging nights of claims", night + 1, size.nights)
    for toy in (toy_induction(_N, seed), *(toy_with_moved_heads(seed + i, _N) for i in range(3))):
        claims += _judged_circuit(measure_world(toy, seed=seed), rule)
    nulls = _networks(seed, size.networks)
    for done, null in enumerate(nulls, 1):
        stopped.append(_judged_without(measure_world(null, seed=seed), rule))
        progress("worlds without a behaviour", done, 2 * size.networks + 2)
    attacks = []
    for strategy in STRATEGIES:
        for number in range(len(WORLD_SPREADS)):
            attacks.append(attack(of, number, strategy, seed, rule, size.adversary_claims))
            progress("adversaries", len(attacks), len(STRATEGIES) * len(WORLD_SPREADS))
    return SelftestResult(
        claims=tuple(claims),
        stopped=tuple(stopped),
        attacks=tuple(attacks),
        cases=tuple(_named_cases(rule)),
        facts={"rule": RULE, "version": __version__, "defaults": rule_defaults(), "seed": seed}
        | {"quick": not size.smollm2}
        | facts,
        seconds=time.perf_counter() - began,
    )


def _networks(seed: int, n: int) -> Iterator[Any]:
    """Networks without a behaviour, one at a time."""
    for i in range(n):
        yield random_llama(seed + i, decisions.N_MOST)
        yield llama_with_preferred_answers(seed + i, decisions.N_MOST)
    toy = toy_induction(decisions.N_MOST, seed)
    yield shuffled_labels(toy, seed)
    yield weight_shuffled(toy, seed)


def _passes(measured: MeasuredWorld, rule: Rule) -> bool:
    """Whether the gate lets a world's claims be judged: its behaviour is there, and not in its twin."""
    twin = measured.twin
    return decide_gate(measured.gate, rule.gate).passed and (
        twin is None or not decide_gate(twin, rule.gate).passed
    )


def _cells(table: Any, site: int) -> Cells:
    """The confirm cells of a site in the order of looks, as they are."""
    parts = decisions.split(table.clusters, "order")
    names = parts.confirm if len(table.clusters) > decisions.N_MOST else table.clusters
    at = {name: i for i, name in enumerate(table.clusters)}
    chosen = [at[name] for name in names][: decisions.N_MOST]
    return Cells(table.change[site, chosen], table.gap[chosen], tuple(table.clusters[i] for i in chosen))


def _bar(table: Any, site: int) -> float | None:
    near, total = table.placebos[site], float(table.gap.sum())
    return decisions.placebo_bar(table.change[near].sum(axis=1) / total) if total else None


def _judged_circuit(measured: MeasuredWorld, rule: Rule) -> list[Judged]:
    """One claim about each head of a hand-built circuit, S = .1."""
    passed, wealth, found = _passes(measured, rule), Wealth(rule), []
    for site, effect in measured.effects.items():
        at = measured.table.sites.index(site)
        cells = _cells(measured.table, at)
        look, alpha = wealth.judge(cells, Claim(0.1, bar=_bar(measured.table, at)), [site])
        ended = "inconclusive" if look is None else look.outcome
        found.append(
            Judged(
                kind="planted" if effect else "true_null",
                site=f"{measured.name}, {site}",
                effect=effect,
                sesoi=0.1,
                spread=0.0,
                alpha=alpha,
                outcome=ended if passed else _INVALID,
                n=len(cells) if look is None else look.n,
            )
        )
    return found


def _judged_without(measured: MeasuredWorld, rule: Rule) -> dict[str, Any]:
    """Claims about the strongest heads of a world without a behaviour, S = .05: what its gate lets through of
    them, and what is then kept."""
    gate, wealth, kept = decide_gate(measured.gate, rule.gate), Wealth(rule), 0
    table = measured.table
    strongest = np.argsort(-np.abs(table.change[:, : decisions.EXPLORE_MIN].sum(axis=1)))[:5].tolist()
    for at in strongest if gate.passed else ():
        try:
            claim = Claim(SESOI[0], "either", _bar(table, at))
        except StatisticsError:
            continue
        look, _ = wealth.judge(_cells(table, at), claim)
        kept += look is not None and look.outcome in ("supported", "refuted")
    return {
        "world": measured.name,
        "n": len(strongest),
        "kept": kept,
        "outcome": "judged" if gate.passed else _INVALID,
        "lacking": list(gate.lacking),
    }


def _named_cases(rule: Rule) -> Iterator[Case]:
    claim = {"site": ["L9.H6"], "metric": "logit_diff", "sesoi": 0.1, "direction": "increase"}
    ways = [{**claim, "intervention": {"op": "patch", "source": side}} for side in ("clean", "corrupted")]

    def same(mirrored: bool) -> str:  # noqa: FBT001
        one, other = (claim_fingerprint(each, "setup", mirrored=mirrored) for each in ways)
        return "the same claim" if one == other else "another claim"

    yield Case("noising where every pair comes in both directions", "the same claim", same(mirrored=True))
    yield Case("noising where pairs are not mirrored", "another claim", same(mirrored=False))

    rng = np.random.default_rng(0)
    own = rng.normal(0, 0.2, size=40)
    forged = {
        "a result in another order": rng.permutation(own),
        "a result rounded to three digits": np.array([float(f"{x:.3g}") for x in own]),
        "a result jittered by 1e-12": own + 1e-12,
        "a result padded with zeros": np.r_[own, np.zeros(40)],
    }
    for name, copy in forged.items():
        found = same_numbers(fingerprint(own), fingerprint(copy))
        yield Case(name, "a copy", "a copy" if found else "new")
    fresh = same_numbers(fingerprint(own), fingerprint(rng.normal(0, 0.2, size=40)))
    yield Case("another result of the same kind", "new", "a copy" if fresh else "new")
    zeros = same_numbers(fingerprint([0.0] * 9), fingerprint([0.0] * 9))
    yield Case("two honest zeros", "new", "a copy" if zeros else "new")

    few = decisions.split([f"c{i}" for i in range(8)], "salt")
    expected = "needs at least 24 independent clusters, setup.py has 8"
    yield Case("eight independent clusters", expected, few.reason or "judged")
    cells = Cells(np.full(8, 3.0), np.full(8, 10.0), tuple(f"c{i}" for i in range(8)))
    look = rule.judge(cells, Claim(0.1, bar=0.0), 0.005)
    expected = "inconclusive: 8 independent clusters; a verdict takes 16"
    yield Case("a look at eight clusters", expected, f"{look.outcome}: {', '.join(look.missing)}")


def _rate(n: int, count: int, name: str) -> dict[str, Any]:
    low, high = exact_rate(count, n)[1:] if n else (float("nan"), float("nan"))
    return {"n": n, name: count, "interval": [low, high] if n else None}
