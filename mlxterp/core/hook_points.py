"""The vocabulary of places in a transformer: `L9.z`, `embed`, `logits`.

What lives here: hook points and the axes of what is read there. What doesn't: the names and how heads and
components are parsed (`mlxterp/component_names.py`), where a given model keeps them (`parts.py`) and how they
are read (`forward.py`).

With r the residual stream entering a block (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"):

    resid_pre   r                                     [batch, pos, d_model]
    q           queries as attention uses them,
                after rotary embedding and norms      [batch, pos, n_heads, d_head]
    k, v        the same for keys and values, per
                key/value head                        [batch, pos, n_kv_heads, d_head]
    pattern     attention probabilities               [batch, n_heads, dest, src]
    z           what each head hands to the output
                projection W_O                        [batch, pos, n_heads, d_head]
    attn_out    what attention adds to the stream     [batch, pos, d_model]
    resid_mid   resid_pre + attn_out                  [batch, pos, d_model]
    mlp_out     what the MLP adds to the stream       [batch, pos, d_model]
    resid_post  resid_pre + attn_out + mlp_out        [batch, pos, d_model]

Outside the blocks: `embed` (what enters the first block), `final_norm` (what leaves the last norm), `logits`.
Any other module of a model is reached by its path in the module tree, as in `model.layers.0.mlp.up_proj`: its
output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mlxterp import other_libraries
from mlxterp.component_names import GLOBAL_NAMES, LAYER_NAMES
from mlxterp.errors import UnknownHookPoint

_LAYERED = re.compile(r"L(\d+)\.([A-Za-z_]\w*)")
_MODULE_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


@dataclass(frozen=True, order=True)
class HookPoint:
    """One place: a name of the vocabulary, and its layer if it has one.

    `spelled` is how another library's user wrote it; it is no part of what the point is.
    """

    name: str
    layer: int | None = None
    spelled: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return self.name if self.layer is None else f"L{self.layer}.{self.name}"

    @property
    def is_module_path(self) -> bool:
        """Whether this names a module of the tree and not a word of the vocabulary."""
        return "." in self.name


@dataclass(frozen=True)
class Axes:
    """Which axis of an activation is what; None where there is no such axis."""

    ndim: int
    pos: int
    head: int | None = None


_RESIDUAL = Axes(ndim=3, pos=1)
_PER_HEAD = Axes(ndim=4, pos=1, head=2)
_AXES = {
    **dict.fromkeys(("q", "k", "v", "z"), _PER_HEAD),
    "pattern": Axes(ndim=4, pos=2, head=1),  # a position of a pattern is its destination
}


def axes(point: HookPoint) -> Axes:
    """The axes of the activation read at `point`."""
    return _AXES.get(point.name, _RESIDUAL)


def parse(text: str | HookPoint | tuple[str, int]) -> HookPoint:
    """`"L9.z"` → HookPoint("z", 9); so are `"blocks.9.attn.hook_z"`, `"z.9"` and `("z", 9)`.

    TransformerLens's spellings are read where they mean the same activation (`other_libraries.py`).

    Raises:
        UnknownHookPoint: the spelling is neither `L<layer>.<name>`, a global name, nor a module path; or it
            is another library's name of another activation, with the reason.
    """
    if isinstance(text, HookPoint):
        return text
    if isinstance(text, tuple):
        text = _joined(text)
    if text in GLOBAL_NAMES:
        return HookPoint(text)
    layered = _LAYERED.fullmatch(text)
    if layered and layered[2] in LAYER_NAMES:
        return HookPoint(layered[2], int(layered[1]))
    elsewhere = other_libraries.spelled(text)
    if elsewhere is not None:
        return HookPoint(*elsewhere, spelled=text)
    reason = other_libraries.why_not(text)
    if reason is not None:
        raise UnknownHookPoint(f"There is no hook point {text!r}. {reason}")
    if not layered and _MODULE_PATH.fullmatch(text):
        return HookPoint(text)
    in_a_layer = f"{text!r} is in every layer: say which, as in 'L0.{text}'." if text in LAYER_NAMES else ""
    raise UnknownHookPoint(f"There is no hook point {text!r}. {in_a_layer or _what_exists()}")


def _joined(pair: tuple[str, int]) -> str:
    """`("z", 9)` as `"z.9"`."""
    if len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int) and pair[1] >= 0:
        return f"{pair[0]}.{pair[1]}"
    raise UnknownHookPoint(
        f"{pair!r} is no hook point. Write a name and its layer, as in ('resid_post', 9) or 'L9.resid_post'."
    )


def _what_exists() -> str:
    return (
        f"In a layer, written as in 'L9.z': {', '.join(LAYER_NAMES)}. "
        f"Outside the layers: {', '.join(GLOBAL_NAMES)}. Or the path of a module, as in 'model.layers.0.mlp'."
    )


def expand(
    names: str | HookPoint | Iterable[str | HookPoint | tuple[str, int]],
    n_layers: int,
    layers_with: Callable[[str], Iterable[int]] | None = None,
) -> list[HookPoint]:
    """Hook points from names, in order, once each: `"resid_pre"` is every layer's, `"L9.z"` only itself.

    `layers_with` gives the layers that have a name, where not all have it.
    """
    if isinstance(names, str | HookPoint):
        names = [names]
    points: dict[HookPoint, None] = {}
    for name in names:
        if isinstance(name, str) and name in LAYER_NAMES:
            layers = range(n_layers) if layers_with is None else layers_with(name)
            points.update(dict.fromkeys(HookPoint(name, layer) for layer in layers))
        else:
            points[parse(name)] = None
    return list(points)
