"""The judge: measures a declared claim on held-out pairs in processes of its own, and records what it found.

Claims are measured by `python -m mlxterp.remeasure` in a jail, from the sealed setup.py and the claims as
data; nothing of the agent's runs there, so one process serves the claims of a run. In order: has the same
claim been judged, is there enough to judge it on, does the behaviour exist (the gate, with its shuffled twin
as a control), a first look at 24 clusters, a second at up to 48 if the first leaves it open, and for a
verdict a second measurement in a fresh process. Placebos and gates are measured once and remembered. A
measurement that fails is a verdict with a named reason and never ends the run.

Everything that was measured is in the journal, which lies in the state directory, and nowhere else. Events:

    gate        `key`; `metric`; `passed`; `reasons`; `numbers` of the model and of the twin; `seconds`,
                `cpu_seconds`
    placebos    `key`; `effects`, R by the name of each placebo; `pairs`, the clusters they were measured on;
                `cpu_seconds`
    judgement   one for each declared claim that ran to its end:
        run, uid         of the experiment; its first line (`uid`.1) bears the verdict
        setup            the digest of the sealed setup.py
        hypothesis       the claim's own id; `declared` is in the event `register` of the run
        measured         the fingerprint of what was measured: rewordings have the same
                         (`autointerpret.fingerprint`)
        fingerprint      the same, or for a replication on fresh pairs one of its own: there is one verdict
                         for each
        source           "confirm_pairs", "heldout.jsonl", "dataset" or "texts" (roles); null if not measured
        clusters         the ids of all clusters that were looked at, in their order: opened once shown
        number           which judged claim it was, from 1; `level`, its level by LORD++; `look`, which look
                         decided. Null if no level was spent: the claim may then be judged another time
        evidence         what the keep rule saw (`ClaimEvidence.to_dict`)
        numbers          effect, se, low, high, mde, missing, bar, slices, and per cluster change and gap;
                         null if not measured. `sha256` is of these, and stands in the line of the log
        gate, placebo    the keys of their events; null where there are none
        replay           whether the second measurement gave the same numbers; null without one
        failure          `kind` and `message` of a measurement that failed; null otherwise
        again_of         the uid of a judgement whose supervisor ended before its line was logged, and which
                         this one takes over; null otherwise
        seconds          that judging took, and `cpu_seconds` that its processes computed
    seen        `run` ran prompts of `clusters` through the library; no later claim is judged on them
    opened      written at closing (`closing.py`): `uids` of experiments whose judgements are shown, `lines`
                that show them. Their clusters are spent: no later claim is judged on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from mlxterp.autointerpret.contract import digest
from mlxterp.autointerpret.encoding import plain
from mlxterp.autointerpret.fingerprint import SYNONYMS, claim_fingerprint
from mlxterp.autointerpret.keep_rule import MAX_NONFINITE_SHARE, EarlierVerdict, Measured
from mlxterp.component_names import canonical_component
from mlxterp.errors import StatisticsError
from mlxterp.statistics.decisions import N_FIRST, N_MOST
from mlxterp.statistics.outcome import PLACEBOS_MIN, Comparison
from mlxterp.statistics.sequential import JudgedClaim, level, level_after
from mlxterp_agent.judge.decision import (
    Decision,
    Rows,
    decide_rows,
    gate_of,
    joined,
    no_rows,
    placebo_effects,
    role_placebos,
    rows_of,
    same_rows,
)
from mlxterp_agent.judge.held_out import HeldOut, divide, seed_of
from mlxterp_agent.platform import Clock
from mlxterp_agent.sandbox.measuring import MeasurementFailed, Measurer
from mlxterp_agent.storage.journal import Event, Journal
from mlxterp_agent.storage.record import Experiment

Stop = Callable[[], str | None]

_TWIN_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ClaimEvidence:
    """What the judge gives the keep rule about a declared claim; fields as in `Evidence`.

    Attributes:
        items, missing_items: pairs measured, and how many of them have a number that is not finite.
        sha256: of the held-out numbers in the journal; None if there are none.
        descriptive: a role: where a head attends, and not what depends on it.
        seconds: that judging took.
        cpu_seconds: that its processes computed; None in judgements of earlier versions.
        interrupted: why it was broken off; "" if it was not.
    """

    judged_before: EarlierVerdict | None = None
    not_judged: str = ""
    instrument: tuple[str, ...] = ()
    hook_fired: bool | None = None
    activation_changed: bool | None = None
    identity_holds: bool | None = None
    items: int = 0
    missing_items: int = 0
    confirm: Measured | None = None
    sha256: str | None = None
    descriptive: bool = False
    seconds: float = 0.0
    cpu_seconds: float | None = None
    interrupted: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dict(plain(asdict(self)).value)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ClaimEvidence:
        """The inverse of `to_dict`."""
        given = {each.name: values.get(each.name, each.default) for each in fields(ClaimEvidence)}
        before, confirm = given["judged_before"], given["confirm"]
        given["judged_before"] = None if before is None else EarlierVerdict(**before)
        given["instrument"] = tuple(given["instrument"])
        if confirm is not None:
            compared = Comparison(**{k: _number(v) for k, v in confirm["comparison"].items()})
            given["confirm"] = Measured(**{**confirm, "comparison": compared})
        return ClaimEvidence(**given)


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """A claim on its way through the looks."""

    declared: Mapping[str, Any]
    seed: int
    alpha: float
    held_out: HeldOut

    @property
    def role(self) -> str:
        return str(self.declared.get("role") or "")

    def job(self, first: int, until: int, what: str = "claim") -> dict[str, Any]:
        """What is measured for the look at these clusters: the claim or its "placebos"."""
        on_texts = self.role and self.role != "name mover"
        return {
            "claims": [{k: v for k, v in self.declared.items() if k != "sha256"}],
            "pairs": {"heldout": []} if on_texts else self.held_out.pairs(first, until, self.seed),
            "measure": [what],
            "seed": self.seed + first,
        }


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One measurement: the job, its result, its rows."""

    job: Mapping[str, Any]
    result: Mapping[str, Any]
    rows: Rows


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What judging one claim brought, before it is written down; fields as in the event `judgement`."""

    evidence: ClaimEvidence
    number: int | None = None
    level: float | None = None
    look: int | None = None
    source: str | None = None
    clusters: tuple[str, ...] = ()
    numbers: Mapping[str, Any] | None = None
    gate: str | None = None
    placebo: str | None = None
    failure: Mapping[str, str] | None = None
    again_of: str | None = None


@dataclass(eq=False)
class Judge:
    """Judges the declared claims of one investigation, one at a time.

    Attributes:
        salt: decides which clusters confirm; it lies in the state directory.
        items: of heldout.jsonl; None without one.
        held_out: what claims are judged on; known once setup.py is imported (`divide`).
    """

    measurer: Measurer
    journal: Journal
    clock: Clock
    setup_sha: str
    salt: str
    items: Sequence[Mapping[str, Any]] | None = None
    held_out: HeldOut = field(default_factory=lambda: HeldOut(members={}, reason="setup.py is not imported"))
    _model: str = ""
    _vectors: Mapping[str, str] = field(default_factory=dict)
    _follows: bool = False
    _gates: dict[str, Event] = field(default_factory=dict)
    _placebos: dict[str, Event] = field(default_factory=dict)
    _judgements: dict[str, Event] = field(default_factory=dict)
    _judged: list[JudgedClaim] = field(default_factory=list)
    _sites: dict[int, frozenset[str]] = field(default_factory=dict)
    _clusters: dict[str, list[str]] = field(default_factory=dict)
    _opened: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)
    _verdicts: dict[str, str] = field(default_factory=dict)
    _claims: dict[str, str] = field(default_factory=dict)
    _lines: dict[str, str] = field(default_factory=dict)

    def divide(self, facts: Mapping[str, Any]) -> HeldOut:
        """Takes what setup.py offers, and says what of it is held out."""
        self._model = str(facts.get("model_digest") or "")
        self._vectors = facts.get("vectors") or {}
        self.held_out = divide(facts, self.items, self.salt)
        return self.held_out

    def note_seen(self, run: int, pairs: Sequence[int]) -> None:
        """Writes down that an experiment measured these pairs of setup.dataset, which were held out."""
        of_pair = self.held_out.of_pair
        clusters = sorted({of_pair[i] for i in pairs if i < len(of_pair)})
        self.journal.append("seen", run=run, clusters=clusters)

    def judge(self, experiment: Experiment, stop: Stop) -> ClaimEvidence:
        """Measures what the experiment declares, and writes the event `judgement`.

        Args:
            stop: asked while something is measured; a text breaks it off, and nothing is written.
        """
        assert experiment.declared is not None
        began, computed = self.clock.monotonic(), self.measurer.cpu_seconds
        if not self._follows:
            # Once there is a claim: a long journal takes seconds to read.
            self._follows = True
            self.journal.follow(self._remember)
        declared = {**experiment.declared, "slices": []}  # the sign must hold in all slices that there are
        measured = fingerprint = claim_fingerprint(
            self._with_vector_itself(declared),
            self._key("claim"),
            mirrored=self.held_out.mirrored,
            n_tokens=self.held_out.n_tokens,
        )
        replicates = str(declared.get("replicates") or "")
        if self.held_out.source == "confirm_pairs" and self._lines.get(replicates) == fingerprint:
            # On fresh pairs, once for each line: a replication is another measurement.
            fingerprint = digest(f"{fingerprint} replicates {replicates}".encode())
        found = self._as_before(fingerprint)
        if found is None:
            try:
                found = self._measure(declared, fingerprint, stop)
            except (MeasurementFailed, StatisticsError) as problem:
                found = _failed(problem)
                if found.evidence.interrupted:
                    return found.evidence
        seconds = round(self.clock.monotonic() - began, 3)
        sha = found.evidence.sha256 if found.numbers is None else _sha256(found.numbers)
        cpu_seconds = round(self.measurer.cpu_seconds - computed, 2)
        evidence = replace(
            found.evidence,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            sha256=sha,
            descriptive=bool(declared.get("role")),
        )
        written = {each.name: getattr(found, each.name) for each in fields(_Found) if each.name != "evidence"}
        self.journal.append(
            "judgement",
            run=experiment.run,
            uid=experiment.uid,
            setup=self.setup_sha,
            hypothesis=declared["id"],
            fingerprint=fingerprint,
            measured=measured,
            evidence=evidence.to_dict(),
            sha256=sha,
            replay=None if evidence.confirm is None else evidence.confirm.replays,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            **written,
        )
        return evidence

    def _with_vector_itself(self, declared: Mapping[str, Any]) -> Mapping[str, Any]:
        """The declaration with a digest in place of a vector's name: another name makes no other claim."""
        done = declared.get("intervention") or {}
        if done.get("vector") not in self._vectors:
            return declared
        return {**declared, "intervention": {**done, "vector": self._vectors[done["vector"]]}}

    def measure_again(self, declared: Mapping[str, Any], done: Event, stop: Stop) -> Rows:
        """The rows of a claim that was judged, measured in a fresh process on the same pairs.

        Raises:
            MeasurementFailed: with its kind.
        """
        held_out = self.held_out
        if held_out.source != "confirm_pairs" and done["source"] != "texts":
            gone = [each for each in done["clusters"] if each not in held_out.members]
            if gone:
                raise MeasurementFailed("bad_job", f"{len(gone)} of its clusters are not there any more")
            held_out = replace(held_out, order=tuple(done["clusters"]))
        claim = _Claim(
            declared={**declared, "slices": []},
            seed=seed_of(self.salt, done["fingerprint"]),
            alpha=0.0,
            held_out=held_out,
        )
        windows = [(0, N_FIRST), (N_FIRST, N_MOST)][: done["look"]]
        jobs = [claim.job(first, until) for first, until in windows]
        results = self.measurer.measure_cold(jobs, stop=stop)
        direction = str(declared["direction"])
        looks = [rows_of(each, direction, first) for (first, _), each in zip(windows, results, strict=True)]
        return joined(looks).finite_only()

    def _as_before(self, fingerprint: str) -> _Found | None:
        """What an earlier judgement of the same claim makes of this one; None without one."""
        earlier = self._judgements.get(fingerprint)
        if earlier is None:
            return None
        verdict = self._verdicts.get(earlier["uid"])
        if verdict is None:
            # It was measured, and the supervisor ended before its line was logged: this is that line.
            same = {name: earlier[name] for name in ("look", "source", "numbers", "gate", "placebo")}
            return _Found(
                evidence=ClaimEvidence.from_dict(earlier["evidence"]),
                clusters=tuple(earlier["clusters"]),
                again_of=earlier["uid"],
                **same,
            )
        before = EarlierVerdict(verdict, f"{earlier['run']:04d}")
        return _Found(evidence=ClaimEvidence(judged_before=before))

    def _measure(self, declared: Mapping[str, Any], fingerprint: str, stop: Stop) -> _Found:
        spent = {each for uid in self._opened for each in self._clusters.get(uid, ())}
        held_out = self.held_out.without(spent, self._seen)
        role = declared.get("role")
        if held_out.source is None and (not role or role == "name mover"):
            return _Found(evidence=ClaimEvidence(not_judged=held_out.reason))
        gate: str | None = None
        if not role:
            passed = self._gate(str(declared["metric"]), held_out, stop)
            gate = passed["key"]
            if not passed["passed"]:
                return _Found(evidence=ClaimEvidence(instrument=tuple(passed["reasons"])), gate=gate)
        number = len(self._judged) + 1
        if role or held_out.source == "confirm_pairs":
            # Nothing that was told before is about the pairs or texts of this claim.
            alpha = level(number, [i for i, each in enumerate(self._judged, 1) if each.discovery])
        else:
            alpha = level_after(self._judged, _bare_sites(declared["site"]))
        claim = _Claim(
            declared=declared, seed=seed_of(self.salt, fingerprint), alpha=alpha, held_out=held_out
        )
        return replace(self._look(claim, stop), number=number, level=alpha, gate=gate)

    def _look(self, claim: _Claim, stop: Stop) -> _Found:
        """The two looks at a claim, its controls, and its replay."""
        key, placebos = (None, None) if claim.role else self._known_placebos(claim.declared)
        if placebos is None and not claim.role:
            key, placebos = self._measure_placebos(claim, stop)
        first = self._measure_clusters(claim, 0, N_FIRST, stop)
        if placebos is None:
            placebos = role_placebos(first.result)
        looks = [first]
        while True:
            rows = joined([each.rows for each in looks])
            if not len(rows.change):
                why = "not measured: confirm_pairs gives no pair without a prompt of setup.dataset"
                return _Found(evidence=ClaimEvidence(not_judged=why))
            failed = _failed_control(rows)
            if failed is not None:
                return _Found(evidence=failed, source=_source(claim), clusters=_in_order(rows))
            last = len(looks) == 2
            decision = decide_rows(rows.finite_only(), claim.declared, placebos, claim.alpha, last=last)
            if last or decision.measured.outcome != "inconclusive" or len(_in_order(rows)) < N_FIRST:
                break
            second = self._measure_clusters(claim, N_FIRST, N_MOST, stop)
            if not len(second.rows.change):
                break
            looks.append(second)
        replays: bool | None = None
        if decision.measured.outcome != "inconclusive":
            replays = self._replay(looks, claim, stop)
        controlled = None if claim.role else True
        return _Found(
            evidence=ClaimEvidence(
                hook_fired=controlled,
                activation_changed=controlled,
                identity_holds=controlled,
                items=len(rows.change),
                missing_items=int((~rows.finite).sum()),
                confirm=replace(decision.measured, replays=replays),
            ),
            look=decision.look,
            source=_source(claim),
            clusters=_in_order(rows),
            numbers=_numbers(decision, rows.finite_only(), placebos, claim.declared, first.result),
            placebo=key,
        )

    def _measure_clusters(self, claim: _Claim, first: int, until: int, stop: Stop) -> _Look:
        job = claim.job(first, until)
        if job["pairs"] in ({"dataset": []}, {"heldout": []}) and (
            not claim.role or claim.role == "name mover"
        ):
            return _Look(job=job, result={}, rows=no_rows())
        result = self.measurer.measure(job, stop=stop)
        return _Look(job=job, result=result, rows=rows_of(result, str(claim.declared["direction"]), first))

    def _replay(self, looks: Sequence[_Look], claim: _Claim, stop: Stop) -> bool:
        """Whether a process that measured nothing before gives the same numbers for the same pairs."""
        jobs = []
        for done in looks:
            pairs = {"heldout": done.result["pairs"]} if done.result["pairs"] else done.job["pairs"]
            jobs.append({**done.job, "measure": ["claim"], "pairs": pairs})
        again = self.measurer.measure_cold(jobs, stop=stop)
        direction = str(claim.declared["direction"])
        return all(
            same_rows(done.rows, rows_of(each, direction, 0)) for done, each in zip(looks, again, strict=True)
        )

    def _gate(self, metric: str, held_out: HeldOut, stop: Stop) -> Event:
        """The event of the gate for this metric, measured now if it was not yet."""
        key = self._key("gate", metric, str(held_out.source))
        if key in self._gates:
            return self._gates[key]
        began, computed = self.clock.monotonic(), self.measurer.cpu_seconds
        job = {
            "pairs": held_out.pairs(0, N_MOST, seed_of(self.salt, key)),
            "metric": metric,
            "measure": ["gate"],
            "seed": seed_of(self.salt, key),  # of prefixes, which nobody can have selected for
            "twin_seed": _TWIN_SEED,
        }
        result = self.measurer.measure(job, stop=stop)
        model, twin = gate_of(result), gate_of(result, twin=True)
        if twin.passed:
            # What it lacks on the pairs themselves stops it; a twin that lacks nothing there is looked at
            # behind prefixes and on candidates.
            twin = gate_of(self.measurer.measure({**job, "twin_in_full": True}, stop=stop), twin=True)
        reasons = []
        if not model.passed:
            reasons.append(f"no behaviour to explain: on held-out pairs it lacks {', '.join(model.lacking)}")
        if twin.passed:
            reasons.append("no behaviour to explain: the model with shuffled weights shows it too")
        return self.journal.append(
            "gate",
            key=key,
            metric=metric,
            passed=not reasons,
            reasons=reasons,
            numbers={"model": plain(asdict(model)).value, "twin": plain(asdict(twin)).value},
            seconds=round(self.clock.monotonic() - began, 3),
            cpu_seconds=round(self.measurer.cpu_seconds - computed, 2),
        )

    def _known_placebos(self, declared: Mapping[str, Any]) -> tuple[str | None, dict[str, float] | None]:
        """The key and the effects of placebos that were measured before; None if there are too few."""
        claimed = {str(canonical_component(site)) for site in declared["site"]}
        for own in (False, True):
            key = self._placebo_key(declared, own_sites=own)
            if key not in self._placebos:
                continue
            effects = {
                name: effect
                for name, effect in self._placebos[key]["effects"].items()
                if own or not claimed & {str(canonical_component(site)) for site in name.split(" + ")}
            }
            if len(effects) >= PLACEBOS_MIN:
                return key, effects
        return None, None

    def _measure_placebos(self, claim: _Claim, stop: Stop) -> tuple[str, dict[str, float]]:
        computed = self.measurer.cpu_seconds
        result = self.measurer.measure(claim.job(0, N_FIRST, "placebos"), stop=stop)
        effects = placebo_effects(result)
        by_direction = any(", direction " in name for name in effects)
        key = self._placebo_key(claim.declared, own_sites=by_direction)
        self.journal.append(
            "placebos",
            key=key,
            effects=effects,
            pairs=list(dict.fromkeys(result["clusters"])),
            cpu_seconds=round(self.measurer.cpu_seconds - computed, 2),
        )
        return key, effects

    def _placebo_key(self, declared: Mapping[str, Any], *, own_sites: bool) -> str:
        """Equal for claims that have the same placebos: same operation, metric, layers, kinds, positions."""
        sites = [canonical_component(site, self.held_out.n_tokens) for site in declared["site"]]
        kinds = sorted(str(site if own_sites else replace(site, head=None)) for site in sites)
        done = {**declared["intervention"], "op": _op(declared)}
        return self._key("placebos", json.dumps([kinds, done, declared["metric"]], sort_keys=True))

    def _key(self, *parts: str) -> str:
        held_out = "" if self.items is None else _sha256(list(self.items))
        return digest("\n".join([self.setup_sha, held_out, self._model, *parts]).encode())

    def _remember(self, event: Event, _: int) -> None:
        match event["event"]:
            case "gate":
                self._gates[event["key"]] = event
            case "placebos":
                self._placebos[event["key"]] = event
            case "judgement":
                self._clusters[event["uid"]] = event["clusters"]
                self._claims[f"{event['uid']}.1"] = event["measured"]
                if event["level"] is not None or event["again_of"] is not None:
                    self._judgements[event["fingerprint"]] = event
                if event["level"] is not None:
                    self._judged.append(_judged_claim(event, self._sites.get(event["run"], frozenset())))
            case "register":
                self._sites[event["run"]] = _bare_sites(event["hypothesis"]["site"])
            case "result" if not event["again"] and event["lines"]:
                self._verdicts[event["uid"]] = str(event["lines"][0]["record"]["verdict"])
            case "logged" if event["uid"] in self._claims:
                self._lines[event["id"]] = self._claims[event["uid"]]
            case "seen":
                self._seen.update(event["clusters"])
            case "opened":
                self._opened.update(event["uids"])


