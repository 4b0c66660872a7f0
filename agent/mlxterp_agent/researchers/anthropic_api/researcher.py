"""The researcher behind `--agent api`: a model of the Messages API with five tools, in a thread of its own.

Lives here: the turn, what each way of stopping means, and what passes between the thread and the supervisor.
One question to the service is `calls.py`, what is sent `conversation.py`, what the model can do `tools.py`.

A turn is one or more conversations. It ends when the model ends it, when the budget does not pay for another
question, or when the service refuses. The supervisor runs experiment.py only while `run_experiment` waits for
it, so what runs is what the model meant to run.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent import prompts
from mlxterp_agent.platform import Clock, SystemClock
from mlxterp_agent.researchers.anthropic_api import transport
from mlxterp_agent.researchers.anthropic_api.calls import (
    CALL_SECONDS,
    Calls,
    NoMoney,
    NoTime,
    Reservation,
    Sums,
)
from mlxterp_agent.researchers.anthropic_api.conversation import Conversation
from mlxterp_agent.researchers.anthropic_api.service_faults import Refused, TooLong
from mlxterp_agent.researchers.anthropic_api.stream import Answer
from mlxterp_agent.researchers.anthropic_api.supervisor_queue import Closed, SupervisorQueue
from mlxterp_agent.researchers.anthropic_api.tools import Tools
from mlxterp_agent.researchers.base import (
    IDLE,
    Done,
    DriverState,
    ExperimentOutcome,
    Failed,
    Situation,
    Working,
)
from mlxterp_agent.text import one_line

ROUNDS = 40
"""Answers without an experiment after which a turn ends: a model that only reads costs money for nothing."""

UNUSABLE = 10
"""Answers in a row that cannot be used (cut, empty, refused) after which the researcher gives up."""

_SENT_BACK = (
    "Your last turn ended without an experiment, and the budget is not used up. Test a rival explanation, "
    "repeat the main result on prompts it was not found on, or look for what would prove it wrong."
)

_REFUSALS = 3
_UNHEARD = 4
_END = 2.0


class ApiResearcher:
    """A driver (see `mlxterp_agent.researchers.base`).

    Args:
        model: any name that the service knows.
        api_key: held by this object only; it is in no environment and in no file.
        base_url: an Anthropic-compatible service; None is Anthropic's.
        nap: how the researcher sleeps while the service is away.
    """

    name = "anthropic-api"

    def __init__(
        self,
        *,
        model: str,
        api_key: str,
        base_url: str | None = None,
        clock: Clock | None = None,
        nap: Callable[[float], object] | None = None,
        call_seconds: float = CALL_SECONDS,
        read_timeout: float = transport.READ_TIMEOUT,
    ) -> None:
        self.model: str | None = model
        self.session: str | None = uuid.uuid4().hex[:12]
        self._clock = clock or SystemClock()
        self._handover = SupervisorQueue()
        self._calls = Calls(
            model=model,
            api_key=api_key,
            base_url=base_url,
            handover=self._handover,
            clock=self._clock,
            nap=nap or self._handover.closed.wait,
            doing=self._now,
            call_seconds=call_seconds,
            read_timeout=read_timeout,
        )
        self._told: queue.SimpleQueue[ExperimentOutcome] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._state: DriverState = IDLE
        self._turn: _Turn | None = None
        self._doing = ""
        self._offers = False
        self._polls_of_offer = 0
        self._broken: BaseException | None = None

    @property
    def sums(self) -> Sums:
        """What the calls came to so far."""
        return self._calls.sums

    def begin_turn(self, situation: Situation) -> None:
        self._doing = "beginning"
        turn = _Turn(situation, self._calls, self._handover, self._clock, self._now, self._run_experiment)
        while (told := self._heard()) is not None:
            turn.last = told.text
        if self._turn is not None and not self._turn.ran:
            turn.last = _SENT_BACK
        self._turn = turn
        self._thread = threading.Thread(target=self._work, args=(turn,), name="researcher", daemon=True)
        self._thread.start()

    def poll(self) -> DriverState:
        self._handover.serve()
        if self._thread is None:
            return self._state
        if self._thread.is_alive():
            self._polls_of_offer += self._offers
            return Working(self._doing, offers=self._offers)
        self._thread = None
        self._handover.serve()
        if self._broken is not None:
            raise self._broken
        return self._state

    def tell(self, told: ExperimentOutcome) -> None:
        self._told.put(told)

    def close(self) -> None:
        """Ends the thread. A call that is under way is given up; what was put aside for it stays charged."""
        self._handover.closed.set()
        if self._thread is not None:
            self._thread.join(_END)
        self._handover.serve()
        self._calls.close()

    def _heard(self) -> ExperimentOutcome | None:
        try:
            return self._told.get_nowait()
        except queue.Empty:
            return None

    def _now(self, doing: str) -> None:
        self._doing = one_line(doing, 120)

    def _work(self, turn: _Turn) -> None:
        try:
            self._state = turn.take()
        except Closed:
            self._state = IDLE
        except BaseException as problem:  # noqa: BLE001 - `poll` raises it again on the supervisor's thread
            self._broken = problem

    def _run_experiment(self) -> ExperimentOutcome | None:
        """Offers experiment.py to the supervisor and waits for what it says. None: it has nothing to run."""
        self._now("waiting for the verdict")
        self._polls_of_offer, self._offers = 0, True
        try:
            while True:
                try:
                    return self._told.get(timeout=0.05)
                except queue.Empty:
                    self._handover.check()
                    if self._polls_of_offer >= _UNHEARD:
                        # Each poll is followed by a look at experiment.py: these bytes are no news.
                        return self._heard()
        finally:
            self._offers = False


class _Turn:
    """One turn, on the researcher's thread."""

    def __init__(
        self,
        situation: Situation,
        calls: Calls,
        handover: SupervisorQueue,
        clock: Clock,
        doing: Callable[[str], None],
        run: Callable[[], ExperimentOutcome | None],
    ) -> None:
        self._situation = situation
        self._calls = calls
        self._handover = handover
        self._run = run
        self._entries: list[ExperimentEntry] = list(situation.entries)
        self.last = ""
        self.ran = False
        self._purse = Reservation(
            left=situation.budget_now, hold=situation.hold, charge=situation.charge, note=situation.note
        )
        left = situation.deadline_left
        self._until = None if left is None else clock.elapsed() + left
        self._tools = Tools(situation.project, self._run_experiment, lambda: self._entries, doing)
        self._rounds = 0

    def take(self) -> DriverState:
        """The whole turn; gives the state after it."""
        try:
            return self._conversations()
        except NoMoney as problem:
            return Done(str(problem))
        except NoTime as problem:
            return Done(str(problem))
        except Refused as problem:
            return Failed(str(problem))
        finally:
            self._say_sums()

    def _conversations(self) -> DriverState:
        talk, same, shrunk, unusable, refusals = self._new(), False, False, 0, 0
        while self._rounds < ROUNDS:
            if talk.too_long:
                talk, same = self._new(), False
            try:
                answer = self._calls.ask(talk.request(), self._purse, until=self._until, same_talk=same)
            except TooLong as problem:
                if shrunk:
                    return Failed(f"the model's context is too small for this investigation ({problem})")
                talk, same, shrunk = self._new(), False, True
                continue
            self._rounds += 1
            same, shrunk = True, False
            trouble = _trouble(answer)
            if trouble is not None:
                unusable += 1
                if unusable >= UNUSABLE:
                    return Failed(f"{UNUSABLE} answers in a row could not be used; the last one: {trouble}")
                if answer.stop_reason == "refusal":
                    refusals += 1
                    if refusals >= _REFUSALS:
                        return Failed(f"the model declined {_REFUSALS} times in a row to go on")
                if answer.stop_reason == "max_tokens":
                    talk.say(trouble)
                else:
                    talk, same = self._new(), False
                continue
            unusable = refusals = 0
            talk.heard(answer)
            if answer.calls:
                talk.results([(call, self._tools.use(call)) for call in answer.calls])
            elif answer.stop_reason != "pause_turn":
                return IDLE
        return IDLE

    def _new(self) -> Conversation:
        """A conversation from its beginning, with what is known by now."""
        budget = self._handover.ask(self._situation.budget_now)
        system = prompts.system_text(self._situation.project, self._situation.facts)
        return Conversation(
            system,
            prompts.opening_text(
                facts=self._situation.facts,
                entries=self._entries,
                budget=budget,
                steer=self._situation.steer,
                last=self.last,
            ),
        )

    def _run_experiment(self) -> str:
        told = self._run()
        if told is None:
            return "not run: experiment.py has not changed since it ran. Write another one first."
        if told.run is not None:
            self._rounds, self.ran = 0, True
        known = {entry.experiment_id for entry in self._entries}
        self._entries += [entry for entry in told.entries if entry.experiment_id not in known]
        self.last = told.text
        return told.text

    def _say_sums(self) -> None:
        sums = self._calls.sums
        if sums.calls and not self._handover.closed.is_set():
            words = (
                f"{sums.calls} answers so far, ${sums.usd:.4f}; {sums.cache_share:.0%} of the input tokens "
                "were read from the cache"
            )
            self._handover.ask(lambda: self._purse.note(words))


def _trouble(answer: Answer) -> str | None:
    """Why an answer cannot be used, in words to the model; None if it can."""
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
