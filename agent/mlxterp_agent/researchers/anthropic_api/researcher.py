"""The API researcher: a model of the Messages API with five tools, in its own thread.

Contains: the thread, and its exchange with the supervisor. See `turn.py` for a turn.

The supervisor runs experiment.py only while `run_experiment` waits for it, so what runs is what the model
meant to run.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import uuid
from collections.abc import Callable

from mlxterp.llm.client import CallPolicy, MessagesClient, Pause
from mlxterp.llm.prices import Usage
from mlxterp_agent.platform import Clock, SystemClock
from mlxterp_agent.researchers.anthropic_api.supervisor_queue import Closed, SupervisorQueue
from mlxterp_agent.researchers.anthropic_api.turn import Connections, Turn
from mlxterp_agent.researchers.base import (
    IDLE,
    ExperimentOutcome,
    ResearcherState,
    Situation,
    Working,
)
from mlxterp_agent.text import one_line

CALL_SECONDS = 900.0
"""Seconds for one question, from its first byte to the last of the answer."""

READ_SECONDS = 120.0
"""Seconds without a byte after which a call counts as lost. A live stream sends a ping every few seconds."""

PATIENCE = 12 * 3600.0
"""The longest wait for a failing service, in seconds, when nothing else limits the time."""

_SENT_BACK = (
    "Your last turn ended without an experiment, and the budget is not used up. Test a rival explanation, "
    "repeat the main result on prompts it was not found on, or look for what would prove it wrong."
)

_POLLS_WITHOUT_OUTCOME = 4
_END_SECONDS = 2.0


class ApiResearcher:
    """A researcher (see `mlxterp_agent.researchers.base`).

    Args:
        model: any name that the service knows.
        api_key: held by this object only; it is in no environment and in no file.
        base_url: an Anthropic-compatible service; None is Anthropic's.
        pause: waits a second at a time while the service fails.

    Attributes:
        usage: totals of the answers of all turns.
    """

    name = "anthropic-api"

    def __init__(
        self,
        *,
        model: str,
        api_key: str,
        base_url: str | None = None,
        clock: Clock | None = None,
        pause: Pause = asyncio.sleep,
        call_seconds: float = CALL_SECONDS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self.model: str | None = model
        self.session: str | None = uuid.uuid4().hex[:12]
        self.usage = Usage()
        self._clock = clock or SystemClock()
        self._pause = pause
        policy = CallPolicy(
            attempts=None,
            patience=PATIENCE,
            call_seconds=call_seconds,
            read_seconds=read_seconds,
            pause=self._wait,
        )
        self._queue = SupervisorQueue()
        client = MessagesClient(model, api_key=api_key, base_url=base_url, policy=policy)
        self._connections = Connections(
            client, self._queue, self._clock, self._show, self._run_experiment, self.usage
        )
        self._outcomes: queue.SimpleQueue[ExperimentOutcome] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._cancel: Callable[[], object] = lambda: None
        self._state: ResearcherState = IDLE
        self._turn: Turn | None = None
        self._doing = ""
        self._offers = False
        self._polls_of_offer = 0
        self._broken: BaseException | None = None

    @property
    def answered(self) -> bool:
        return self.usage.calls > 0

    def begin_turn(self, situation: Situation) -> None:
        self._doing = "beginning"
        last = ""
        while (outcome := self._next_outcome()) is not None:
            last = outcome.text
        if self._turn is not None and not self._turn.ran:
            last = _SENT_BACK
        self._turn = Turn(situation, self._connections, last)
        self._thread = threading.Thread(target=self._work, args=(self._turn,), name="researcher", daemon=True)
        self._thread.start()

    def poll(self) -> ResearcherState:
        self._queue.serve()
        if self._thread is None:
            return self._state
        if self._thread.is_alive():
            self._polls_of_offer += self._offers
            return Working(self._doing, offers=self._offers)
        self._thread = None
        self._queue.serve()
        if self._broken is not None:
            raise self._broken
        return self._state

    def tell(self, outcome: ExperimentOutcome) -> None:
        self._outcomes.put(outcome)

    def close(self) -> None:
        """Ends the thread at once. An open call is cancelled and charged what was reserved."""
        self._queue.closed.set()
        self._cancel()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)
        self._queue.serve()

    def _next_outcome(self) -> ExperimentOutcome | None:
        try:
            return self._outcomes.get_nowait()
        except queue.Empty:
            return None

    def _show(self, doing: str) -> None:
        self._doing = one_line(doing, 120)

    def _work(self, turn: Turn) -> None:
        try:
            self._state = asyncio.run(self._take(turn))
        except (Closed, asyncio.CancelledError):
            self._state = IDLE
        except BaseException as problem:  # noqa: BLE001 - `poll` raises it again on the supervisor's thread
            self._broken = problem

    async def _take(self, turn: Turn) -> ResearcherState:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(task.cancel)

        self._cancel = cancel
        self._queue.check()  # it may have been closed before it could be cancelled
        try:
            return await turn.take()
        finally:
            await self._connections.client.close()

    async def _wait(self, seconds: float) -> None:
        """Waits by the clock, which also counts the time that the machine sleeps."""
        until = self._clock.elapsed() + seconds
        while (left := until - self._clock.elapsed()) > 0:
            self._queue.check()
            await self._pause(min(left, 1.0))

    def _run_experiment(self) -> ExperimentOutcome | None:
        """Offers experiment.py to the supervisor and waits for the outcome; None if nothing is new."""
        self._show("waiting for the verdict")
        self._polls_of_offer, self._offers = 0, True
        try:
            while True:
                try:
                    return self._outcomes.get(timeout=0.05)
                except queue.Empty:
                    self._queue.check()
                    if self._polls_of_offer >= _POLLS_WITHOUT_OUTCOME:
                        # Each poll is followed by a look at experiment.py: these bytes ran before.
                        return self._next_outcome()
        finally:
            self._offers = False
