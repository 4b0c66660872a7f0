"""What an experiment declares before it runs: a claim as data, which a judge can measure again without the
agent's code.

Lives here: the declaration's fields and what they may hold, its digest, and reading it out of experiment.py
without running it. Does not live here: deciding it (`keep_rule.py`).
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mlxterp.autointerpret.contract import digest
from mlxterp.autointerpret.encoding import clean_text, plain
from mlxterp.autointerpret.literals import assigned, excerpt, parse_module, read_literal, refuse
from mlxterp.component_names import ComponentName, canonical_component, parse_component
from mlxterp.errors import DeclarationError

OUTCOMES = ("supported", "refuted", "ruled_out")
DIRECTIONS = ("increase", "decrease", "either", "none")
SESOI_GRID = (0.05, 0.1, 0.2, 0.3, 0.5)
"""The smallest effects of interest that may be declared: a free number would let a search choose the one that
passes."""
OPERATIONS = (
    *("patch", "zero", "mean", "resample", "path_patch", "steer", "clamp_feature", "attention_knockout"),
    *("replace", "add", "scale", "clamp", "noise", "project_out"),
)
SOURCES = ("clean", "corrupted")
MORE_THAN = ("other heads of the layer",)
ROLES = ("previous-token head", "induction head", "name mover", "duplicate-token head")

_FORECAST_SUM = 1e-6
_NEEDS: dict[str, tuple[str, ...]] = {
    "path_patch": ("receivers",),
    "steer": ("value",),
    "add": ("value",),
    "clamp_feature": ("features", "value"),
    "attention_knockout": ("from_positions",),
    "scale": ("value",),
    "clamp": ("value",),
    "noise": ("value",),
    "project_out": ("vector",),
}
"""What an operation cannot do without."""
_OWN_FIELDS = {
    "receivers": ("path_patch",),
    "features": ("clamp_feature",),
    "from_positions": ("attention_knockout",),
    "vector": ("steer", "add", "project_out"),
}
"""Fields that mean something for these operations only."""


@dataclass(frozen=True)
class InterventionClaim:
    """What is done at the sites: `InterventionClaim("patch", source="clean")`.

    Attributes:
        op: one of `OPERATIONS`. Ablations of the clean run: "zero"; "mean" (over the pairs, per position);
            "resample" (the corrupted run's activation). "patch" puts one run's activation into the other.
            "path_patch" does so along the paths into `receivers` only (Wang et al. 2022). "steer" adds
            `value` times a vector. "clamp_feature" sets SAE features to `value`. "attention_knockout" lets a
            pattern's destinations not attend to `from_positions` (Geva et al. 2023).
        source: the run that activations come from: "clean" into the corrupted run (denoising: what is
            sufficient), "corrupted" into the clean run (noising: what is necessary). For "steer" and
            "clamp_feature" likewise: "clean" edits the corrupted run. Every other operation edits the clean
            run, whatever this is.
        value: the number of "steer", "clamp_feature", "scale", "noise" (standard deviation) and "clamp" (its
            bounds, ±value).
        align: how positions of the two prompts correspond, "strict" or "auto".
        receivers: inputs that the paths of "path_patch" lead into, as "L9.H6.q" or "logits".
        features: indices into setup.py's `sae`.
        vector: the name of one in setup.py's `vectors`; "" steers by the mean difference of clean and
            corrupted activations at the site.
        from_positions: negative ones count from the prompt's end.
    """

    op: str
    source: str = "clean"
    value: float | None = None
    align: str = "strict"
    receivers: Sequence[str] = ()
    features: Sequence[int] = ()
    vector: str = ""
    from_positions: Sequence[int] = ()

    def __post_init__(self) -> None:
        _raise_first(_intervention_problems({name: getattr(self, name) for name in _INTERVENTION_FIELDS}))
        for name in ("receivers", "features", "from_positions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """The fields; those of single operations only where they are set."""
        always = {"op": self.op, "source": self.source, "value": self.value, "align": self.align}
        own = {name: getattr(self, name) for name in _OWN_FIELDS}
        return always | {
            name: value if isinstance(value, str) else list(value) for name, value in own.items() if value
        }


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A claim that can turn out wrong, written as literals in experiment.py:

        HYPOTHESIS = Hypothesis(
            id="H017",
            claim="Head 9.6 moves the answer to the last position.",
            site=["L9.z.h6"],
            intervention=InterventionClaim("patch", source="clean"),
            metric="logit_diff",
            direction="increase",
            sesoi=0.1,
            forecast={"supported": 0.7, "refuted": 0.05, "ruled_out": 0.25},
            rivals=["Any head of layer 9 does as well."],
            falsified_if="the effect on held-out pairs is below 0.1",
        )

    Attributes:
        id: the researcher's own name for it.
        claim: one sentence.
        site: hook points, "L9.z", with a head "L9.z.h6" or "L9.H6", with a position "L9.z.h6@-1". Several
            are one set, intervened on together.
        intervention: what is done there; None for a role.
        metric: a name that setup.py's `metrics` holds; "" for a role.
        direction: where the intervention moves the metric: "increase", "decrease", "either", or "none" for a
            claim that there is no effect.
        sesoi: the smallest effect of interest, one of `SESOI_GRID`, in units of recovered metric; for a role,
            of attention mass.
        forecast: the probability given to each of `OUTCOMES` before the run; they sum to 1.
        rivals: at least one other explanation of the effect that is expected.
        falsified_if: the observation that would make the claim wrong.
        slices: named parts of the dataset in each of which the sign must hold.
        builds_on: ids of entries this depends on; they are named when one of those is retracted.
        replicates: the id of the entry this repeats on purpose, or "".
        more_than: "other heads of the layer": the effect is larger than each of theirs.
        role: what the heads do, by where they attend; one of `ROLES`. Descriptive: nothing is intervened on.
    """

    id: str
    claim: str
    site: Sequence[str]
    intervention: InterventionClaim | None = None
    metric: str = ""
    direction: str
    sesoi: float
    forecast: Mapping[str, float]
    rivals: Sequence[str]
    falsified_if: str
    slices: Sequence[str] = field(default=())
    builds_on: Sequence[str] = field(default=())
    replicates: str = ""
    more_than: str = ""
    role: str = ""

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in _FIELDS}
        _raise_first(problems(values))
        for name in _TEXT_LISTS:
            object.__setattr__(self, name, tuple(values[name]))
        object.__setattr__(self, "sesoi", float(self.sesoi))
        object.__setattr__(self, "forecast", {outcome: float(self.forecast[outcome]) for outcome in OUTCOMES})

    @property
    def sha256(self) -> str:
        """The digest of the declaration's content: equal for two spellings of the same claim."""
        return digest(json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True, allow_nan=False).encode())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; `more_than` and `role` only where they are set."""
        values = {name: getattr(self, name) for name in _FIELDS}
        values["intervention"] = None if self.intervention is None else self.intervention.to_dict()
        unset = [name for name in ("more_than", "role") if not values[name]]
        return dict(plain({name: value for name, value in values.items() if name not in unset}).value)

    def declared(self) -> dict[str, Any]:
        """What the log's `record["declared"]` holds: the fields and their digest."""
        return {**self.to_dict(), "sha256": self.sha256}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Hypothesis:
        """The inverse of `to_dict` and of `declared`."""
        values = {name: value for name, value in data.items() if name != "sha256"}
        unknown = sorted(set(values) - set(_FIELDS))
        missing = sorted(_required(values) - set(values))
        if unknown or missing:
            raise DeclarationError(
                f"a declaration with unknown fields {unknown} and without {missing}. "
                f"Its fields are: {', '.join(sorted(_FIELDS))}."
            )
        done = values.get("intervention")
        if isinstance(done, Mapping):
            if set(done) - set(_INTERVENTION_FIELDS) or "op" not in done:
                raise DeclarationError(
                    f"intervention: {dict(done)!r}. Its fields are: {', '.join(_INTERVENTION_FIELDS)}."
                )
            values["intervention"] = InterventionClaim(**done)
        return Hypothesis(**values)


