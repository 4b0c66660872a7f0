"""A fast BLAS for MLX on Linux, where its wheel computes with the reference BLAS.

`install()` runs once, right after the first `import mlx.core`. It points the slots through which
libmlx.so calls BLAS and LAPACK (`elf_slots.py`) at an OpenBLAS: the one of the `scipy-openblas32`
package, else the system's. Then it compares a few products and factorisations with numpy, and takes
everything back if they differ. If nothing fast is found, MLX keeps computing as it came, and one
`SlowBlas` warning says so. `MLXTERP_BLAS=off` leaves MLX alone.

The number of threads follows the idle cores (`use_idle_cores`). It decides where a product is cut, and with
it the last bits of the result, so what promises the same bits computes in `pinned_threads()`.

Not here: macOS, where MLX computes with Metal and Accelerate and nothing is changed; GPUs.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import math
import os
import platform
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np

from mlxterp.core.linux_blas import cores, elf_slots
from mlxterp.core.linux_blas.elf_slots import Slot, SlotError
from mlxterp.errors import SettingError, SlowBlas

ENV = "MLXTERP_BLAS"
THREADS_ENVS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
"""Where a user fixes the number of threads, for the whole life of a process."""
PINNED_THREADS = 1
"""The number of threads of `pinned_threads`. One, so that it holds on a busy machine, on any number of cores
and in each of several workers (docs/decisions/0023-same-bits-with-pinned-threads.md)."""

# The one that matters: every float32 matmul goes through it. A library without it is no candidate.
_SGEMM = "cblas_sgemm"
_BLAS_OR_LAPACK = re.compile(r"cblas_[a-z0-9]+|[sdcz](ge|po|tr|sy|he|or|un)[a-z0-9]{1,6}_")
_FAST = re.compile(r"openblas|mkl|blis|armpl|nvpl|accelerate", re.IGNORECASE)
_LOOK_SECONDS = 0.1
_PACKAGED = "lib/libscipy_openblas*.so"
_SYSTEM_FILES = ("libopenblasp.so.0", "libopenblas.so.0", "libopenblas.so")

_seeds = itertools.count()
_originals: dict[Slot, int] = {}
_installed: Candidate | None = None
_last_look = -math.inf
_changing_threads = threading.Lock()
_pins = 0  # how many `pinned_threads()` are open, in all threads of this process


@dataclass(frozen=True)
class BlasInfo:
    """Which BLAS computes MLX's matrix products on the CPU of this process.

    `name` is "openblas", "reference", "accelerate" or another library's, `library` the file it comes from,
    `threads` how many it uses at most, where that is known. `fast` is False for the reference BLAS, 2 to 6
    GFLOP/s.
    """

    name: str
    library: str
    version: str
    fast: bool
    threads: int | None

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.name} {self.version}".rstrip() + threads


@dataclass(frozen=True)
class Candidate:
    """A library that may stand in: what it is, how to find a function's address in it and set its threads."""

    info: BlasInfo
    address: Callable[[str], int | None]
    set_threads: Callable[[int], object] | None = None  # None: the user has said how many


def install(candidates: Sequence[Candidate] | None = None) -> BlasInfo:
    """Give MLX a fast BLAS where it has a slow one; says which one it has now.

    Costs 15-30 ms the first time. A candidate whose results differ from numpy's is taken back.

    Args:
        candidates: what to try, in this order; by default the packaged OpenBLAS, then the system's.

    Raises:
        SettingError: MLXTERP_BLAS is neither "auto" nor "off".
    """
    global _installed
    setting = os.environ.get(ENV, "auto")
    if setting not in ("auto", "off"):
        raise SettingError(f"{ENV}={setting!r} is not known; it is 'auto' (the default) or 'off'.")
    before = which()
    if before.fast or setting == "off":
        return before
    tried: list[str] = []
    try:
        library = elf_slots.find_library("libmlx.so")
        slots = elf_slots.function_slots(library, lambda name: _BLAS_OR_LAPACK.fullmatch(name) is not None)
        for candidate in _candidates(tried) if candidates is None else candidates:
            wrong = _try(candidate, slots)
            if wrong is None:
                _installed = candidate
                return candidate.info
            tried.append(f"{candidate.info.library}: {wrong}")
    except (SlotError, OSError) as error:
        tried.append(str(error))
    warnings.warn(_slow_message(before, tried), SlowBlas, stacklevel=2)
    return before


