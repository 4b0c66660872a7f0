"""Jobs of the judge: a sealed setup.py and declared claims in, numbers out. JSON both ways, a line each.

A job, as `python -m mlxterp.remeasure` reads it from standard input:

    {"setup": "/…/setup.py",          the sealed copy
     "sha256": "…",                   of its bytes; the bytes that are compiled are the ones that were hashed
     "name": "/…/setup.py",           optional: its `__file__`, where the copy lies elsewhere
     "claims": [{…}, …],              declarations as `Hypothesis.to_dict` writes them; none for a gate
     "pairs": {"dataset": [0, 3]}     indices into setup.dataset; or
              {"confirm": {"n": 48, "seed": 7, "clusters": [0, 24]}}   of what setup.confirm_pairs(n, seed)
                                      gives and setup.dataset does not hold, one direction of each couple, the
                                      first 24 clusters in the order that the seed decides; all without
                                      "clusters"; or
              {"heldout": [{"clean": …, "corrupted": …, "answer": …, "foil": …, "cluster": …}, …]}
     "metric": "logit_diff",          of the gate, in setup.metrics or of mlxterp.metrics; a claim has its own
     "measure": ["gate", "claim", "placebos", "replay"],
     "seed": 0,                       of placebos, noise, role texts and prefixes
     "twin_seed": 0,                  optional: the gate is measured on the weight-shuffled twin too
     "twin_in_full": false,           optional: with candidates and prefixes, not only on the pairs
     "placebos": 24}                  optional

A result: `{"schema": "remeasure/1", "setup": sha256, "model": {…}, "pairs": […], "clusters": ["…", …] of each
pair, "gate": …, "twin_gate": …,
"claims": [{"measurement", "placebos", "other_heads", "drop_one", "role", "replay"}, …]}`, with null for what
was not asked for or does not apply. "replay" measures the claim a second time from its pairs on. Or
`{"schema": "remeasure/1", "error": {"kind": …, "message": …}}`; kinds are those of `ERROR_KINDS`. The program
adds `"process": {"cpu_seconds", "peak_mb"}` to either: CPU time since its last result, and its most memory.

"placebos" has the "zero" and "one" of its pairs, as the measurement has.

A process imports setup.py for its first job and keeps it for those that follow, with the unedited runs of its
last pairs. A job's numbers do not depend on the jobs before it: all that is random is seeded anew, and
`confirm_pairs` must give the same pairs whenever it is asked for them.

Does not cover: hostile code in setup.py, which the user wrote; time and memory, which the caller limits.
"""

from __future__ import annotations

import hashlib
import json
import linecache
import random
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlxterp.autointerpret.hypothesis import Hypothesis
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import facts_of
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MlxterpError
from mlxterp.metrics import METRICS
from mlxterp.remeasure.behaviour_gate import gate_cells
from mlxterp.remeasure.edits import Resources, read_operation, read_sites
from mlxterp.remeasure.measurement import Measurement, SetCells, drop_one, measure, measure_placebos, numbers
from mlxterp.remeasure.pairs import MeasuredPairs, run_pairs
from mlxterp.remeasure.placebos import N_PLACEBOS, other_heads, placebo_sites
from mlxterp.remeasure.roles import measure_role
from mlxterp.statistics.clusters import cluster_ids, hashed_order, one_direction
from mlxterp.worlds.twin import shuffled_twin

SCHEMA = "remeasure/1"
ERROR_KINDS = {
    "bad_job": "the job is not JSON, or a field of it is missing or not what it must be",
    "setup_changed": "the bytes of setup.py do not have the digest of the job",
    "setup_failed": "setup.py raised, or lacks `model`, `dataset`, `confirm_pairs` or the metric",
    "bad_claim": "a claim is no valid declaration",
    "cannot_measure": "the model, the pairs or the metric do not allow the measurement, or raised in it",
    "out_of_memory": "memory ran out",
}
KEPT_RUNS = 2
"""Sets of pairs whose own runs a process keeps."""
MEASURES = ("gate", "claim", "placebos", "replay")


class JobError(Exception):
    """A job that cannot be done; `kind` is one of `ERROR_KINDS`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Job:
    """A job as read; fields as in the module's docstring."""

    setup: Path
    sha256: str
    claims: tuple[Mapping[str, Any], ...]
    pairs: Mapping[str, Any]
    metric: str | None
    measure: frozenset[str]
    seed: int
    twin_seed: int | None
    placebos: int
    name: str | None = None
    twin_in_full: bool = False