NAME = "HYPOTHESIS"
_FIELDS = tuple(each.name for each in fields(Hypothesis))
_OPTIONAL = ("slices", "builds_on", "replicates", "more_than", "role")
_TEXT_LISTS = ("site", "rivals", "slices", "builds_on")
_INTERVENTION_FIELDS = tuple(each.name for each in fields(InterventionClaim))


def _required(values: Mapping[str, Any]) -> set[str]:
    """The fields without a default: a role has neither intervention nor metric."""
    for_effects = ("intervention", "metric") if values.get("role") else ()
    return set(_FIELDS) - set(_OPTIONAL) - set(for_effects)


def problems(values: Mapping[str, Any]) -> dict[str, str]:
    """For each field whose value cannot be accepted: what it is and what to write instead."""
    found: dict[str, str] = {}
    for name in ("id", "claim", "falsified_if", *(() if values.get("role") else ("metric",))):
        if name in values and not _is_text(values[name]):
            found[name] = f"{name} is {_shown(values[name])}. Write a text that is not empty."
    if not isinstance(values.get("replicates", ""), str):
        found["replicates"] = (
            f"replicates is {_shown(values['replicates'])}. Write the id of an entry, such as '0042'."
        )
    for name in _TEXT_LISTS:
        value = values.get(name, ())
        if not isinstance(value, (list, tuple)) or not all(_is_text(item) for item in value):
            found[name] = f"{name} is {_shown(value)}. Write a list of texts, such as {_EXAMPLES[name]}."
    for name in ("site", "rivals"):
        if name in values and name not in found and not values[name]:
            found[name] = f"{name} is empty. Write at least one, such as {_EXAMPLES[name]}."
    if "site" in values and "site" not in found:
        found |= _site_problems(values["site"])
    if "direction" in values and values["direction"] not in DIRECTIONS:
        found["direction"] = (
            f"direction is {_shown(values['direction'])}. Write 'increase' or 'decrease' (where the metric "
            "moves), 'either', or 'none' for a claim that there is no effect."
        )
    if "sesoi" in values and not (_is_number(values["sesoi"]) and values["sesoi"] in SESOI_GRID):
        grid = ", ".join(map(str, SESOI_GRID))
        found["sesoi"] = (
            f"sesoi is {_shown(values['sesoi'])}. Write one of {grid}: the smallest effect of interest, "
            "as in sesoi=0.1."
        )
    return found | _kind_problems(values) | _intervention_fits(values, found)


