# ruff: noqa: T201 - a command that prints
"""How much faster eight questions at a time are than one, at a service that takes 200 ms for each.

    python -m tests.benchmarks.llm_labels

Prints the ratio, best of three, and the CPU time of a question: the stub of the service runs in the same
process, so its work counts as ours. With idle cores nearly all time is waiting; where others keep them busy
the ratio falls.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from mlxterp.auto_interp.label import Proposal
from mlxterp.auto_interp.llm.scorers import LlmScorer
from mlxterp.llm import AnthropicCompleter, run, together
from tests.auto_interp.judges import evidence
from tests.messages_stub import MessagesStub

LATENCY = 0.2
FEATURES = 8


def _judgement(request: Any) -> dict[str, Any]:
    texts = len(re.findall(r'"i": ', request.messages))
    return {"text": json.dumps({"p": [{"i": i, "prob": 50} for i in range(1, texts + 1)]})}


def measure(max_concurrency: int) -> tuple[float, float, int]:
    """Seconds of scoring some features, CPU seconds of each question, and the number of questions."""
    step = {"hang": LATENCY, "call": _judgement, "usage": {"cache_read_input_tokens": 1000}}
    with MessagesStub({"lanes": [{"then": step}]}) as stub:
        claude = AnthropicCompleter(api_key=stub.key, base_url=stub.url, max_concurrency=max_concurrency)
        scorer = LlmScorer(claude)
        proposal = Proposal("cat", "Fires on cat.", "token")

        async def job() -> None:
            try:
                await together(*(scorer.score(evidence(i), proposal) for i in range(FEATURES)))
            finally:
                await claude.close()

        began, worked = time.perf_counter(), time.process_time()
        run(job)
        seconds, questions = time.perf_counter() - began, len(stub.requests)
        return seconds, (time.process_time() - worked) / questions, questions


def main() -> None:
    """Measures and prints."""
    measure(8)  # imports
    serial, each, questions = measure(1)
    at_once = min(measure(8)[0] for _ in range(3))
    print(
        f"{questions} questions of {LATENCY * 1000:.0f} ms: "
        f"one at a time {serial:.1f} s, eight at once {at_once:.1f} s"
    )
    print(f"CPU {each * 1000:.1f} ms a question, client and stub")
    print(f"ratio {serial / at_once:.1f}")


if __name__ == "__main__":
    main()