def read_job(text: str) -> Job:
    """A job from its JSON.

    Raises:
        JobError: bad_job or bad_claim, naming the field.
    """
    try:
        given = json.loads(text)
    except ValueError as problem:
        raise JobError("bad_job", f"the job is not JSON: {problem}. Send one JSON object.") from problem
    if not isinstance(given, dict):
        raise JobError("bad_job", f"the job is a {type(given).__name__}. Send one JSON object.")
    known = {each.name for each in fields(Job)}
    if set(given) - known:
        raise JobError("bad_job", f"the job has unknown fields {sorted(set(given) - known)}.")
    for name, kind in (("setup", str), ("sha256", str), ("pairs", dict), ("measure", list)):
        if not isinstance(given.get(name), kind):
            raise JobError("bad_job", f"{name} is {given.get(name)!r}; it must be a {kind.__name__}.")
    wanted = given["measure"]
    if not wanted or not all(isinstance(each, str) and each in MEASURES for each in wanted):
        raise JobError("bad_job", f"measure is {wanted!r}. List some of: {', '.join(MEASURES)}.")
    for name, default in (("seed", 0), ("twin_seed", None), ("placebos", N_PLACEBOS)):
        value = given.setdefault(name, default)
        if value is not default and (type(value) is not int or value < 0):
            raise JobError("bad_job", f"{name} is {value!r}; it must be a whole number, 0 or more.")
    if type(given.setdefault("twin_in_full", False)) is not bool:
        raise JobError("bad_job", f"twin_in_full is {given['twin_in_full']!r}; it must be true or false.")
    if len(given["pairs"]) != 1 or not set(given["pairs"]) <= {"dataset", "confirm", "heldout"}:
        raise JobError(
            "bad_job", f"pairs names {sorted(given['pairs'])}. Name one of: dataset, confirm, heldout."
        )
    ((how, what),) = given["pairs"].items()
    if not (_is_draw(what) if how == "confirm" else isinstance(what, list)):
        wanted_form = '{"n": 48, "seed": 7, "clusters": [0, 24]}' if how == "confirm" else "a list"
        raise JobError("bad_job", f"pairs.{how} is {what!r}; it must be {wanted_form}.")
    claims = given.get("claims", [])
    if not isinstance(claims, list):
        raise JobError("bad_job", f"claims is {claims!r}; it must be a list of declarations.")
    if not claims and set(wanted) - {"gate"}:
        raise JobError(
            "bad_job", f"measure is {wanted}, and there is no claim. Send one, or ask for the gate."
        )
    if "gate" in wanted and not isinstance(given.get("metric"), str):
        raise JobError("bad_job", "the gate needs a metric. Send its name in `metric`.")
    return Job(
        setup=Path(given["setup"]),
        sha256=given["sha256"],
        claims=tuple(_read_claim(each) for each in claims),
        pairs=given["pairs"],
        metric=given.get("metric"),
        measure=frozenset(wanted),
        seed=given["seed"],
        twin_seed=given["twin_seed"],
        placebos=given["placebos"],
        name=given.get("name"),
        twin_in_full=given["twin_in_full"],
    )


def _is_draw(what: Any) -> bool:
    if not isinstance(what, dict) or not all(type(what.get(name)) is int for name in ("n", "seed")):
        return False
    window = what.get("clusters", [0, 0])
    return isinstance(window, list) and len(window) == 2 and all(type(each) is int for each in window)