def undo() -> None:
    """MLX computes as it came. For comparisons; `install()` puts the fast one back."""
    global _installed
    elf_slots.write(_originals)
    _originals.clear()
    _installed = None


def use_idle_cores() -> None:
    """Compute with as many threads as there are idle cores from now on; called before each forward.

    The threads of a product wait for each other several times. Where another program has one of the cores,
    each wait is a time slice of the scheduler: on 2 cores at a load of 6 to 8, SmolLM2-135M reads 12 tokens
    in 4.5 s with two threads and in 0.37 s with one. Looks at most ten times a second. Does nothing if the
    user has set the number of threads (OPENBLAS_NUM_THREADS), or within `pinned_threads`.
    """
    global _last_look
    with _changing_threads:
        now = time.monotonic()
        if _installed is None or _installed.set_threads is None or _pins or now - _last_look < _LOOK_SECONDS:
            return
        _last_look = now
        _installed.set_threads(cores.idle())


@contextmanager
def pinned_threads() -> Iterator[None]:
    """Products computed in here have the same bits in every run on the same CPU with the same BLAS.

    The number of threads is `PINNED_THREADS`, or the user's (OPENBLAS_NUM_THREADS), whatever else runs. It is
    the whole process's: while one thread is in here, all compute with it. May be nested. MLX is lazy: a
    result has to be evaluated in here. Only equal shapes give equal bits: a row alone and the same row in a
    batch may differ in the last ones.
    """
    global _pins, _last_look
    with _changing_threads:
        _pins += 1
        if _pins == 1 and _installed is not None and _installed.set_threads is not None:
            _installed.set_threads(PINNED_THREADS)
    try:
        yield
    finally:
        with _changing_threads:
            _pins -= 1
            _last_look = -math.inf
        use_idle_cores()


def which() -> BlasInfo:
    """Which BLAS computes now, read from the slot that MLX calls through rather than remembered."""
    if sys.platform == "darwin":
        return BlasInfo("accelerate", "Metal and Accelerate", platform.mac_ver()[0], fast=True, threads=None)
    if _installed is not None:
        return _installed.info
    try:
        slots = elf_slots.function_slots(elf_slots.find_library("libmlx.so"), lambda name: name == _SGEMM)
        file = elf_slots.symbol_at(elf_slots.read(slots[0])).library if slots else "unknown"
    except (SlotError, OSError) as error:
        return BlasInfo("unknown", str(error), "", fast=False, threads=None)
    known = _FAST.search(file)
    if known:
        return BlasInfo(known[0].lower(), file, "", fast=True, threads=None)
    return BlasInfo("reference", file, "", fast=False, threads=1)


def _try(candidate: Candidate, slots: Sequence[Slot]) -> str | None:
    """Install the candidate; what is wrong with it, or None when it computes what numpy computes."""
    found = {slot: candidate.address(slot.symbol) for slot in slots}
    addresses = {slot: address for slot, address in found.items() if address is not None}
    if _SGEMM not in {slot.symbol for slot in addresses}:
        return f"MLX calls {len(slots)} functions that it could replace, but {_SGEMM} is not among them"
    _originals.update({slot: elf_slots.read(slot) for slot in addresses})
    elf_slots.write(addresses)
    if candidate.set_threads is not None:
        candidate.set_threads(PINNED_THREADS if _pins else cores.idle())
    wrong = _difference_from_numpy()
    if wrong is not None:
        undo()
    return wrong