def _site_problems(sites: Sequence[str]) -> dict[str, str]:
    for site in sites:
        try:
            parse_component(site)
        except ValueError as problem:
            return {
                "site": f"{_shown(site)} names no site: {problem}. Write a hook point: 'L9.z', 'L9.z.h6' or "
                "'L9.resid_post@-1'."
            }
    names = [str(canonical_component(site)) for site in sites]
    twice = next((site for i, site in enumerate(sites) if names[i] in names[:i]), None)
    if twice is not None:
        return {"site": f"site names {_shown(twice)} twice, in one spelling or in two. Name each once."}
    return {}


def _kind_problems(values: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with a comparison, a role, or a forecast."""
    found: dict[str, str] = {}
    for name, allowed in (("more_than", MORE_THAN), ("role", ROLES)):
        value = values.get(name, "")
        if value != "" and value not in allowed:
            listed = " or ".join(map(repr, allowed))
            found[name] = f"{name} is {_shown(value)}. Write {listed}, as in {name}={allowed[0]!r}."
    if values.get("role") and values.get("more_than"):
        found["more_than"] = (
            "more_than stands beside a role, which is measured against the layer's other heads anyway. "
            "Leave more_than out."
        )
    if "forecast" in values:
        found |= _forecast_problems(values["forecast"])
    return found


def _intervention_fits(values: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with the intervention at these sites."""
    done, role = values.get("intervention"), values.get("role")
    if role:
        if done is not None:
            return {
                "intervention": f"role {_shown(role)} is read off where the heads attend, and nothing is "
                "intervened on. Leave intervention out, or leave role out."
            }
    elif "intervention" in values and not isinstance(done, InterventionClaim):
        return {
            "intervention": f"intervention is {_shown(done)}. "
            "Write InterventionClaim('patch', source='clean')."
        }
    if "site" in found or "site" not in values:
        return {}
    sites = [parse_component(site) for site in values["site"]]
    only_heads = "the role of a head" if role else "more_than" if values.get("more_than") else ""
    if only_heads and not all(site.name == "z" and site.head is not None for site in sites):
        return {
            "site": f"site is {_shown(values['site'])}, and {only_heads} is about heads. Write ['L9.H6']."
        }
    if values.get("more_than") and len(sites) != 1:
        return {"site": f"more_than compares one head, and site names {len(sites)}. Write ['L9.H6']."}
    op = done.op if isinstance(done, InterventionClaim) else ""
    names = {site.name for site in sites}
    if op == "attention_knockout" and names != {"pattern"}:
        return {
            "site": f"attention_knockout edits attention patterns, and site is {_shown(values['site'])}. "
            "Write ['L9.pattern.h6@-1']."
        }
    if op == "path_patch" and not all(_is_node(site) for site in sites):
        return {
            "site": f"path_patch sends from heads and MLPs, and site is {_shown(values['site'])}. Write "
            "['L5.H5'], ['L3.mlp'] or ['embed']."
        }
    return {}


def _is_node(site: ComponentName) -> bool:
    """Whether a site is a node of the circuit graph: a head, an MLP or the embedding."""
    return (site.name == "z" and site.head is not None) or site.name in ("mlp_out", "embed")


_EXAMPLE_OF = {
    "path_patch": "InterventionClaim('path_patch', source='corrupted', receivers=['L9.H6.q'])",
    "steer": "InterventionClaim('steer', value=1.0)",
    "add": "InterventionClaim('add', value=1.0)",
    "clamp_feature": "InterventionClaim('clamp_feature', features=[12], value=0.0)",
    "attention_knockout": "InterventionClaim('attention_knockout', from_positions=[3])",
    "scale": "InterventionClaim('scale', value=0.5)",
    "clamp": "InterventionClaim('clamp', value=1.0)",
    "noise": "InterventionClaim('noise', value=0.1)",
    "project_out": "InterventionClaim('project_out', vector='truth')",
}
_EXAMPLES = {
    "site": "['L9.z.h6']",
    "rivals": "['Any head of layer 9 does as well.']",
    "slices": "['long prompts']",
    "builds_on": "['0042']",
}


_FIELD_EXAMPLES = {
    "id": "'H001'",
    "claim": "'Head 9.6 moves the answer to the last position.'",
    "site": "['L9.z.h6']",
    "intervention": "InterventionClaim('patch', source='clean')",
    "metric": "'logit_diff'",
    "direction": "'increase'",
    "sesoi": "0.1",
    "forecast": "{'supported': 0.6, 'refuted': 0.1, 'ruled_out': 0.3}",
    "rivals": "['Any head of layer 9 does as well.']",
    "falsified_if": "'the effect on held-out pairs is below 0.1'",
}
"""For each field that a claim cannot do without, how it is written."""


_WHOLE = {
    "Hypothesis": f"Hypothesis({', '.join(f'{name}={value}' for name, value in _FIELD_EXAMPLES.items())})",
    "InterventionClaim": "InterventionClaim('patch', source='clean')",
}


def _forecast_problems(forecast: Any) -> dict[str, str]:
    wanted = "Write {'supported': 0.6, 'refuted': 0.1, 'ruled_out': 0.3}: probabilities that sum to 1."
    if not isinstance(forecast, Mapping) or set(forecast) != set(OUTCOMES):
        return {"forecast": f"forecast is {_shown(forecast)}. {wanted}"}
    if not all(_is_number(p) and 0 <= p <= 1 for p in forecast.values()):
        return {"forecast": f"forecast is {_shown(forecast)}, and a probability is from 0 to 1. {wanted}"}
    total = math.fsum(forecast.values())
    if abs(total - 1) > _FORECAST_SUM:
        return {"forecast": f"forecast sums to {total:g}. {wanted}"}
    return {}


def _intervention_problems(values: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, allowed in (("op", OPERATIONS), ("source", SOURCES), ("align", ("strict", "auto"))):
        if values[name] not in allowed:
            found[name] = (
                f"{name} of the intervention is {_shown(values[name])}. Write one of: {', '.join(allowed)}."
            )
    if found:
        return found
    op = values["op"]
    if values["value"] is not None and not _is_number(values["value"]):
        found["value"] = (
            f"value of the intervention is {_shown(values['value'])}. Write a finite number, or leave it out."
        )
    for name, kind, example in (
        ("receivers", str, "['L9.H6.q']"),
        ("features", int, "[12]"),
        ("from_positions", int, "[3, 4]"),
    ):
        listed = values[name]
        if not isinstance(listed, (list, tuple)) or not all(type(each) is kind for each in listed):
            found[name] = f"{name} of the intervention is {_shown(listed)}. Write a list: {name}={example}."
    if not isinstance(values["vector"], str):
        found["vector"] = (
            f"vector of the intervention is {_shown(values['vector'])}. Write the name of one that "
            "setup.py's `vectors` holds."
        )
    for name in _NEEDS.get(op, ()):
        if name not in found and values[name] in (None, "", (), []):
            found[name] = f"{op} needs {name}. Write {_EXAMPLE_OF[op]}."
    for name, ops in _OWN_FIELDS.items():
        if name not in found and values[name] and op not in ops:
            found[name] = f"{name} is for {', '.join(ops)}, and the operation is {op}. Leave {name} out."
    return found


def _raise_first(found: Mapping[str, str]) -> None:
    if found:
        raise DeclarationError(" ".join(found.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and clean_text(value) == value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _shown(value: Any) -> str:
    # By way of plain values: repr of an integer of thousands of digits raises.
    text = repr(plain(value).value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_hypothesis(source: bytes) -> Hypothesis | None:
    """The hypothesis that this module declares; None if it declares none (a plain experiment).

    Raises:
        DeclarationError: naming the line, what stands there and what to write.
    """
    call = _declaration(parse_module(source))
    if call is None:
        return None
    where: dict[str, int] = {}
    values: dict[str, Any] = {}
    for keyword in _keywords(call, "Hypothesis", _FIELDS):
        name, node = str(keyword.arg), keyword.value
        where[name] = node.lineno
        values[name] = _intervention(node) if name == "intervention" else read_literal(node, name)
    missing = [name for name in _FIELDS if name in _required(values) - set(values)]
    if missing:
        refuse(
            call.lineno,
            f"the hypothesis does not say {', '.join(missing)}. Add, for instance, "
            f"{', '.join(f'{name}={_FIELD_EXAMPLES[name]}' for name in missing)}.",
        )
    for name, problem in problems(values).items():
        refuse(where.get(name, call.lineno), problem)
    return Hypothesis(**values)


def _declaration(module: ast.Module) -> ast.Call | None:
    """The call on the right of the one module-level assignment to HYPOTHESIS."""
    found = assigned(module, NAME, f"{NAME} = Hypothesis(…)")
    if found is None:
        return None
    line, value = found
    if not isinstance(value, ast.Call) or _called(value) != "Hypothesis":
        refuse(line, f"{NAME} is {excerpt(value)}. Write {NAME} = Hypothesis(id='H001', claim='…', …).")
    return value


def _intervention(node: ast.expr) -> InterventionClaim:
    if not isinstance(node, ast.Call) or _called(node) != "InterventionClaim":
        refuse(
            node.lineno,
            f"intervention is {excerpt(node)}. Write InterventionClaim('patch', source='clean').",
        )
    values: dict[str, Any] = {}
    if node.args:
        values["op"] = read_literal(node.args[0], "op")
    for keyword in _keywords(node, "InterventionClaim", _INTERVENTION_FIELDS, positional=1):
        if keyword.arg in values:
            refuse(node.lineno, f"{keyword.arg} of InterventionClaim is given twice. Give it once.")
        values[str(keyword.arg)] = read_literal(keyword.value, str(keyword.arg))
    if "op" not in values:
        refuse(node.lineno, "InterventionClaim does not say what is done. Write InterventionClaim('patch').")
    try:
        return InterventionClaim(**values)
    except DeclarationError as problem:
        refuse(node.lineno, str(problem))


def _keywords(call: ast.Call, name: str, known: tuple[str, ...], *, positional: int = 0) -> list[ast.keyword]:
    if len(call.args) > positional:
        refuse(
            call.lineno,
            f"{name} is given {excerpt(call.args[positional])} without a name. Write field=value.",
        )
    seen: set[str] = set()
    for keyword in call.keywords:
        if keyword.arg is None:
            refuse(
                keyword.value.lineno,
                f"{name} is given **{excerpt(keyword.value)}. Write each field=value out.",
            )
        if keyword.arg not in known:
            refuse(
                keyword.value.lineno,
                f"{name} has no field {keyword.arg!r}. Its fields are: {', '.join(known)}; "
                f"as in {_WHOLE[name]}.",
            )
        if keyword.arg in seen:
            refuse(keyword.value.lineno, f"{keyword.arg} of {name} is given twice. Give it once.")
        seen.add(keyword.arg)
    return call.keywords


def _called(call: ast.Call) -> str:
    """The last part of the name that is called: `autointerpret.Hypothesis(…)` is a Hypothesis."""
    if isinstance(call.func, ast.Name):
        return call.func.id
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""