def _read_claim(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise JobError("bad_claim", f"a claim is {given!r}. Send what `Hypothesis.to_dict` writes.")
    try:
        return Hypothesis.from_dict(given).to_dict()
    except (MlxterpError, TypeError) as problem:
        raise JobError("bad_claim", str(problem)) from problem


@dataclass(frozen=True)
class Instrument:
    """The sealed setup.py once it is imported: what every job of a process measures with.

    Attributes:
        sha256: of its bytes.
        facts: of the model, and which type its weights came in. It computes in float32.
    """

    setup: types.ModuleType
    model: InterpretableModel
    sha256: str
    facts: Mapping[str, Any]
    _runs: dict[str, MeasuredPairs] = field(default_factory=dict)

    def runs_of(self, pairs: Sequence[PromptPair], metric: str, align: Align) -> MeasuredPairs:
        """Both runs of these pairs. Those of the last two jobs are kept: claims share their pairs."""
        key = repr((metric, align, [_plain_pair(pair) for pair in pairs]))
        if key not in self._runs:
            while len(self._runs) >= KEPT_RUNS:
                del self._runs[next(iter(self._runs))]
            self._runs[key] = run_pairs(self.model, pairs, _metric_of(self.setup, metric), align=align)
        return self._runs[key]


def import_instrument(job: Job) -> Instrument:
    """Imports the setup.py of a job.

    Raises:
        JobError: setup_changed or setup_failed.
    """
    setup = load_setup(job.setup, job.sha256, job.name)
    model = _model_of(setup)
    facts = _facts(model)
    in_float32(model)
    return Instrument(setup, model, job.sha256, facts)


def run_job(job: Job, instrument: Instrument | None = None) -> dict[str, Any]:
    """The numbers of a job.

    Args:
        instrument: what an earlier job of this process imported; by default the job's setup.py is imported.

    Raises:
        JobError: with its kind.
    """
    instrument = instrument or import_instrument(job)
    if instrument.sha256 != job.sha256:
        raise JobError(
            "setup_changed",
            f"this process has imported the setup.py with the digest {instrument.sha256}, and the job names "
            f"{job.sha256}. Start another process for it.",
        )
    setup, model = instrument.setup, instrument.model
    for claim in job.claims:
        _require_measurable(setup, model, claim)
    _seed(job.seed)
    try:
        with blas.pinned_threads():
            pairs, clusters = _pairs_of(setup, job.pairs)
            result: dict[str, Any] = {
                "schema": SCHEMA,
                "setup": job.sha256,
                "model": dict(instrument.facts),
                "pairs": [_plain_pair(pair) for pair in pairs],
                "clusters": list(clusters),
                "gate": None,
                "twin_gate": None,
                "claims": [],
            }
            if not pairs and "clusters" in job.pairs.get("confirm", {}):
                return result  # fewer clusters were drawn than the window begins at
            if "gate" in job.measure:
                result |= _gates(setup, model, pairs, job)
            for claim in job.claims:
                result["claims"].append(_measured(instrument, pairs, claim, job))
    except JobError:
        raise
    except (Exception, SystemExit) as problem:
        # Metrics and `confirm_pairs` of setup.py run here, and may raise anything. mlx says with a
        # RuntimeError that it could not allocate.
        short = isinstance(problem, MemoryError) or (
            isinstance(problem, RuntimeError) and "alloc" in str(problem).lower()
        )
        kind = "out_of_memory" if short else "cannot_measure"
        raise JobError(kind, f"{type(problem).__name__}: {problem}") from problem
    finally:
        mx.clear_cache()
    return result


def _seed(seed: int) -> None:
    """Seeds whatever a metric or `confirm_pairs` of setup.py may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    mx.random.seed(seed)


def load_setup(path: Path, sha256: str, name: str | None = None) -> types.ModuleType:
    """The module that these bytes of setup.py are, put into `sys.modules` as `setup`; `name` is its
    `__file__`, by default the path.

    What is compiled are the bytes whose digest was compared: no cache of Python's and no file that changes
    meanwhile can take their place (docs/decisions/0007). Nothing of the project is on the path.

    Raises:
        JobError: setup_changed or setup_failed.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise JobError("setup_failed", f"{path} cannot be read: {problem}.") from problem
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise JobError(
            "setup_changed", f"{path} has the digest {found}, and the job names {sha256}. Nothing was run."
        )
    name = name or str(path)
    module = types.ModuleType("setup")
    module.__file__ = name
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    linecache.cache[name] = (len(data), None, lines, name)
    sys.modules["setup"] = module
    try:
        exec(compile(data, name, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as problem:
        raise JobError("setup_failed", f"setup.py raised {type(problem).__name__}: {problem}") from problem
    return module


def in_float32(model: InterpretableModel) -> None:
    """Computes in float32 from now on, whatever type the weights came in; quantised ones stay so."""
    kinds = {array.dtype for _, array in tree_flatten(model.model.parameters())}
    if kinds & {mx.float16, mx.bfloat16}:
        model.model.set_dtype(mx.float32)
        mx.eval(model.model.parameters())


def _model_of(setup: types.ModuleType) -> InterpretableModel:
    model = getattr(setup, "model", None)
    if not isinstance(model, InterpretableModel):
        raise JobError("setup_failed", f"setup.py's `model` is {model!r}. Define an InterpretableModel.")
    return model


def _facts(model: InterpretableModel) -> dict[str, Any]:
    kinds = sorted({str(array.dtype) for _, array in tree_flatten(model.model.parameters())})
    sizes = {"n_layers": model.n_layers, "n_heads": model.n_heads, "d_vocab": model.d_vocab}
    return {**facts_of(model), **sizes, "weights": kinds, "computed_in": "mlx.core.float32"}


def _metric_of(setup: types.ModuleType, name: str) -> Any:
    registry = getattr(setup, "metrics", None)
    if registry is not None and name in registry:
        return registry.get(name)
    if name in METRICS:
        return METRICS[name]
    raise JobError("setup_failed", f"there is no metric {name!r} in setup.py's `metrics`. Register it there.")


def _require_measurable(setup: types.ModuleType, model: InterpretableModel, claim: Mapping[str, Any]) -> None:
    """JobError bad_claim for a claim about what this model or setup.py does not have. Its message holds
    nothing of any pair, so it may be shown to whoever made the claim."""
    try:
        sites = read_sites(model, claim["site"])
    except MlxterpError as problem:
        raise JobError("bad_claim", str(problem)) from problem
    if claim.get("role"):
        return
    if not _has_metric(setup, claim["metric"]):
        raise JobError(
            "bad_claim", f"there is no metric {claim['metric']!r} in setup.py's `metrics`. Name one it holds."
        )
    done, vectors, sae = claim["intervention"], getattr(setup, "vectors", {}), getattr(setup, "sae", None)
    if done.get("vector") and done["vector"] not in vectors:
        raise JobError(
            "bad_claim",
            f"no vector {done['vector']!r}. setup.py's `vectors` holds: {', '.join(vectors) or 'none'}. Name "
            "one of them.",
        )
    if done["op"] != "clamp_feature":
        return
    if sae is None or any(HookPoint(site.name, site.layer) != sae.point for site in sites):
        reads = "there is none in setup.py" if sae is None else f"setup.py's reads {sae.hook_point}"
        raise JobError("bad_claim", f"clamp_feature at {claim['site']} takes the SAE of that site; {reads}.")


def _has_metric(setup: types.ModuleType, name: str) -> bool:
    registry = getattr(setup, "metrics", None)
    return (registry is not None and name in registry) or name in METRICS


def _pairs_of(setup: types.ModuleType, chosen: Mapping[str, Any]) -> tuple[list[PromptPair], tuple[str, ...]]:
    """The pairs of a job, and the cluster of each."""
    ((how, what),) = chosen.items()
    if how == "heldout":
        items = [_read_pair(item) for item in what]
        return items, cluster_ids(items)
    if how == "confirm":
        draw = getattr(setup, "confirm_pairs", None)
        if not callable(draw):
            raise JobError("setup_failed", "setup.py has no `confirm_pairs(n, seed)`. Define it.")
        drawn = _drawn(draw, what["n"], what["seed"])
        if "clusters" not in what:
            return drawn, cluster_ids(drawn)
        return _window(_new_pairs(setup, drawn), str(what["seed"]), *what["clusters"])
    dataset = getattr(setup, "dataset", None)
    if not isinstance(dataset, Sequence):
        raise JobError("setup_failed", f"setup.py's `dataset` is {type(dataset).__name__}. Define a list.")
    outside = [i for i in what if type(i) is not int or not 0 <= i < len(dataset)]
    if outside:
        raise JobError("bad_job", f"pairs names {outside[0]!r}; setup.dataset has {len(dataset)} pairs.")
    # A cluster may be a chain of pairs, so it is known from all of them.
    of_pair = cluster_ids(_require_pairs(list(dataset)))
    return [dataset[i] for i in what], tuple(of_pair[i] for i in what)


def _drawn(draw: Callable[[int, int], Sequence[Any]], n: int, seed: int) -> list[PromptPair]:
    """What `confirm_pairs` draws; refused if it draws something else the next time."""
    drawn, again = (_require_pairs(list(draw(n, seed))) for _ in range(2))
    if [_plain_pair(pair) for pair in drawn] != [_plain_pair(pair) for pair in again]:
        raise JobError(
            "setup_failed",
            f"setup.py's `confirm_pairs({n}, {seed})` gave other pairs the second time. Make them depend on "
            "its arguments only.",
        )
    return drawn


def _require_pairs(found: list[Any]) -> list[PromptPair]:
    odd = next((pair for pair in found if not isinstance(pair, PromptPair)), None)
    if odd is not None:
        raise JobError("setup_failed", f"setup.py gives {type(odd).__name__} where a PromptPair is needed.")
    return found


def _new_pairs(setup: types.ModuleType, drawn: Sequence[PromptPair]) -> list[PromptPair]:
    """Those that share no prompt with setup.dataset, which experiments explore."""
    dataset = getattr(setup, "dataset", ())
    explored = {p for pair in dataset if isinstance(pair, PromptPair) for p in _prompts(pair)}
    return [pair for pair in drawn if not _prompts(pair) & explored]


def _prompts(pair: PromptPair) -> set[object]:
    return {p if isinstance(p, str) else tuple(p) for p in (pair.clean, pair.corrupted)}


def _window(
    pairs: Sequence[PromptPair], salt: str, first: int, until: int
) -> tuple[list[PromptPair], tuple[str, ...]]:
    """One direction of each couple of some clusters, in the order that the salt decides."""
    of_pair = cluster_ids(pairs)
    kept = one_direction(pairs, of_pair, salt)
    order = {name: i for i, name in enumerate(hashed_order(of_pair, salt))}
    chosen = sorted((i for i in kept if first <= order[of_pair[i]] < until), key=lambda i: order[of_pair[i]])
    return [pairs[i] for i in chosen], tuple(of_pair[i] for i in chosen)


def _read_pair(item: Any) -> PromptPair:
    if not isinstance(item, dict) or not {"clean", "corrupted"} <= set(item):
        raise JobError("bad_job", f"a held-out item is {item!r}. Give clean and corrupted prompts.")
    clean, corrupted = (tuple(p) if isinstance(p, list) else p for p in (item["clean"], item["corrupted"]))
    return PromptPair(
        clean,
        corrupted,
        answer=item.get("answer"),
        foil=item.get("foil"),
        name=item.get("name") or "",
        cluster=item.get("cluster"),
        slice=item.get("slice"),
    )


def _plain_pair(pair: PromptPair) -> dict[str, Any]:
    def plain(prompt: Any) -> Any:
        return prompt if isinstance(prompt, str) else [int(token) for token in prompt]

    return {
        "clean": plain(pair.clean),
        "corrupted": plain(pair.corrupted),
        "answer": pair.answer,
        "foil": pair.foil,
        "name": pair.name,
        "cluster": pair.cluster,
        "slice": pair.slice,
    }


def _gates(
    setup: types.ModuleType, model: InterpretableModel, pairs: Sequence[PromptPair], job: Job
) -> dict[str, Any]:
    metric = _metric_of(setup, str(job.metric))
    candidates = getattr(setup, "candidates", ())
    found = {"gate": gate_cells(model, pairs, metric, candidates, seed=job.seed).to_dict()}
    if job.twin_seed is not None:
        twin = shuffled_twin(model, job.twin_seed)
        more = {"candidates": candidates, "prefixes": True} if job.twin_in_full else {"prefixes": False}
        found["twin_gate"] = gate_cells(twin, pairs, metric, seed=job.seed, **more).to_dict()
    return found


def _measured(
    instrument: Instrument, pairs: Sequence[PromptPair], claim: Mapping[str, Any], job: Job
) -> dict[str, Any]:
    """What was asked of one claim."""
    setup, model = instrument.setup, instrument.model
    found: dict[str, Any] = dict.fromkeys(
        ("measurement", "placebos", "other_heads", "drop_one", "role", "replay")
    )
    if claim.get("role"):
        found["role"] = measure_role(model, claim, seed=job.seed, pairs=pairs).to_dict()
        return found
    resources = Resources(getattr(setup, "sae", None), getattr(setup, "vectors", {}))
    metric = _metric_of(setup, claim["metric"])
    operation = read_operation(claim)
    runs = instrument.runs_of(pairs, claim["metric"], operation.align)
    shared: dict[str, Any] = {"resources": resources, "seed": job.seed}
    if "claim" in job.measure:
        found["measurement"] = measure(model, claim, runs, **shared).to_dict()
        if len(claim["site"]) > 1:
            found["drop_one"] = drop_one(model, claim, runs, **shared).to_dict()
        if claim.get("more_than"):
            others = other_heads(model, claim)
            found["other_heads"] = measure_placebos(model, claim, others, runs, **shared).to_dict()
    if "placebos" in job.measure:
        sets = placebo_sites(model, claim, job.seed, job.placebos)
        cells: SetCells | None = measure_placebos(model, claim, sets, runs, **shared) if sets else None
        if cells is not None:
            sides = {"zero": operation.edited, "one": operation.other}
            found["placebos"] = cells.to_dict() | {
                name: numbers(runs.metric_of[side]) for name, side in sides.items()
            }
    if "replay" in job.measure:
        again: Measurement = measure(model, claim, pairs, metric, **shared)
        found["replay"] = again.to_dict()
    return found