def _difference_from_numpy() -> str | None:
    """The first computation in which MLX's CPU differs from numpy, or None."""
    # Other numbers each time: a function that writes nothing must not find the right answer in reused memory.
    rng = np.random.default_rng(next(_seeds))
    a = rng.standard_normal((65, 129)).astype(np.float32)
    b = rng.standard_normal((48, 129)).astype(np.float32)
    eye = np.eye(65, dtype=np.float32)
    square = a @ a.T / 129 + eye
    with mx.stream(mx.cpu):
        m = mx.array(square)
        q, r = mx.linalg.qr(m)
        u, s, vt = mx.linalg.svd(m)
        values, vectors = mx.linalg.eigh(m)
        low = mx.linalg.cholesky(m)
        checks = (
            ("a float32 product", mx.array(a) @ mx.array(b).T, a @ b.T),
            ("a transposed product", mx.array(a).T @ mx.array(a), a.T @ a),
            (
                "a batched product",
                mx.array(a) @ mx.array(np.stack([b.T, -b.T])),
                np.stack([a @ b.T, -a @ b.T]),
            ),
            ("a float64 product", mx.array(a, mx.float64) @ mx.array(b, mx.float64).T, a @ b.T),
            ("a complex product", mx.array(a * 1j) @ mx.array(b).T, a * 1j @ b.T),
            ("qr", q @ r, square),
            ("svd", (u * s) @ vt, square),
            ("eigh", (vectors * values) @ vectors.T, square),
            ("cholesky", low @ low.T, square),
            ("inv", mx.linalg.inv(m) @ m, eye),
        )
        for name, ours, theirs in checks:
            if not np.allclose(np.array(ours), theirs, rtol=1e-4, atol=1e-3):
                return f"{name} differs from numpy's"
    return None


def _candidates(tried: list[str]) -> Iterator[Candidate]:
    """The libraries here that could stand in, the packaged one first; `tried` gets those that fail."""
    if platform.machine() not in elf_slots.MACHINES:
        raise SlotError(f"this machine is {platform.machine()}, not one of {', '.join(elf_slots.MACHINES)}")
    spec = importlib.util.find_spec("scipy_openblas32")
    packaged = [] if spec is None or spec.origin is None else [*Path(spec.origin).parent.glob(_PACKAGED)]
    for name, prefix in [(str(file), "scipy_") for file in packaged] + [(file, "") for file in _SYSTEM_FILES]:
        try:
            library = ctypes.CDLL(name, mode=ctypes.RTLD_LOCAL)
        except OSError as error:
            tried.append(str(error))
            continue
        yield _openblas(library, prefix)


def _openblas(library: ctypes.CDLL, prefix: str) -> Candidate:
    """An OpenBLAS whose names all begin with `prefix`, set to use this process's cores."""

    def function(name: str, *, gives: type | None) -> Callable[..., Any] | None:
        try:
            found = library[prefix + name]
        except AttributeError:
            return None
        found.restype = gives
        return found

    def address(name: str) -> int | None:
        found = function(name, gives=None)
        return None if found is None else ctypes.cast(cast(Any, found), ctypes.c_void_p).value

    set_threads = function("openblas_set_num_threads", gives=None)
    get_threads = function("openblas_get_num_threads", gives=ctypes.c_int)
    config = function("openblas_get_config", gives=ctypes.c_char_p)
    core = function("openblas_get_corename", gives=ctypes.c_char_p)
    chosen = any(os.environ.get(name) for name in THREADS_ENVS)
    if set_threads is not None and not chosen:
        set_threads(cores.allowed())
    version = re.match(r"OpenBLAS (\S+)", config().decode()) if config is not None else None
    words = [version[1] if version else "", core().decode() if core is not None else ""]
    threads = None if get_threads is None else int(get_threads())
    info = BlasInfo("openblas", library._name, " ".join(words).strip(), fast=True, threads=threads)
    return Candidate(info, address, None if chosen else set_threads)


def _slow_message(now: BlasInfo, tried: Sequence[str]) -> str:
    return (
        f"MLX computes with {now.library}, a BLAS of 2 to 6 GFLOP/s: everything takes 5 to 10 times longer "
        f"than it need. Tried: {'; '.join(tried) or 'no other BLAS is installed'}. Install one with "
        f"`pip install scipy-openblas32`, or set {ENV}=off to keep this one without this warning."
    )
