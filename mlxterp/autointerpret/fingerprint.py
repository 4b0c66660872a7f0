"""The fingerprint by which two wordings of a claim are one.

Lives here: the digest of what a claim has the judge measure. Does not live here: the declaration's fields
(`hypothesis.py`), parsing the names of sites (`mlxterp/component_names.py`), measuring a claim
(`mlxterp.remeasure`), comparing measured numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlxterp.autointerpret.contract import digest
from mlxterp.component_names import canonical_component

SYNONYMS = {"replace": "patch", "add": "steer"}
"""Operations that are another one under an older name."""


def claim_fingerprint(
    declared: Mapping[str, Any], setup_digest: str, *, mirrored: bool, n_tokens: int | None = None
) -> str:
    """The sha256 of what a claim has the judge measure, equal for every rewording of it.

    Leaves out what changes the words or the verdict but not the measurement: id, claim, smallest effect,
    direction, forecast, rivals, what falsifies it, what it builds on or repeats.

    Args:
        declared: a declaration as `Hypothesis.to_dict` writes it.
        setup_digest: of setup.py, which holds model, pairs and metrics.
        mirrored: whether every pair comes in both directions: there noising is the same measurement as
            denoising.
        n_tokens: how many tokens each prompt has, if all have as many; else positions stay as written.

    Raises:
        ValueError: a site that names none.
    """
    sites = sorted({str(canonical_component(site, n_tokens)) for site in declared["site"]})
    what: dict[str, Any] = {
        "setup": setup_digest,
        "site": sites,
        "metric": declared.get("metric") or None,
        "slices": sorted(set(declared.get("slices") or ())),
        "more_than": declared.get("more_than") or None,
    }
    if declared.get("role"):
        what |= {"role": declared["role"], "metric": None}
    else:
        what["intervention"] = _canonical_intervention(declared["intervention"], mirrored=mirrored)
    return digest(json.dumps(what, sort_keys=True, ensure_ascii=True, allow_nan=False).encode())


def _canonical_intervention(given: Mapping[str, Any], *, mirrored: bool) -> dict[str, Any]:
    op, source, value = given["op"], given.get("source", "clean"), given.get("value")
    op = SYNONYMS.get(op, op)
    if op == "resample":
        op, source = "patch", "corrupted"
    if op == "scale" and value == 0:
        op, value = "zero", None
    found: dict[str, Any] = {"op": op, "align": given.get("align", "strict")}
    if op in ("patch", "path_patch", "steer", "clamp_feature"):
        found["source"] = "either" if mirrored and op == "patch" else source
    if op in ("scale", "steer", "noise", "clamp", "clamp_feature"):
        found["value"] = None if value is None else f"{float(value):.3g}"
    for name in ("receivers", "features", "from_positions"):
        if given.get(name):
            found[name] = sorted({_canonical_name(each) for each in _listed(given[name])})
    if given.get("vector"):
        found["vector"] = given["vector"]
    return found


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _canonical_name(value: Any) -> str:
    """A receiver `L9.z.h6.q` as `L9.H6.q`, anything else as it is written."""
    return re.sub(r"^(L\d+)\.z\.[hH](\d+)", r"\1.H\2", str(value)).replace(".mlp_out", ".mlp")
