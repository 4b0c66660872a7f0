"""From an experiment that was executed to its judged lines: the evidence, and the verdict of the keep rule.

A declared claim is decided on the experiment's first line, by what the judge measured (`judge.py`). Every
other entry is plain: it is decided by how its run ended and by its own numbers, and reaches the tier `lead`
at most. The rule itself is `mlxterp.autointerpret.keep_rule`; nothing here can keep an experiment that the
rule does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlxterp.autointerpret.encoding import compared, count
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.keep_rule import MAX_NONFINITE_SHARE, Evidence, Verdict, decide
from mlxterp.statistics.duplicates import ResultNumbers, is_copy
from mlxterp_agent.judge.relations import Relations, relations
from mlxterp_agent.storage.record import Experiment, JudgedEntry, Judgement, entries_of, judged_entry

if TYPE_CHECKING:
    from mlxterp_agent.judge.judge import ClaimEvidence


def _no_copy(_: ExperimentEntry) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of other experiments when one is judged.

    Attributes:
        identical_to: gives the id of a different experiment that reported an entry's numbers, or None.
        entries: the lines so far.
        mirrored: whether every pair of setup.py comes in both directions.
        copied: whether most prompts of setup.py hold their answer.
    """

    identical_to: Callable[[ExperimentEntry], str | None] = _no_copy
    entries: Sequence[ExperimentEntry] = field(default=())
    mirrored: bool = False
    copied: bool = False


COPYING = "open rival: in-context copying, since most prompts of setup.py hold their answer"


def may_be_judged(experiment: Experiment) -> bool:
    """Whether what the experiment declares is still open after its run: it ended well, within the contract,
    with finite numbers."""
    if experiment.declared is None or experiment.violations:
        return False
    execution = experiment.execution
    assert execution is not None
    numbers = count(entries_of(experiment)[0].result)
    return execution.status == "ok" and numbers.nonfinite <= MAX_NONFINITE_SHARE * numbers.total


def judge_experiment(
    experiment: Experiment, known: Known, claim: ClaimEvidence | None = None
) -> list[JudgedEntry]:
    """The lines of an executed experiment, one for each entry that it reported, or one that says why none.

    Args:
        claim: what the judge measured of the declaration; None if there is none, or it was not measured.
    """
    lines: list[JudgedEntry] = []
    earlier: list[ResultNumbers] = []
    for number, entry in enumerate(entries_of(experiment), 1):
        found = compared(entry.result)
        twin = next((n for n, each in enumerate(earlier, 1) if is_copy(each, found)), None)
        earlier.append(found)
        # Rewordings of one result are one result, within a run as between runs.
        others = known if twin is None else replace(known, identical_to=_names_entry(twin))
        judgement = _judge(experiment, number, entry, others, claim if number == 1 else None)
        lines.append(judged_entry(experiment, number, entry, judgement))
    return lines


def _names_entry(number: int) -> Callable[[ExperimentEntry], str | None]:
    return lambda _: f"entry {number} of this run"


def _judge(
    experiment: Experiment,
    number: int,
    entry: ExperimentEntry,
    known: Known,
    claim: ClaimEvidence | None,
) -> Judgement:
    execution = experiment.execution
    assert execution is not None
    if execution.status == "interrupted" and not experiment.violations:
        # A person or a crash ended the run: the rule has nothing to decide.
        why = f"{execution.error}; the same experiment may run again"
        return Judgement(Verdict("interrupted", "invalid", kept=False, reasons=(why,)))
    numbers, declared = count(entry.result), experiment.declared is not None and number == 1
    twin = None if declared else known.identical_to(entry)
    explored, predicted = experiment.measured_before(number), experiment.predicted(number)
    evidence = Evidence(
        violations=experiment.violations,
        status=execution.status,
        numbers=numbers.total,
        nonfinite=numbers.nonfinite,
        identical_to=twin,
        informative=entry.informative,
        measured=explored.measured,
        hook_fired=explored.hook_fired,
        activation_changed=explored.activation_changed,
        prediction_held=all(each["held"] for each in predicted) if predicted else None,
        declared=declared,
    )
    measured: dict[str, Any] = {"explore": explored.to_dict()}
    related = Relations()
    if claim is not None:
        assert experiment.declared is not None
        evidence = _with_claim(evidence, claim)
        if claim.judged_before is None:
            related = relations(
                experiment.declared, decide(evidence).verdict, known.entries, mirrored=known.mirrored
            )
        evidence = replace(
            evidence, agrees_with=related.agrees_with, rules_out_rival_of=related.rules_out_rival_of
        )
        measured["confirm"] = None if claim.sha256 is None else {"sha256": claim.sha256}
        measured["seconds"] = claim.seconds
        measured["cpu_seconds"] = claim.cpu_seconds
        if claim.descriptive:
            measured["descriptive"] = True
    checks = {
        "finite": evidence.nonfinite == 0,
        "hook_fired": evidence.hook_fired,
        "not_no_op": twin is None and evidence.activation_changed is not False,
        "positive_control": None if claim is None else not evidence.instrument,
    }
    verdict_now = decide(evidence)
    if declared and verdict_now.verdict == "inconclusive" and known.copied:
        verdict_now = replace(verdict_now, reasons=(*verdict_now.reasons, COPYING))
    if related.retracts:
        overturned = f"overturns {', '.join(related.retracts)}"
        verdict_now = replace(verdict_now, reasons=(*verdict_now.reasons, overturned))
    return Judgement(verdict_now, checks, measured, related.to_dict())


def _with_claim(evidence: Evidence, claim: ClaimEvidence) -> Evidence:
    few = evidence.nonfinite <= MAX_NONFINITE_SHARE * evidence.numbers
    return replace(
        evidence,
        numbers=claim.items if few and claim.missing_items else evidence.numbers,
        nonfinite=claim.missing_items if few and claim.missing_items else evidence.nonfinite,
        judged_before=claim.judged_before,
        not_judged=claim.not_judged,
        instrument=claim.instrument,
        hook_fired=claim.hook_fired,
        activation_changed=claim.activation_changed,
        identity_holds=claim.identity_holds,
        confirm=claim.confirm,
    )
