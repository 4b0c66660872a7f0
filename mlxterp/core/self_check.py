"""Checks at load that what `discovery.py` found is true of the model, on five tokens.

Two forwards: one plain, one with every hook point captured; what fails is switched off with the reason.
Covers: reading activations, and the parts as formulas. Does not cover: whether the weights are right.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp._files import write_atomically
from mlxterp.component_names import LAYER_NAMES
from mlxterp.core import forward
from mlxterp.core.architecture import attention, linear
from mlxterp.core.architecture.parts import Architecture, Capability
from mlxterp.core.forward import HookedRun
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention, zero
from mlxterp.core.linux_blas import blas
from mlxterp.core.selection import Window
from mlxterp.core.taps import tapped
from mlxterp.errors import CapabilityUnavailable, DeviceDisagrees, UnsupportedArchitecture
from mlxterp.models.fetch import cache_dir

TOLERANCE, TOLERANCE_HALF = 5e-3, 4e-2
"""How far the logits of the two devices may lie apart, relative to the largest; float32, types of 16 bits.

Wide, because a GPU may multiply float32 in fewer bits. What it is there to catch is gross.
"""


def computing() -> mx.Device:
    """The device that a forward runs on."""
    return mx.default_device()


def on_cpu() -> AbstractContextManager[object]:
    """What is built inside is computed by the CPU."""
    return mx.stream(mx.cpu)


def compare_devices(architecture: Architecture, tokens: mx.array) -> float | None:
    """How far this device's logits of `tokens` are from the CPU's, relative to the largest; None on a CPU.

    Costs a forward on each device.

    Raises:
        DeviceDisagrees: further than the tolerance.
    """
    if computing().type == mx.cpu:
        return None
    own = architecture.forward(tokens)
    mx.eval(own)
    with on_cpu():
        expected = architecture.forward(tokens)
        mx.eval(expected)
    a, b = (np.array(x.astype(mx.float32)) for x in (own, expected))
    off = float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-6))
    tolerance = TOLERANCE if own.dtype == mx.float32 else TOLERANCE_HALF
    if not off <= tolerance:  # NaN fails too
        raise DeviceDisagrees(
            f"{architecture.name}: on {computing()} the logits of {tokens.size} tokens are {off:.1e} away "
            f"from those that the CPU computes, relative to the largest; {tolerance:g} would be rounding. "
            "Nothing measured there would be right. Compute on the CPU, before loading: "
            "mlx.core.set_default_device(mlx.core.cpu)."
        )
    return off


N_TOKENS = 5
STREAM_NAMES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_outputs", "decomposed")
"""What has no meaning where one block's output is not the next one's input."""
ATTENTION_NAMES = ("q", "k", "v", "pattern")
TOKENS_ENTER_AGAIN = (
    "the tokens enter the residual stream again in later layers, so L0.resid_pre is not all of the input: "
    "patching it does not restore a run."
)
PARALLEL = "its blocks run attention and MLP in parallel, so there is no residual stream between the two."


@dataclass(frozen=True, eq=False)
class Claim:
    """Two arrays that must agree, and what is switched off if they don't: in some layers, or everywhere."""

    names: tuple[str, ...]
    got: mx.array
    expected: mx.array
    what: str
    exact: bool = False
    layers: tuple[int, ...] | None = None

    @property
    def difference(self) -> mx.array:
        """Largest difference, relative to the largest expected value."""
        if self.got.shape != self.expected.shape:
            return mx.array(mx.inf)
        got, expected = self.got.astype(mx.float32), self.expected.astype(mx.float32)
        return mx.max(mx.abs(got - expected)) / mx.maximum(mx.max(mx.abs(expected)), 1e-6)


@dataclass(frozen=True, eq=False)
class CheckRuns:
    """One plain and one hooked forward of the same tokens."""

    tokens: mx.array
    plain: mx.array
    hooked: mx.array
    captured: dict[HookPoint, mx.array]
    attended: dict[int, mx.array]

    def of(self, name: str, layer: int) -> mx.array:
        return self.captured[HookPoint(name, layer)]


