"""The fast BLAS: it is used, it computes what numpy computes, and it steps back when it would not."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.core.linux_blas import blas, cores, elf_slots
from mlxterp.core.linux_blas.blas import BlasInfo, Candidate
from mlxterp.errors import SettingError, SlowBlas
from tests.rounding import UNIT, product_error

DEPRECATIONS_PASS = ("-W", "ignore::DeprecationWarning", "-W", "ignore::PendingDeprecationWarning")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="MLX needs no other BLAS outside Linux")


@pytest.fixture
def stock() -> Iterator[BlasInfo]:
    """MLX as its wheel computes, for one test; afterwards the fast one again."""
    blas.install()
    blas.undo()
    yield blas.which()
    blas.install()


def libc_candidate(**functions: str) -> Candidate:
    """A BLAS whose functions are ones of the C library: callable, harmless, wrong."""
    libc = ctypes.CDLL(None)
    addresses = {name: ctypes.cast(libc[real], ctypes.c_void_p).value for name, real in functions.items()}
    return Candidate(BlasInfo("wrong", "libwrong.so", "1", fast=True, threads=1), addresses.get)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *DEPRECATIONS_PASS, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_plain_installation_computes_with_a_fast_blas():
    info = blas.install()

    assert info.fast
    assert blas.which() == info
    assert info.library


@linux_only
def test_the_wheel_itself_has_the_reference_blas(stock: BlasInfo):
    assert (stock.name, stock.fast) == ("reference", False)


@linux_only
def test_the_fast_one_needs_less_than_a_third_of_the_processor_time():
    code = """
import time
import mlx.core as mx
from mlxterp.core.linux_blas import blas

def seconds():
    a = mx.random.normal((256, 256), key=mx.random.key(0))
    mx.eval(a @ a)
    start = time.process_time()
    for _ in range(5):
        mx.eval(a @ a)
    return time.process_time() - start

