"""Where a claim acts, in one spelling, and the fingerprint by which two spellings of a claim are one.

Lives here: reading a site as it is declared, its canonical form, and the digest of what a claim has the judge
measure. Does not live here: the declaration's fields (`hypothesis.py`), measuring it (`mlxterp.remeasure`),
comparing measured numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxterp.autointerpret.contract import digest

HEADED = ("q", "k", "v", "z", "pattern")
UNHEADED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
OUTSIDE_LAYERS = ("embed", "final_norm", "logits")
ALIASES = {"attn": "attn_out", "mlp": "mlp_out", "head": "z", "attn_head": "z"}
SYNONYMS = {"replace": "patch", "add": "steer"}
"""Operations that are another one under an older name."""

_HEAD = re.compile(r"L(\d+)\.H(\d+)(?:@(-?\d+))?")
_SITE = re.compile(r"(?:L(\d+)\.)?([a-z_]+)(?:\.[hH](\d+))?(?:@(-?\d+))?")


@dataclass(frozen=True)
class ClaimSite:
    """One hook point, a head of it or all of them, one position or all of them.

    Attributes:
        name: a word of the hook points' vocabulary, aliases resolved ("mlp" is "mlp_out").
        pos: negative ones count from the prompt's end.
    """

    name: str
    layer: int | None = None
    head: int | None = None
    pos: int | None = None

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"L{self.layer}."
        head = "" if self.head is None else f".h{self.head}"
        return layer + self.name + head + ("" if self.pos is None else f"@{self.pos}")


def parse_site(text: str) -> ClaimSite:
    """`"L9.z.h6@-1"`, `"L9.H6"` or `"L3.mlp"` as a site.

    Raises:
        ValueError: it names no site; the message says what is wrong.
    """
    head = _HEAD.fullmatch(text)
    if head:
        return ClaimSite("z", int(head[1]), int(head[2]), None if head[3] is None else int(head[3]))
    found = _SITE.fullmatch(text)
    if not found:
        raise ValueError("it is not spelled like a site")
    layer, index, pos = (None if found[i] is None else int(found[i]) for i in (1, 3, 4))
    site = ClaimSite(ALIASES.get(found[2], found[2]), layer, index, pos)
    if site.name in OUTSIDE_LAYERS:
        if layer is not None:
            raise ValueError(f"{site.name} is in no layer")
    elif site.name not in HEADED + UNHEADED:
        known = ", ".join((*HEADED, *UNHEADED, *OUTSIDE_LAYERS))
        raise ValueError(f"there is no {site.name!r}; there are {known}")
    elif layer is None:
        raise ValueError(f"{site.name} is in every layer: say which")
    if index is not None and site.name not in HEADED:
        raise ValueError(f"{site.name} has no heads")
    return site


def canonical_site(site: str | ClaimSite, n_tokens: int | None = None) -> ClaimSite:
    """The one spelling of a site: what leaves a block is what enters the next, and what enters the first is
    the embedding; positions count from the end where the prompt's length is known."""
    found = parse_site(site) if isinstance(site, str) else site
    if found.name == "resid_post" and found.layer is not None:
        found = replace(found, name="resid_pre", layer=found.layer + 1)
    if found.name == "embed":
        found = replace(found, name="resid_pre", layer=0)
    if found.pos is not None and found.pos >= 0 and n_tokens is not None:
        found = replace(found, pos=found.pos - n_tokens)
    return found


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
    sites = sorted({str(canonical_site(site, n_tokens)) for site in declared["site"]})
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