def _bare_sites(sites: Sequence[str]) -> frozenset[str]:
    """Where a claim acts, at whatever position."""
    return frozenset(str(replace(canonical_component(site), pos=None)) for site in sites)


def _judged_claim(event: Event, sites: frozenset[str]) -> JudgedClaim:
    evidence = ClaimEvidence.from_dict(event["evidence"])
    m = evidence.confirm
    told = "inconclusive" if m is None or m.replays is not True else m.outcome
    return JudgedClaim(sites, told, _is_discovery(evidence))


def _is_discovery(evidence: ClaimEvidence) -> bool:
    """Whether an effect was found, on whichever side: it earns the level of later claims. That there is none
    earns nothing, also where that was the claim."""
    m = evidence.confirm
    if m is None or m.replays is not True:
        return False
    return m.outcome == "refuted" or (m.outcome == "supported" and m.comparison.direction != "none")


def _failed(problem: MeasurementFailed | StatisticsError) -> _Found:
    """The evidence of a claim that could not be measured. What raised on held-out pairs may name them, so
    only the journal holds its message."""
    kind = problem.kind if isinstance(problem, MeasurementFailed) else "cannot_measure"
    failure = {"kind": kind, "message": str(problem)}
    if kind == "interrupted":
        evidence = ClaimEvidence(interrupted=str(problem))
    elif kind in _INSTRUMENT:
        evidence = ClaimEvidence(instrument=(f"the judge could not measure: {_INSTRUMENT[kind]}",))
    elif kind == "bad_claim":
        evidence = ClaimEvidence(not_judged=f"not measured: {problem}")
    else:
        evidence = ClaimEvidence(not_judged=f"not measured: {_FAILURES.get(kind, kind)}")
    return _Found(evidence=evidence, failure=failure)