blas.install()
fast = seconds()
blas.undo()
print(seconds() / fast)
"""
    assert float(python(code, OPENBLAS_NUM_THREADS="1").stdout) > 3


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 576, 100), (37, 129, 53), (200, 300, 400)])
def test_products_equal_numpys(dtype: str, shape: tuple[int, int, int]):
    m, k, n = shape
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((3, m, k)), rng.standard_normal((3, n, k))
    if dtype == "complex64":
        a = a + 1j * rng.standard_normal(a.shape)

    a, b = (x.astype(dtype) for x in (a, b))
    with mx.stream(mx.cpu):
        ours = mx.array(a, getattr(mx, dtype)) @ mx.array(b, getattr(mx, dtype)).transpose(0, 2, 1)

    b = b.transpose(0, 2, 1)
    exact = a.astype(np.complex128) @ b.astype(np.complex128)  # of the very numbers that MLX multiplies
    error = product_error(a, b, unit=2.0**-53 if dtype == "float64" else UNIT)
    error += product_error(a, b, unit=2.0**-53)  # the reference's own
    assert np.all(np.abs(np.array(ours) - exact) <= error)


@linux_only
def test_the_stock_results_and_the_fast_results_agree(stock: BlasInfo):
    a = mx.random.normal((64, 200), key=mx.random.key(2))
    gram = a @ a.T
    mx.eval(gram)
    before = [np.array(x) for x in (gram, mx.linalg.inv(gram, stream=mx.cpu))]

    blas.install()

    after = [np.array(x) for x in (a @ a.T, mx.linalg.inv(gram, stream=mx.cpu))]
    assert np.all(np.abs(before[0] - after[0]) <= 2 * product_error(a, a.T))
    # Each column x of an inverse by LU has |x − x̂| ≤ 3n·u · |A⁻¹||L||U||x̂| (Higham 2002, section 14.3), and
    # with partial pivoting |L||U| is at most n times |A| here.
    n, exact = len(gram), np.linalg.inv(np.array(gram, dtype=np.float64))
    error = 3 * n * UNIT * n * np.linalg.norm(exact, 2) ** 2 * np.linalg.norm(np.array(gram), 2)
    assert np.linalg.norm(before[1] - after[1], 2) <= 2 * error


@linux_only
def test_a_library_that_computes_wrongly_is_taken_back_with_a_warning(stock: BlasInfo):
    slots = elf_slots.function_slots(elf_slots.find_library("libmlx.so"), lambda name: name == "cblas_sgemm")
    before = [elf_slots.read(slot) for slot in slots]

    with pytest.warns(SlowBlas, match=r"libwrong.so: .* differs from numpy's.*scipy-openblas32"):
        info = blas.install([libc_candidate(cblas_sgemm="abs")])

    assert info == stock
    assert [elf_slots.read(slot) for slot in slots] == before


@linux_only
def test_a_library_without_the_one_function_that_matters_is_refused(stock: BlasInfo):
    with pytest.warns(SlowBlas, match="cblas_sgemm is not among them"):
        blas.install([libc_candidate(cblas_dgemm="abs")])

    assert blas.which() == stock


@linux_only
def test_when_nothing_is_installed_the_warning_says_what_to_install(stock: BlasInfo):
    with pytest.warns(SlowBlas, match=r"2 to 6 GFLOP/s.*no other BLAS is installed.*MLXTERP_BLAS=off"):
        blas.install([])


@linux_only
def test_where_the_package_cannot_be_loaded_the_warning_says_what_was_tried(
    stock: BlasInfo, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blas, "_PACKAGED", "lib/none*.so")
    monkeypatch.setattr(blas, "_SYSTEM_FILES", ("libnone.so.7",))

    with pytest.warns(SlowBlas, match=r"libnone\.so\.7: cannot open shared object file"):
        blas.install()


@linux_only
def test_on_another_machine_nothing_is_touched(stock: BlasInfo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")

    with pytest.warns(SlowBlas, match="this machine is riscv64, not one of x86_64, aarch64"):
        assert blas.install() == stock


@linux_only
def test_memory_that_is_read_only_is_opened_for_the_writing_and_closed_again():
    page = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    closed, open_ = elf_slots.Slot("closed", start + 64), elf_slots.Slot("open", start + mmap.PAGESIZE)
    elf_slots.protect(closed.address, mmap.PROT_READ)

    elf_slots.write({closed: 17, open_: 18})

    assert (elf_slots.read(closed), elf_slots.read(open_)) == (17, 18)
    assert elf_slots.protection(closed.address) == mmap.PROT_READ
    assert elf_slots.protection(open_.address) == mmap.PROT_READ | mmap.PROT_WRITE


@linux_only
def test_a_slot_outside_the_process_is_refused_before_anything_is_written():
    page = mmap.mmap(-1, mmap.PAGESIZE)
    good = elf_slots.Slot("good", ctypes.addressof(ctypes.c_char.from_buffer(page)))

    with pytest.raises(elf_slots.SlotError, match="is not mapped"):
        elf_slots.write({good: 17, elf_slots.Slot("bad", 8): 18})

    assert elf_slots.read(good) == 0


@linux_only
def test_the_reported_library_is_the_one_that_is_called():
    info = blas.install()
    slot = elf_slots.function_slots(elf_slots.find_library("libmlx.so"), lambda name: name == "cblas_sgemm")[
        0
    ]

    called = elf_slots.symbol_at(elf_slots.read(slot))

    assert os.path.realpath(info.library) == called.library
    assert called.name.endswith("cblas_sgemm")


@linux_only
def test_every_blas_and_lapack_call_is_redirected():
    blas.install()
    library = elf_slots.find_library("libmlx.so")
    slots = elf_slots.function_slots(library, lambda _: True)
    called = {slot.symbol: elf_slots.read(slot) for slot in slots}  # 0: a weak symbol that nothing defines
    files = {name: elf_slots.symbol_at(address).library for name, address in called.items() if address}

    assert [name for name, file in files.items() if "lapack" in file or "libblas" in file] == []


def test_off_leaves_mlx_alone_and_does_not_warn():
    done = python("from mlxterp.core.linux_blas import blas; print(blas.install().name)", MLXTERP_BLAS="off")

    assert (done.stderr, done.stdout.strip()) == (
        "",
        "reference" if sys.platform == "linux" else "accelerate",
    )


def test_an_unknown_setting_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLXTERP_BLAS", "fast")

    with pytest.raises(SettingError, match="'fast' is not known; it is 'auto'"):
        blas.install()


@linux_only
def test_the_number_of_threads_is_the_users_where_he_says_so():
    code = "from mlxterp.core.linux_blas import blas; print(blas.install().threads)"

    assert python(code, OPENBLAS_NUM_THREADS="1").stdout.strip() == "1"


@linux_only
def test_by_default_every_core_this_process_may_use_computes():
    code = "from mlxterp.core.linux_blas import blas, cores; print(blas.install().threads == cores.allowed())"
    unset = {name: "" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS") if name in os.environ}

    assert python(code, **unset).stdout.strip() == "True"


@linux_only
def test_while_others_compute_fewer_threads_do(monkeypatch: pytest.MonkeyPatch):
    used: list[int] = []
    candidate = Candidate(blas.which(), {}.get, used.append)
    monkeypatch.setattr(blas, "_installed", candidate)
    for idle in (2, 1):
        monkeypatch.setattr(blas, "_last_look", -1e9)
        monkeypatch.setattr(cores, "idle", lambda idle=idle: idle)
        blas.use_idle_cores()
        blas.use_idle_cores()  # too soon to look again

    assert used == [2, 1]


@linux_only
def test_within_pinned_threads_the_number_stays_whatever_is_idle_and_follows_again_after(
    monkeypatch: pytest.MonkeyPatch,
):
    used: list[int] = []
    monkeypatch.setattr(blas, "_installed", Candidate(blas.which(), {}.get, used.append))
    monkeypatch.setattr(blas, "_LOOK_SECONDS", -1.0)
    monkeypatch.setattr(cores, "idle", lambda: 7)

    def raises() -> None:
        with blas.pinned_threads():
            blas.use_idle_cores()
            with blas.pinned_threads():
                blas.use_idle_cores()
            blas.use_idle_cores()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        raises()

    assert used == [blas.PINNED_THREADS, 7]


@linux_only
def test_the_users_number_of_threads_is_not_changed_while_others_compute():
    code = """
