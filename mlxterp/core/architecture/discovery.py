"""Finds the parts of a model: its blocks, their attention and MLP, the norm, the embeddings.

By the names that models use, and by `families.py` for those that differ. What is found is only a reading of
names: `self_check.py` checks it by running the model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import mlx.nn as nn

from mlxterp.core.architecture import families, linear
from mlxterp.core.architecture.attention import NAME as ATTENTION_FUNCTION
from mlxterp.core.architecture.families import COMMON, FAMILIES, Family
from mlxterp.core.architecture.parts import (
    YES,
    Architecture,
    Capability,
    Layer,
    OwnSoftmax,
    missing,
)
from mlxterp.errors import UnsupportedArchitecture


def describe(model: nn.Module, family: Family | None = None) -> Architecture:
    """Finds the parts of a model; `self_check.py` then checks what was found.

    Raises:
        UnsupportedArchitecture: the module has no list of layers.
    """
    chain, blocks = _layer_list(model)
    owner = chain[-1]
    if family is None:
        package, _, name = type(owner).__module__.rpartition(".")
        family = FAMILIES.get(name, COMMON) if package == "mlx_lm.models" else COMMON
    args = next((m.__dict__[n] for m in reversed(chain) for n in ("args", "config") if n in m.__dict__), None)
    embedding = _first_of(reversed(chain), families.EMBEDDING)
    unembedding = _first_of(chain, families.UNEMBEDDING)
    found = Architecture(
        model=model,
        family=family,
        layers=tuple(_read_block(block, family) for block in blocks),
        norm_module=_first_of(reversed(chain), families.FINAL_NORM),
        embedding=embedding,
        unembedding_module=unembedding or embedding,
        tied=unembedding is None,
        attn_scale=family.attn_scale(args),
        mlp_scale=family.mlp_scale(args),
        logit_scale=family.logit_scale(args),
        softcap=family.softcap(args),
        takes_cache=_has_parameter(type(model), "cache"),
        max_positions=_max_positions(chain),
    )
    found.capabilities = dict(_structural(found))
    return found


def _max_positions(chain: Iterable[nn.Module]) -> int | None:
    """How many rows a table of learned positions has; None where positions are computed."""
    table = _first_of(chain, families.POSITIONS)
    return None if table is None or not linear.readable(table) else linear.n_rows(table)


def _structural(found: Architecture) -> Iterator[tuple[str, Capability]]:
    """What can be said without running the model: which parts are there."""

    def in_every(has: Callable[[Layer], bool], lack: str) -> Capability:
        having = tuple(i for i, layer in enumerate(found.layers) if has(layer))
        without = [i for i in range(len(found.layers)) if i not in having]
        return replace(missing(f"{lack} (layer {without[0]})."), layers=having) if without else YES

    def in_both(first: Capability, second: Capability) -> Capability:
        if second.available:
            return first
        if first.available:
            return second
        return replace(first, layers=tuple(i for i in first.layers if i in second.layers))

    attention = in_every(lambda la: la.attn is not None, "a block has no attention module")
    mlp = in_every(lambda la: la.mlp is not None, "a block has no MLP")
    heads = in_every(
        lambda la: la.out_proj is not None and bool(la.n_heads),
        "an attention module has no output projection or no number of heads",
    )
    function = in_every(
        lambda la: ATTENTION_FUNCTION in la.namespace or la.own_softmax is not None,
        f"attention does not call {ATTENTION_FUNCTION}, where q, k, v and pattern are read",
    )
    unembedding = found.unembedding_module is not None and linear.readable(found.unembedding_module)
    for name in ("resid_pre", "resid_post", "embed", "logits", "decomposed", "final_norm_formula"):
        yield name, YES
    for name in ("q", "k", "v", "pattern"):
        yield name, in_both(attention, function)
    for name in ("z", "head_outputs"):
        yield name, in_both(attention, heads)
    yield "attn_out", attention
    yield "mlp_out", mlp
    yield "resid_mid", in_both(mlp, attention)
    no_norm = missing("there is no norm before the unembedding.")
    yield "final_norm", YES if found.norm_module is not None else no_norm
    yield "unembedding", YES if unembedding else missing("no unembedding matrix was found.")


_IS_MLP = re.compile(r"MLP|MoE|FeedForward", re.IGNORECASE)


def _read_block(block: nn.Module, family: Family) -> Layer:
    attn = _at(block, family.attn) if family.attn else _first(block, families.ATTENTION)
    mlp = _at(block, family.mlp) if family.mlp else _first(block, families.MLP)
    if mlp is None and attn is not None and _IS_MLP.search(type(attn).__name__):
        attn, mlp = None, attn  # nemotron_h calls whatever a block has its mixer
    out_proj = None if attn is None else _first(attn, families.OUT_PROJECTION)
    n_heads = None if attn is None else _number(attn, families.N_HEADS)
    if out_proj is not None and n_heads and linear.width(out_proj) % n_heads:
        out_proj = None  # its input is not a row of heads
    namespace = getattr(type(attn).__call__, "__globals__", {})
    return Layer(
        block=block,
        attn=attn,
        mlp=mlp,
        out_proj=out_proj,
        attn_adds=_at(block, family.attn_adds) if family.attn_adds else attn,
        mlp_adds=_at(block, family.mlp_adds) if family.mlp_adds else mlp,
        n_heads=n_heads,
        n_kv_heads=n_heads if attn is None else _number(attn, families.N_KV_HEADS) or n_heads,
        namespace=namespace,
        own_softmax=_own_softmax(attn, namespace) if family.own_softmax else None,
    )


def _own_softmax(attn: nn.Module | None, namespace: dict[str, Any]) -> OwnSoftmax | None:
    rope, v_proj = (None if attn is None else _first(attn, (name,)) for name in ("rope", "v_proj"))
    if rope is None or v_proj is None or "mx" not in namespace:
        return None
    return OwnSoftmax(rope, v_proj)


def _layer_list(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules from the model to the owner of its blocks, and the blocks: the longest outermost list."""
    level: list[list[nn.Module]] = [[model]]
    while level:
        lists = [(chain, value) for chain in level for value in chain[-1].values() if _is_module_list(value)]
        if lists:
            return max(lists, key=lambda found: len(found[1]))
        level = [[*chain, part] for chain in level for part in chain[-1].values() if _is_module(part)]
    raise UnsupportedArchitecture(
        f"{type(model).__name__} holds no list of modules, so there are no layers to hook. "
        "Keep the blocks in one list, as in `self.layers = [...]`."
    )


def _is_module(value: object) -> bool:
    return isinstance(value, nn.Module)


def _is_module_list(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_module, value))


def _first(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((module[name] for name in names if isinstance(module.get(name), nn.Module)), None)


def _first_of(modules: Iterable[nn.Module], names: tuple[str, ...]) -> nn.Module | None:
    return next((found for module in modules if (found := _first(module, names)) is not None), None)


def _at(module: nn.Module, path: str) -> nn.Module | None:
    for part in path.split("."):
        child = module.get(part)
        if not isinstance(child, nn.Module):
            return None
        module = child
    return module


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    return next((module.__dict__[n] for n in names if isinstance(module.__dict__.get(n), int)), None)


def _has_parameter(cls: type, name: str) -> bool:
    return name in inspect.signature(cls.__call__).parameters