_INSTRUMENT = {
    "setup_changed": "the sealed setup.py has other bytes than its digest says",
    "setup_failed": "setup.py fails in the judge's process, where no file of the project can be imported",
    "no_jail": "the jail does not hold",
}
"""Failures that no other claim would escape."""
_FAILURES = {
    "bad_job": "the judge's own request was refused, which is a mistake of ours",
    "cannot_measure": "the model, the held-out pairs or the metric do not allow it",
    "out_of_memory": "memory ran out",
    "timeout": "it took too long",
    "crashed": "its process ended without a result",
}


def _failed_control(rows: Rows) -> ClaimEvidence | None:
    """The evidence of a measurement whose controls fail; None if they hold."""
    missing = int((~rows.finite).sum())
    if missing > MAX_NONFINITE_SHARE * len(rows.change):
        return ClaimEvidence(items=len(rows.change), missing_items=missing)
    left = rows.finite_only()
    fired, changed = bool(left.fired.all()), bool(left.changed.any())
    identity = bool(left.identity_holds.all())
    if fired and changed and identity:
        return None
    return ClaimEvidence(hook_fired=fired, activation_changed=changed, identity_holds=identity)


def _source(claim: _Claim) -> str:
    return "texts" if claim.role and claim.role != "name mover" else str(claim.held_out.source)


