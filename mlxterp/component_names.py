"""Names of components and how they are parsed: `L9.H6`, `L3.mlp`, `L9.z.h6@-1`, `resid_pre`, `logits`.

Lives here: the vocabulary, its short forms, one parser for every caller, and the one spelling of a component
that has two. Does not live here: what is read at a hook point and its axes (`core/hook_points.py`), nodes and
edges of a circuit (`causal/circuits/graph.py`), which components a given model has
(`core/architecture/parts.py`). Imports no MLX.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mlxterp.errors import UnknownHookPoint

LAYER_NAMES = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
GLOBAL_NAMES = ("embed", "final_norm", "logits")
PER_HEAD = ("q", "k", "v", "z", "pattern")
SHORT_NAMES = {"attn": "attn_out", "mlp": "mlp_out", "attn_head": "z", "head": "z"}

_HEAD = re.compile(r"L(\d+)\.H(\d+)(?:@(-?\d+))?")
_COMPONENT = re.compile(r"(?:L(\d+)\.)?([a-z_]+)(?:\.[hH](\d+))?(?:@(-?\d+))?")


@dataclass(frozen=True)
class ComponentName:
    """One hook point, a head of it or all of them, one position or all of them.

    Attributes:
        name: a word of `LAYER_NAMES` or `GLOBAL_NAMES`; short names are resolved ("mlp" is "mlp_out").
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


def parse_component(text: str) -> ComponentName:
    """`"L9.z.h6@-1"`, `"L9.H6"` or `"L3.mlp"` as a component.

    Raises:
        ValueError: it names no component; the message says what is wrong.
    """
    head = _HEAD.fullmatch(text)
    if head:
        return ComponentName("z", int(head[1]), int(head[2]), None if head[3] is None else int(head[3]))
    found = _COMPONENT.fullmatch(text)
    if not found:
        raise ValueError("it is not spelled like a component")
    layer, index, pos = (None if found[i] is None else int(found[i]) for i in (1, 3, 4))
    component = ComponentName(SHORT_NAMES.get(found[2], found[2]), layer, index, pos)
    if component.name in GLOBAL_NAMES:
        if layer is not None:
            raise ValueError(f"{component.name} is in no layer")
    elif component.name not in LAYER_NAMES:
        known = ", ".join((*LAYER_NAMES, *GLOBAL_NAMES))
        raise ValueError(f"there is no {component.name!r}; there are {known}")
    elif layer is None:
        raise ValueError(f"{component.name} is in every layer: say which")
    if index is not None and component.name not in PER_HEAD:
        raise ValueError(f"{component.name} has no heads")
    return component


def parse_head(text: str) -> tuple[int, int] | None:
    """`"L9.H6"` as `(9, 6)`; None for anything else."""
    found = _HEAD.fullmatch(text)
    return (int(found[1]), int(found[2])) if found and found[3] is None else None


def canonical_component(component: str | ComponentName, n_tokens: int | None = None) -> ComponentName:
    """The one spelling of a component: what leaves a block is what enters the next, and what enters the first
    is the embedding; positions count from the end where the prompt's length is known."""
    found = parse_component(component) if isinstance(component, str) else component
    if found.name == "resid_post" and found.layer is not None:
        found = replace(found, name="resid_pre", layer=found.layer + 1)
    if found.name == "embed":
        found = replace(found, name="resid_pre", layer=0)
    if found.pos is not None and found.pos >= 0 and n_tokens is not None:
        found = replace(found, pos=found.pos - n_tokens)
    return found


def component_name(component: str) -> str:
    """`"mlp"` → `"mlp_out"`, `"attn"` → `"attn_out"`, `"attn_head"` → `"z"`; names of the vocabulary pass.

    Raises:
        UnknownHookPoint: naming the components there are.
    """
    name = SHORT_NAMES.get(component, component)
    if name not in LAYER_NAMES:
        known = ", ".join((*SHORT_NAMES, *LAYER_NAMES))
        raise UnknownHookPoint(f"There is no component {component!r} in a layer. Choose one of: {known}.")
    return name


def head_label(layer: int, head: int) -> str:
    """`L9.H6`, as attention heads are written everywhere."""
    return f"L{layer}.H{head}"