def measure_sizes(architecture: Architecture) -> None:
    """Sets d_model, d_vocab and dtype, and refuses a model whose blocks are not called.

    Nothing is computed: a lazy forward knows its shapes.
    """
    entered: list[mx.array] = []
    alone: list[bool] = []

    def record(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        entered.append(architecture.stream(args, kwargs)[0])
        out = call(*args, **kwargs)
        alone.append(isinstance(out, mx.array))
        return out

    with tapped([(layer.block, record) for layer in architecture.layers]):
        logits = architecture.forward(probe_tokens(architecture))
    if len(entered) != len(architecture.layers):
        raise UnsupportedArchitecture(
            f"{architecture.name}: a forward calls {len(entered)} blocks as modules and there are "
            f"{len(architecture.layers)}, so their residual stream cannot be hooked. Call each block once."
        )
    if entered[0].ndim != 3:
        raise UnsupportedArchitecture(
            f"{architecture.name}: what enters its blocks has shape {entered[0].shape}, not that of one "
            "residual stream [batch, pos, d_model]."
        )
    architecture.d_model, architecture.d_vocab = entered[0].shape[-1], logits.shape[-1]
    architecture.dtype = entered[0].dtype
    if not all(alone):
        _switch_off(architecture, ("decomposed",), "its blocks hand on more than the residual stream.")


def switch_off_what_fails(architecture: Architecture) -> None:
    """Checks every capability on five tokens and switches off each that fails, with the reason."""
    runs = _run_both(architecture)
    _switch_off_uncalled(architecture, runs)
    claims = list(_claims(architecture, runs))
    tolerance = 1e-4 if runs.hooked.dtype == mx.float32 else 4e-2
    differences = [claim.difference for claim in claims]
    mx.eval(differences)
    for claim, difference in zip(claims, differences, strict=True):
        off = float(np.array(difference))
        if not off <= (0.0 if claim.exact else tolerance):  # NaN fails too
            reason = f"{claim.what} (relative difference {off:.1e})."
            _switch_off(architecture, claim.names, reason, claim.layers)
    lacking = _layers_without(architecture, "attn_out")
    _switch_off(architecture, ("resid_mid", "head_outputs"), "what attention adds is not known.", lacking)
    if architecture.layers_with("resid_mid") and _in_parallel(architecture, runs):
        _switch_off(architecture, ("resid_mid",), PARALLEL)
    if not architecture.capabilities["unembedding"].available:
        _switch_off(architecture, ("final_norm_formula",), "its unembedding is not known.")
    _check_the_stream_is_all(architecture, runs, tolerance)


def _switch_off(
    architecture: Architecture, names: tuple[str, ...], reason: str, layers: Sequence[int] | None = None
) -> None:
    """Makes `names` unavailable, in some layers or altogether; among layers the first reason stays."""
    for name in names:
        had = architecture.capabilities[name]
        if not had.available and not had.layers:
            continue
        in_layers = name in LAYER_NAMES or name == "head_outputs"
        if layers is None or not in_layers:
            architecture.capabilities[name] = Capability(available=False, reason=reason)
            continue
        left = tuple(i for i in architecture.layers_with(name) if i not in layers)
        if left != architecture.layers_with(name):
            why = reason if had.available or not left else had.reason
            architecture.capabilities[name] = Capability(available=False, reason=why, layers=left)


def _check_the_stream_is_all(architecture: Architecture, runs: CheckRuns, tolerance: float) -> None:
    """Whether the last resid_post, and the first resid_pre, carry all that other tokens change."""
    last = HookPoint("resid_post", len(architecture.layers) - 1)
    first = HookPoint("resid_pre", 0)
    for point in (last, first):
        if point.layer not in architecture.layers_with(point.name):
            continue
        others = (runs.tokens + 1) % architecture.d_vocab
        whole = Intervention(point, "replace", value=runs.captured[point])
        patched, _, _ = forward.run(architecture, others, interventions=[whole])
        off = float(np.array(Claim((), patched, runs.plain, "").difference))
        if off <= tolerance:
            continue
        if point is last:
            what = f"the last one does not determine the logits (relative difference {off:.1e})."
            _switch_off(architecture, ("resid_post", "unembedding", "final_norm_formula"), what)
        else:
            for name in ("embed", "resid_pre", "resid_mid", "resid_post", "decomposed"):
                if architecture.capabilities[name].available:
                    architecture.capabilities[name] = Capability(available=True, reason=TOKENS_ENTER_AGAIN)


def probe_tokens(architecture: Architecture) -> mx.array:
    """Five different tokens of the vocabulary."""
    size = 1 if architecture.embedding is None else linear.n_rows(architecture.embedding) or 1
    return mx.array([[(1 + 7 * i) % size for i in range(N_TOKENS)]])


def _run_both(architecture: Architecture) -> CheckRuns:
    tokens = probe_tokens(architecture)
    wanted = {HookPoint(name, i) for name in LAYER_NAMES for i in architecture.layers_with(name)}
    wanted.add(HookPoint("final_norm"))
    hooked_run = HookedRun({}, frozenset(wanted), Window(0, (N_TOKENS,)), architecture.lock)
    hooked = forward.forward(architecture, hooked_run, tokens)
    return CheckRuns(tokens, architecture.forward(tokens), hooked, hooked_run.captured, hooked_run.attended)


def _in_parallel(architecture: Architecture, runs: CheckRuns) -> bool:
    """Whether the first such block's MLP does not see what its attention adds. Computes up to one block."""
    layer = architecture.layers_with("resid_mid")[0]
    mlp_out = HookPoint("mlp_out", layer)
    _, without, _ = forward.run(
        architecture, runs.tokens, interventions=[zero(f"L{layer}.attn_out")], capture=[mlp_out]
    )
    return bool(mx.array_equal(without[mlp_out], runs.captured[mlp_out]).item())


def _switch_off_uncalled(architecture: Architecture, runs: CheckRuns) -> None:
    for name in LAYER_NAMES:
        for layer in architecture.layers_with(name):
            if HookPoint(name, layer) not in runs.captured:
                _switch_off(architecture, (name,), f"layer {layer} never computes it.", [layer])
    without_z = _layers_without(architecture, "z")
    _switch_off(architecture, ("head_outputs",), architecture.capabilities["z"].reason, without_z)


def _layers_without(architecture: Architecture, name: str) -> list[int]:
    having = architecture.layers_with(name)
    return [i for i in range(len(architecture.layers)) if i not in having]


def _layers_by_kind(architecture: Architecture) -> list[tuple[int, ...]]:
    """The layers whose attention is of one class, for each class."""
    kinds: dict[type, list[int]] = {}
    for index, layer in enumerate(architecture.layers):
        kinds.setdefault(type(layer.attn), []).append(index)
    return [tuple(layers) for layers in kinds.values()]


def _claims(architecture: Architecture, runs: CheckRuns) -> Iterator[Claim]:
    have = architecture.capabilities
    n_layers = len(architecture.layers)
    hooks = tuple(name for name in have if name != "logits")
    transparent = "a hooked run does not give the plain run's logits bit by bit"
    yield Claim(hooks, runs.hooked, runs.plain, transparent, exact=True)
    yield from _is_one_stream(architecture, runs)
    for layer in range(n_layers):
        yield from _adds_up(architecture, runs, layer)
    for alike in _layers_by_kind(architecture):
        for layer in sorted({alike[0], alike[len(alike) // 2], alike[-1]}):
            yield from _attends(architecture, runs, layer, alike)
    yield from _ends_in_logits(architecture, runs)


def _attends(
    architecture: Architecture, runs: CheckRuns, layer: int, alike: tuple[int, ...]
) -> Iterator[Claim]:
    """What must hold of one layer's heads; what fails is switched off in all layers that are alike."""
    if layer not in architecture.layers_with("z"):
        return
    if all(layer in architecture.layers_with(name) for name in ("v", "pattern")):
        z = attention.attend(runs.of("pattern", layer), runs.of("v", layer).swapaxes(1, 2)).swapaxes(1, 2)
        # A gate may stand between what attention computes and z (qwen3_next, afmoe).
        expected = runs.attended.get(layer, runs.of("z", layer))
        what = f"in layer {layer} pattern · v is not what attention computes"
        yield Claim(ATTENTION_NAMES, z, expected, what, layers=alike)
        n_heads, n_kv_heads = architecture.layers[layer].n_heads, architecture.layers[layer].n_kv_heads
        for name, number in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)):
            if layer in architecture.layers_with(name) and runs.of(name, layer).shape[2] != number:
                what = (
                    f"in layer {layer} attention has {runs.of(name, layer).shape[2]} heads and not {number}."
                )
                _switch_off(architecture, (name,), what, alike)
    if all(layer in architecture.layers_with(name) for name in ("head_outputs", "attn_out")):
        try:
            heads, bias = architecture.head_outputs(layer, runs.of("z", layer))
        except CapabilityUnavailable as problem:
            _switch_off(architecture, ("head_outputs",), str(problem), alike)
            return
        total = mx.sum(heads, axis=-2) + bias
        what = f"in layer {layer} the heads' outputs and the bias are not attn_out"
        yield Claim(("head_outputs",), total, runs.of("attn_out", layer), what, layers=alike)


def _is_one_stream(architecture: Architecture, runs: CheckRuns) -> Iterator[Claim]:
    both = [i for i in architecture.layers_with("resid_pre") if i in architecture.layers_with("resid_post")]
    for layer in both:
        if layer + 1 in both:
            what = f"layer {layer + 1} does not begin with what layer {layer} ends with"
            yield Claim(STREAM_NAMES, runs.of("resid_pre", layer + 1), runs.of("resid_post", layer), what)


def _adds_up(architecture: Architecture, runs: CheckRuns, layer: int) -> Iterator[Claim]:
    added = tuple(name for name in ("attn_out", "mlp_out") if layer in architecture.layers_with(name))
    if added:
        total = runs.of("resid_pre", layer)
        for name in added:
            total = total + runs.of(name, layer)
        what = f"in layer {layer} resid_pre + {' + '.join(added)} is not resid_post"
        yield Claim(added, total, runs.of("resid_post", layer), what, layers=(layer,))


# What a model's own code may raise when its blocks are skipped, and they would have left something behind.
_MODELS_OWN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def _ends_in_logits(architecture: Architecture, runs: CheckRuns) -> Iterator[Claim]:
    have = architecture.capabilities
    n_layers = len(architecture.layers)
    last = runs.of("resid_post", n_layers - 1)
    try:
        prologue = architecture.prologue(runs.tokens) if have["decomposed"].available else None
    except _MODELS_OWN as problem:
        prologue = None
        what = f"a forward does not go through without its blocks ({type(problem).__name__}: {problem})."
        _switch_off(architecture, ("decomposed",), what)
    if prologue is not None:
        what = "its blocks run one by one do not give its own residual stream"
        yield Claim(("decomposed",), prologue.h, runs.of("resid_pre", 0), what)
        # Each block is called with what the model itself called it with, so a few stand for all: reading
        # every weight once more is a third of the check's time.
        for layer in sorted({0, min(1, n_layers - 1), n_layers // 2, n_layers - 1}):
            after = architecture.block(layer, runs.of("resid_pre", layer), prologue)
            yield Claim(("decomposed",), after, runs.of("resid_post", layer), what)
    if not have["unembedding"].available:
        return
    what = "norm and unembedding do not give its own logits"
    yield Claim(("unembedding",), architecture.final(last), runs.plain, what)
    if architecture.read_final_norm() is None:
        _switch_off(architecture, ("final_norm_formula",), "its final norm is none of the known formulas.")
        return
    some = mx.array([0, architecture.d_vocab // 2, architecture.d_vocab - 1])
    directions, constants = architecture.logit_directions(some)
    logits = (last.astype(mx.float32) @ directions.T) * architecture.norm_scale(last) + constants
    got = architecture.softcapped(logits)
    what = "logits are not linear in the residual stream at a fixed norm scale"
    yield Claim(("final_norm_formula",), got, runs.plain[..., some], what)


SCHEMA = "mlxterp-probe/2"


def read_kept_capabilities(architecture: Architecture, digest: str) -> dict[str, Capability] | None:
    """What an earlier process found for these weights, this code and this machine, or None."""
    try:
        data = json.loads(_path(architecture, digest).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or set(data["capabilities"]) != set(architecture.capabilities):
            return None
        return {
            name: Capability(bool(available), str(reason), tuple(int(i) for i in layers))
            for name, (available, reason, *layers) in data["capabilities"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return None


def keep_capabilities(architecture: Architecture, digest: str) -> None:
    """Writes the capabilities to the cache; a cache that cannot be written is not an error."""
    capabilities = architecture.capabilities.items()
    found = {name: [each.available, each.reason, *each.layers] for name, each in capabilities}
    content = json.dumps({"schema": SCHEMA, "model": architecture.name, "capabilities": found}, indent=1)
    path = _path(architecture, digest)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())


def _path(architecture: Architecture, digest: str) -> Path:
    modules = {inspect.getmodule(type(part)) for part in (architecture.model, architecture.layers[0].block)}
    modules |= {
        inspect.getmodule(layer.namespace[attention.NAME])
        for layer in architecture.layers[:1]
        if attention.NAME in layer.namespace
    }
    key = hashlib.sha256(f"{SCHEMA} {digest} {_code_of_the_core()} {_machine()}".encode())
    for file in sorted(file for module in modules if (file := getattr(module, "__file__", None))):
        key.update(Path(file).read_bytes())
    return cache_dir() / "probes" / f"{architecture.name}-{key.hexdigest()[:32]}.json"


@cache
def _code_of_the_core() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _machine() -> str:
    which = blas.which()
    return f"{version('mlx')} {platform.platform()} {mx.default_device()} {which.name} {which.version}"
