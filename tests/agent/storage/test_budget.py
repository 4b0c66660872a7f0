"""Limits against sums from the journal: a crash refunds nothing, and setting a clock buys nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxterp_agent.exit_codes import BadLimit
from mlxterp_agent.platform import FakeClock, SystemClock
from mlxterp_agent.storage.budget import FASTEST, Budget, Limits, bound_open_calls
from mlxterp_agent.storage.history import read_history
from mlxterp_agent.storage.journal import Journal

KEPT = [{"entry": {}, "record": {"tier": "lead"}}]
NOT_KEPT = [{"entry": {}, "record": {"tier": None}}]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(tmp_path: Path, clock: FakeClock) -> Journal:
    return Journal(tmp_path / "journal.jsonl", clock=clock)


def reopened(journal: Journal, clock: FakeClock) -> Journal:
    """The journal as the next supervisor finds it, with nothing of this one's memory."""
    return Journal(journal.path, clock=clock)


def test_experiments_count_when_they_are_announced_and_still_count_after_a_crash(
    journal: Journal, clock: FakeClock
):
    budget = Budget(Limits(experiments=2), clock, journal)
    journal.append("intent", run=1)
    assert budget.stop_reason() is None
    journal.append("intent", run=2)

    assert budget.stop_reason() == "the budget of 2 experiments is used up"
    assert Budget(Limits(experiments=2), clock, reopened(journal, clock)).spent().experiments == 2
    assert budget.reserve(10) is None


def test_time_is_summed_over_supervisors_and_the_time_between_them_is_free(
    journal: Journal, clock: FakeClock
):
    first = Budget(Limits(seconds=100), clock, journal)
    journal.append("start")
    clock.advance(30)
    journal.append("clock")
    assert first.spent().seconds == 30
    clock.advance(1000)
    again = reopened(journal, clock)

    second = Budget(Limits(seconds=100), clock, again)
    again.append("start")
    clock.advance(20)

    assert second.spent().seconds == 50
    assert second.seconds_left() == 50


def test_time_asleep_counts_for_the_budget(journal: Journal, clock: FakeClock):
    budget = Budget(Limits(seconds=100), clock, journal)

    clock.sleep(200)

    assert budget.stop_reason() == "the budget of 0.0278 hours is used up"


def test_setting_the_wall_clock_moves_only_until(journal: Journal, clock: FakeClock):
    budget = Budget(Limits(seconds=100, until=clock.wall() + 500), clock, journal)
    clock.set_wall(clock.wall() - 86_400)
    assert (budget.spent().seconds, budget.seconds_left()) == (0, 100)

    clock.set_wall(clock.wall() + 2 * 86_400)

    assert budget.stop_reason() == "the time set by --until has come"


def test_a_time_box_is_shortened_to_what_is_left_and_refused_when_that_is_too_little(
    journal: Journal, clock: FakeClock
):
    budget = Budget(Limits(seconds=100), clock, journal)
    assert budget.reserve(60) == 60

    clock.advance(70)
    shortened = budget.reserve(60)
    clock.advance(29.5)

    assert shortened == 30
    assert budget.reserve(60) is None


def test_without_limits_nothing_stops(journal: Journal, clock: FakeClock):
    budget = Budget(Limits(), clock, journal)
    clock.advance(1e9)

    assert (budget.stop_reason(), budget.seconds_left(), budget.reserve(5)) == (None, None, 5)


def test_a_streak_without_a_keep_stops_and_a_keep_ends_it(journal: Journal, clock: FakeClock):
    budget = Budget(Limits(streak=2), clock, journal)
    for lines in (NOT_KEPT, KEPT, NOT_KEPT):
        journal.append("result", lines=lines)
    assert budget.spent().streak == 1

    journal.append("result", lines=[])

    assert budget.stop_reason() == "2 experiments in a row brought nothing that is kept"
    assert Budget(Limits(streak=2), clock, reopened(journal, clock)).spent().streak == 2


def test_starting_again_after_a_streak_begins_a_new_one(journal: Journal, clock: FakeClock):
    Budget(Limits(streak=1), clock, journal)
    journal.append("result", lines=[])
    journal.append("stop", reason="streak")

    assert Budget(Limits(streak=1), clock, reopened(journal, clock)).stop_reason() is None


def test_a_run_that_never_came_to_an_end_is_no_part_of_a_streak(journal: Journal, clock: FakeClock):
    budget = Budget(Limits(streak=1), clock, journal)

    journal.append("result", again=True, lines=[])

    assert budget.stop_reason() is None


def test_costs_add_up_over_starts_and_unknown_is_not_zero(journal: Journal, clock: FakeClock):
    budget = Budget(Limits(usd=1.0, tokens=500), clock, journal)
    assert budget.spent().usd is None

    budget.charge(0.4, None)
    budget.charge(0.7, 100)

    assert budget.spent().usd == pytest.approx(1.1)
    assert budget.spent().tokens == 100
    assert budget.stop_reason() == "the budget of $1.00 is used up"
    assert Budget(Limits(tokens=100), clock, reopened(journal, clock)).stop_reason() == (
        "the budget of 100 tokens is used up"
    )


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "5 dollars", True])
def test_a_limit_that_limits_nothing_is_refused(value: float):
    with pytest.raises(BadLimit, match="limit usd is"):
        Limits(usd=value)


def test_the_systems_clocks_go_forward_and_count_the_same_seconds_while_awake():
    clock = SystemClock()

    before = (clock.monotonic(), clock.elapsed(), clock.wall())
    after = (clock.monotonic(), clock.elapsed(), clock.wall())

    assert before[0] <= after[0]
    assert before[1] <= after[1]
    assert after[2] > 1_700_000_000


def test_a_call_that_a_kill_left_open_costs_at_most_what_it_can_have_got_by_then(
    journal: Journal, clock: FakeClock
):
    journal.append("start", config={})
    budget = Budget(Limits(usd=1.0), clock, journal)
    budget.hold("short", 0.50, 16_500, answer_usd=0.40, answer_tokens=16_000)
    last = clock.elapsed() + 3.0

    ((call, usd, tokens),) = bound_open_calls(read_history(journal), last)

    written = FASTEST * (3.0 + 5.0)
    assert call == "short"
    assert usd == pytest.approx(0.10 + 0.40 * written / 16_000)
    assert tokens == 500 + written
    assert bound_open_calls(read_history(journal), last + 60)[0].usd == pytest.approx(0.50)


@pytest.mark.parametrize("alive_until", [None, -1000.0], ids=["no heartbeat", "one from before"])
def test_without_a_heartbeat_after_it_a_call_that_is_open_costs_what_was_reserved(
    journal: Journal, clock: FakeClock, alive_until: float | None
):
    journal.append("start", config={})
    Budget(Limits(usd=1.0), clock, journal).hold("a", 0.5, 500, answer_usd=0.4, answer_tokens=400)

    assert bound_open_calls(read_history(journal), alive_until) == []


def test_what_a_call_may_have_cost_stays_spent_until_it_is_settled(journal: Journal, clock: FakeClock):
    first = Budget(Limits(usd=1.0), clock, journal)
    first.hold("call", 0.6, 600)
    assert first.spent().usd is None

    again = reopened(journal, clock)
    second = Budget(Limits(usd=1.0), clock, again)
    assert (second.spent().usd, second.spent().tokens) == (0.6, 600)
    second.charge(0.1, 100, call="call")

    assert (second.spent().usd, second.spent().tokens) == (0.1, 100)
