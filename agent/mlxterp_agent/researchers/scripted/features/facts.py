"""Reading the numbers that the steps of a study of features leave in the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxterp_agent.researchers.scripted.plan import Known


@dataclass(frozen=True)
class Survey:
    """What the first step says about the dictionary and the texts.

    Attributes:
        explained: share of the variance about the mean that it explains on held-out texts.
        l0: mean number of features that fire on a token.
        silent_share: share of the features that never fire on the texts.
        candidates: features that fire neither too rarely nor too often, the strongest first.
        silent: some features that never fire.
    """

    hook_point: str
    d_sae: int
    n_tokens: int
    n_documents: int
    n_held_out: int
    explained: float
    l0: float
    silent_share: float
    candidates: tuple[int, ...]
    silent: tuple[int, ...]


def survey_of(known: Known) -> Survey | None:
    """The survey's numbers; None before it was made."""
    numbers = known.numbers("survey")
    if numbers is None:
        return None
    return Survey(
        hook_point=str(numbers["hook_point"]),
        d_sae=int(numbers["d_sae"]),
        n_tokens=int(numbers["n_tokens"]),
        n_documents=int(numbers["n_documents"]),
        n_held_out=int(numbers["n_held_out"]),
        explained=float(numbers["explained"]),
        l0=float(numbers["l0"]),
        silent_share=float(numbers["silent_share"]),
        candidates=tuple(int(feature) for feature in numbers["candidates"]),
        silent=tuple(int(feature) for feature in numbers["silent"]),
    )


def kept_labels(known: Known) -> dict[int, Mapping[str, Any]]:
    """The labels that hold on held-out documents, by feature, the surest first."""
    kept = (known.numbers("labels") or {}).get("kept", {})
    ordered = sorted(kept.items(), key=lambda each: (-float(each[1]["confidence"]), int(each[0])))
    return {int(feature): label for feature, label in ordered}


def passed_labels(known: Known) -> list[int]:
    """The features whose labels passed the sensitivity test."""
    tested = (known.numbers("sensitivity") or {}).get("tested", {})
    return [int(feature) for feature, each in tested.items() if each["passed"] is True]


def standing_out(known: Known) -> list[int]:
    """The features whose ablation changes the output more than that of random features does."""
    measured = (known.numbers("effects") or {}).get("measured", {})
    return [int(feature) for feature, each in measured.items() if each["stands_out"]]
