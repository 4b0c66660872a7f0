"""From an experiment that was executed to its judged lines: the evidence, and the verdict of the keep rule.

A plain entry is decided by how its run ended and by its own numbers, and reaches the tier `lead` at most. The
rule itself is `mlxterp.autointerpret.keep_rule`; nothing here can keep an experiment that the rule does not.
Controls, held-out confirmation and cold replay of a declared claim belong here.
"""

from __future__ import annotations

from collections.abc import Callable

from mlxterp.autointerpret.encoding import count
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.keep_rule import Evidence, Verdict, decide
from mlxterp_agent.storage.record import Experiment, JudgedEntry, Judgement, entries_of, judged_entry


def judge_experiment(
    experiment: Experiment, identical_to: Callable[[ExperimentEntry], str | None]
) -> list[JudgedEntry]:
    """The lines of an executed experiment, one for each entry that it reported, or one that says why none.

    Args:
        identical_to: gives the id of a different experiment that reported exactly an entry's numbers, or
        None.
    """
    return [
        judged_entry(experiment, number, entry, _judge(experiment, number, entry, identical_to))
        for number, entry in enumerate(entries_of(experiment), 1)
    ]


def _judge(
    experiment: Experiment,
    number: int,
    entry: ExperimentEntry,
    identical_to: Callable[[ExperimentEntry], str | None],
) -> Judgement:
    execution = experiment.execution
    assert execution is not None
    if execution.status == "interrupted" and not experiment.violations:
        # A person or a crash ended the run: the rule has nothing to decide.
        why = f"{execution.error}; the same experiment may run again"
        return Judgement(Verdict("interrupted", "invalid", kept=False, reasons=(why,)))
    numbers, twin = count(entry.result), identical_to(entry)
    measured = experiment.measured_before(number)
    evidence = Evidence(
        violations=experiment.violations,
        status=execution.status,
        numbers=numbers.total,
        nonfinite=numbers.nonfinite,
        identical_to=twin,
        informative=entry.informative,
        measured=measured.measured,
        hook_fired=measured.hook_fired,
        activation_changed=measured.activation_changed,
        # No judge has measured a declared claim: it is decided as a plain entry, and the reasons say so.
        declared=experiment.declared is not None,
    )
    checks = {
        "finite": numbers.nonfinite == 0,
        "hook_fired": measured.hook_fired,
        "not_no_op": twin is None and measured.activation_changed is not False,
        "positive_control": None,
    }
    return Judgement(decide(evidence), checks, {"explore": measured.to_dict()})