import ctypes
from mlxterp.core.linux_blas import blas, cores
info = blas.install()
cores.idle = lambda: 2
blas.PINNED_THREADS = 2
with blas.pinned_threads():
    blas.use_idle_cores()
blas.use_idle_cores()
print(ctypes.CDLL(info.library).scipy_openblas_get_num_threads())
"""
    assert python(code, OPENBLAS_NUM_THREADS="1").stdout.strip() == "1"


@linux_only
def test_products_by_one_and_by_two_threads_agree_to_rounding():
    blas.install()
    library = ctypes.CDLL(blas.which().library)
    a, b = (mx.random.normal(shape, key=mx.random.key(3)) for shape in ((50, 576), (576, 1536)))
    results = []
    for threads in (1, 2):
        library.scipy_openblas_set_num_threads(threads)
        results.append(np.array(a @ b))
    library.scipy_openblas_set_num_threads(cores.allowed())

    assert np.all(np.abs(results[0] - results[1]) <= 2 * product_error(a, b))


@pytest.mark.parametrize(
    ("loadavg", "states", "idle"),
    [
        ("0.1 0.1 0.1 1/155 7", ["R", "S"], 4),
        ("0.1 0.1 0.1 3/155 7", ["R", "R", "R"], 4),
        ("2.0 2.0 2.0 3/155 7", ["R", "S", "S"], 2),
        ("9.0 9.0 9.0 90/155 7", ["R"], 1),
        ("9.0 9.0 9.0 1/155 7", ["R", "R"], 4),
        ("not this", ["R"], 4),
    ],
)
def test_idle_cores_are_those_that_other_processes_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loadavg: str, states: list[str], idle: int
):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(cores, "allowed", lambda: 4)
    (tmp_path / "loadavg").write_text(loadavg)
    for number, state in enumerate(states):
        (tmp_path / "self" / "task" / str(number)).mkdir(parents=True)
        (tmp_path / "self" / "task" / str(number) / "stat").write_text(f"{number} (a ) name) {state} 1 2 3")

    assert cores.idle(tmp_path) == idle


def test_installing_twice_changes_nothing():
    first = blas.install()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert blas.install() == first


def test_a_file_that_is_no_library_is_refused(tmp_path: Path):
    text = tmp_path / "libtext.so"
    text.write_text("not a library")

    with pytest.raises(elf_slots.SlotError, match="not a 64-bit little-endian ELF file"):
        elf_slots.function_slots(elf_slots.LoadedLibrary(text, 0), lambda _: True)


@pytest.mark.parametrize(
    "imports",
    ["import mlxterp, mlx.core", "import mlx.core, mlxterp", "import mlxterp, mlx.nn; import mlx.core"],
)
def test_importing_mlxterp_alone_gives_mlx_the_fast_blas_when_it_is_loaded(imports):
    run = python(
        f"{imports}; import sys; blas = sys.modules['mlxterp.core.linux_blas.blas']; "
        "assert blas.which().fast, blas.which(); "
        "assert type(mlx.core.__spec__.loader).__name__ == 'ExtensionFileLoader'; "
        "assert not [f for f in sys.meta_path if 'mlxterp' in type(f).__module__]"
    )

    assert run.returncode == 0, run.stderr
