"""One turn of the API researcher, on its own thread: conversations with the model until it ends the turn.

Contains: the handling of each stop reason, and the cost of a call within the supervisor's budget. See
`mlxterp.llm.client` for one call, `conversation.py` for the messages, `tools.py` for the tools.

A turn ends when the model ends it, when the budget does not pay for another question, or when the service
refuses.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlxterp.autointerpret.contract import EXPERIMENT, digest
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.errors import LlmRejected
from mlxterp.llm.client import MessagesClient
from mlxterp.llm.faults import RequestTooLong, TransientError
from mlxterp.llm.prices import OF, Usage, price_of
from mlxterp.llm.spending_limit import Cost, charge_call
from mlxterp.llm.stream import Answer
from mlxterp.text import percent
from mlxterp_agent import prompts
from mlxterp_agent.endings import refused
from mlxterp_agent.outcome import repeat_text
from mlxterp_agent.platform import Clock, read_or_none
from mlxterp_agent.researcher_notes import notes_of
from mlxterp_agent.researchers.anthropic_api.conversation import Conversation
from mlxterp_agent.researchers.anthropic_api.supervisor_queue import SupervisorQueue
from mlxterp_agent.researchers.anthropic_api.tools import Tools
from mlxterp_agent.researchers.base import (
    IDLE,
    Done,
    ExperimentOutcome,
    Failed,
    ResearcherState,
    Situation,
)
from mlxterp_agent.storage.record import digests_of
from mlxterp_agent.text import duration, one_line

MAX_TOKENS = 16_000
"""Tokens of one answer, thinking included."""

LEAST_TOKENS = 1_000
"""When the budget allows only shorter answers than this, it counts as used up."""

ROUNDS = 40
"""Answers without an experiment after which a turn ends: a model that only reads costs money too."""

UNUSABLE = 10
"""Answers in a row that cannot be used (cut, empty, refused) after which the researcher fails."""

_REFUSALS = 3


class BudgetUsedUp(Exception):
    """The next call could cost more than is left."""


@dataclass(frozen=True)
class Connections:
    """The resources of a turn, the same in every turn.

    Attributes:
        client: of the service.
        queue: of work for the supervisor's thread.
        clock: measures the time that is left.
        show: is called with one line for the live screen.
        run: runs experiment.py through the supervisor; None if there is nothing new to run.
        usage: totals of the answers of all turns.
    """

    client: MessagesClient
    queue: SupervisorQueue
    clock: Clock
    show: Callable[[str], None]
    run: Callable[[], ExperimentOutcome | None]
    usage: Usage


class Reservation(NamedTuple):
    """A call that the budget has room for: its id in the journal, its highest cost, its longest answer."""

    call: str
    worst: Cost
    max_tokens: int


class SupervisedBudget:
    """The cost of a turn's calls, in the supervisor's budget and journal."""

    def __init__(self, situation: Situation, queue: SupervisorQueue, model: str) -> None:
        self._situation = situation
        self._queue = queue
        self._model = model
        self._priced = price_of(model)

    def reserve(self, prompt: int) -> Reservation:
        """Reserves the worst case of a call with at most so many tokens in its prompt; its answer is
        shortened to what is left.

        Raises:
            BudgetUsedUp: the answer would be too short.
        """
        reserved = self._queue.ask(lambda: self._reserve(prompt))
        if reserved is None:
            raise BudgetUsedUp("what is left of the budget does not pay for another question")
        return reserved

    def _reserve(self, prompt: int) -> Reservation | None:
        left = self._situation.budget_now()
        room = float(MAX_TOKENS)
        if left.usd_left is not None:
            for_output = left.usd_left - self._priced.at_most(prompt, 0)
            room = min(room, for_output * 1e6 / self._priced.at_most(0, 1_000_000))
        if left.tokens_left is not None:
            room = min(room, left.tokens_left - prompt)
        if room < LEAST_TOKENS:
            return None
        output = int(room)
        worst = Cost(self._priced.at_most(prompt, output), prompt + output)
        reserved = Reservation(uuid.uuid4().hex, worst, output)
        answer_usd = self._priced.at_most(0, output)
        self._situation.hold(
            reserved.call, worst.usd, worst.tokens, answer_usd=answer_usd, answer_tokens=output
        )
        return reserved

    def cost_of(self, answer: Answer) -> Cost:
        return Cost(self._priced.usd(answer.tokens), answer.tokens.total, answer.tokens)

    def settle(self, call: str, cost: Cost) -> None:
        """Charges what a call cost instead of what was reserved for it."""
        details: dict[str, Any] = {}
        if cost.usage is not None:
            details = {"usage": cost.usage._asdict()}
        elif cost.lost:
            details = {"lost": one_line(cost.lost, 200)}
        if details:
            details |= {"model": self._model, "prices": OF, "estimated": self._priced.estimated}
        charge = self._situation.charge
        self._queue.ask(lambda: charge(cost.usd, cost.tokens, call=call, details=details), always=True)


class Turn:
    """One turn.

    Attributes:
        last: the text on the last outcome at the beginning of a conversation.
        ran: whether an experiment ran.
    """

    def __init__(self, situation: Situation, connections: Connections, last: str) -> None:
        self.last = last
        self.ran = False
        self._situation = situation
        self._with = connections
        self._entries: list[ExperimentEntry] = list(situation.entries)
        self._budget = SupervisedBudget(situation, connections.queue, connections.client.model)
        left = situation.deadline_left
        self._until = None if left is None else connections.clock.elapsed() + left
        self._tools = Tools(situation.project, self._run_experiment, lambda: self._entries, connections.show)
        self._rounds = 0
        self._steer = situation.steer
        self._new_guidance = ""

    async def take(self) -> ResearcherState:
        """Runs the whole turn; returns the state after it."""
        try:
            return await self._converse()
        except BudgetUsedUp as problem:
            return Done(str(problem), ending="question_cost")
        except LlmRejected as problem:
            return Failed(str(problem), refused(problem.status))
        except TransientError as problem:
            if self._until is not None:
                return Done(f"{problem}, and the time ends before it is back", ending="service_for_now")
            patience = duration(self._with.client.policy.patience)
            return Failed(f"{problem}; the service did not answer for {patience}", "service")
        finally:
            self._note_usage()

    async def _converse(self) -> ResearcherState:
        talk, shortened, unusable, refusals = self._begin(), False, 0, 0
        while self._rounds < ROUNDS:
            if talk.too_long:
                talk = self._begin()
            try:
                answer = await self._ask(talk)
            except RequestTooLong as problem:
                if shortened:
                    return Failed(f"the model's context is too small for this investigation ({problem})")
                talk, shortened = self._begin(), True
                continue
            self._rounds += 1
            shortened = False
            defect = _defect(answer)
            if defect is None:
                unusable = refusals = 0
                talk.add_answer(answer)
                if answer.calls:
                    talk.add_results([(call, self._tools.use(call)) for call in answer.calls])
                    if self._new_guidance:
                        # A block of our own, which no result of a tool can imitate.
                        talk.add_text(prompts.guidance_text(self._new_guidance))
                        self._new_guidance = ""
                elif answer.stop_reason != "pause_turn":
                    return IDLE
                continue
            unusable += 1
            refusals += answer.stop_reason == "refusal"
            if unusable >= UNUSABLE:
                return Failed(f"{UNUSABLE} answers in a row could not be used; the last one: {defect}")
            if refusals >= _REFUSALS:
                return Failed(f"the model declined {_REFUSALS} times in a row to continue")
            if answer.stop_reason == "max_tokens":
                talk.add_text(defect)
            else:
                talk = self._begin()
        return IDLE

    async def _ask(self, talk: Conversation) -> Answer:
        """The model's answer, with retries while the service fails and there is time."""

        async def call() -> Answer:
            reserved = self._budget.reserve(talk.most_tokens)
            self._with.show("thinking")
            params = {**talk.request(), "max_tokens": reserved.max_tokens}
            return await charge_call(
                lambda: self._with.client.stream(params),
                worst=reserved.worst,
                cost_of=self._budget.cost_of,
                settle=lambda cost: self._budget.settle(reserved.call, cost),
            )

        def note_wait(problem: TransientError, seconds: float) -> None:
            message = f"{problem}; again in {duration(seconds)}"
            self._with.queue.ask(lambda: self._situation.note(message))
            self._with.show(f"waiting: {message}")

        until, clock = self._until, self._with.clock
        answer = await self._with.client.call_with_retries(
            call,
            seconds_left=None if until is None else lambda: until - clock.elapsed(),
            on_wait=note_wait,
        )
        talk.count(answer.tokens)
        self._with.usage.add(answer.tokens, self._budget.cost_of(answer).usd)
        return answer

    def _begin(self) -> Conversation:
        """A new conversation, with the present state of the investigation."""
        facts = self._situation.facts
        opening = prompts.opening_text(
            facts=facts,
            entries=self._entries,
            budget=self._with.queue.ask(self._situation.budget_now),
            steer=self._steer,
            last=self.last,
            notes=notes_of(self._situation.project),
        )
        return Conversation(prompts.system_text(self._situation.project, facts), opening)

    def _run_experiment(self) -> str:
        outcome = self._with.run()
        if outcome is None:
            return self._old_verdict()
        if outcome.guidance:
            self._steer = self._new_guidance = outcome.guidance
        if outcome.run is not None:
            self._rounds, self.ran = 0, True
        known = {entry.experiment_id for entry in self._entries}
        self._entries += [entry for entry in outcome.entries if entry.experiment_id not in known]
        self.last = outcome.text
        return outcome.text

    def _old_verdict(self) -> str:
        """What came of the present experiment.py, which has run already."""
        project = self._situation.project
        sha = digest(read_or_none(project / EXPERIMENT) or b"")
        lines = [entry for entry in self._entries if digests_of(entry).get("experiment") == sha]
        if not lines:
            return "not run: experiment.py has not changed since it ran. Write another one first."
        return repeat_text(lines, self._with.queue.ask(self._situation.budget_now), project)

    def _note_usage(self) -> None:
        usage = self._with.usage
        if usage.calls and not self._with.queue.closed.is_set():
            text = (
                f"{usage.calls} answers so far, ${usage.usd:.4f}; {percent(usage.cache_share)} of the input "
                "tokens were read from the cache"
            )
            self._with.queue.ask(lambda: self._situation.note(text))


def _defect(answer: Answer) -> str | None:
    """Why an answer cannot be used, as the model reads it; None if it can."""
    match answer.stop_reason:
        case "max_tokens":
            return (
                "Your answer was cut because it was too long. Answer again, shorter: one tool call at a time."
            )
        case "refusal":
            return "the model declined to answer"
        case "model_context_window_exceeded":
            return "the context was full"
    empty = all(block.get("type") == "thinking" for block in answer.content)
    return "the answer was empty" if empty and answer.stop_reason != "pause_turn" else None