def _in_order(rows: Rows) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rows.clusters))


def _numbers(
    decision: Decision,
    rows: Rows,
    placebos: Mapping[str, float],
    declared: Mapping[str, Any],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """What the event `judgement` holds of a measurement."""
    found, cells = decision.found, rows.cells()
    claim = result["claims"][0]
    others = (
        [] if claim["other_heads"] is None else [each["sites"][0] for each in claim["other_heads"]["sets"]]
    )
    not_exceeded, passengers = decision.not_exceeded, decision.passengers
    return {
        "effect": found.effect,
        "se": found.se,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "mde": found.mde,
        "missing": list(found.missing),
        "bar": found.comparison.bar,
        "placebos": len(placebos),
        "slices": dict(found.comparison.slices),
        "not_exceeded": None if not_exceeded is None else [others[i] for i in not_exceeded],
        "passengers": None if passengers is None else [declared["site"][i] for i in passengers],
        "change": cells.change.tolist(),
        "gap": cells.gap.tolist(),
    }


def _op(declared: Mapping[str, Any]) -> str:
    op = str(declared["intervention"]["op"])
    return SYNONYMS.get(op, op)


def _sha256(value: Any) -> str:
    return digest(json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False).encode())


def _number(value: Any) -> Any:
    """A number as `plain` wrote it: those that are not finite as texts."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
