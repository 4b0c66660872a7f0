"""The function slots of a shared library that is already loaded: find, read and rewrite them (Linux, ELF64).

A library that calls `cblas_sgemm` of another one does so through a pointer, its slot, which the dynamic
loader fills in when the library is loaded. Writing another address of the same signature there redirects
the call; writing the old one back undoes it. Nothing on disk changes, and no other library notices.

Covers: finding slots in the file's relocation tables, memory that is read-only after loading (RELRO).
Does not cover: which function is worth putting there, and whether it computes the same (`blas.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# Relocation types that hold the plain address of a function: JUMP_SLOT and GLOB_DAT, by ELF machine number.
RELOCATIONS = {62: (7, 6), 183: (1026, 1025)}
MACHINES = {"x86_64": 62, "aarch64": 183}

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23


class SlotError(Exception):
    """The library is not loaded, is no ELF file of this machine, or its memory cannot be changed."""


class Slot(NamedTuple):
    """One pointer of the library: the function called through it, and where in memory it lies."""

    symbol: str
    address: int


class Symbol(NamedTuple):
    """What an address belongs to: the file that was loaded there, and the nearest exported name."""

    library: str
    name: str


@dataclass(frozen=True)
class LoadedLibrary:
    """A shared library in this process: its file, and the address added to every address in that file."""

    path: Path
    base: int


class _PhdrInfo(ctypes.Structure):
    _fields_ = (("addr", ctypes.c_void_p), ("name", ctypes.c_char_p))


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("fname", ctypes.c_char_p),
        ("fbase", ctypes.c_void_p),
        ("sname", ctypes.c_char_p),
        ("saddr", ctypes.c_void_p),
    )


_VISITOR = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_PhdrInfo), ctypes.c_size_t, ctypes.c_void_p)
_libc = ctypes.CDLL(None, use_errno=True)


def find_library(file_name: str) -> LoadedLibrary:
    """The loaded library whose file has this name."""
    found: list[LoadedLibrary] = []

    def visit(info: ctypes._Pointer[_PhdrInfo], _size: int, _data: int) -> int:
        path = os.fsdecode(info.contents.name or b"")
        if os.path.basename(path) == file_name:
            found.append(LoadedLibrary(Path(path), info.contents.addr or 0))
        return 0

    _libc.dl_iterate_phdr(_VISITOR(visit), None)
    if not found:
        raise SlotError(f"{file_name} is not loaded in this process")
    return found[0]


def function_slots(library: LoadedLibrary, wanted: Callable[[str], bool]) -> list[Slot]:
    """The slots through which `library` calls functions whose name is wanted, in the order of its tables."""
    with (
        library.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image,
    ):
        return [Slot(name, library.base + offset) for name, offset in _relocations(image) if wanted(name)]


def _relocations(image: mmap.mmap) -> Iterator[tuple[str, int]]:
    """(symbol, offset) of every relocation that stores a function's address."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise SlotError("not a 64-bit little-endian ELF file")
    machine = struct.unpack_from("<H", image, 18)[0]
    if machine not in RELOCATIONS:
        raise SlotError(f"ELF machine {machine} is not one of {sorted(RELOCATIONS)}")
    start, size, count = struct.unpack_from("<32xQ14xHH", image, 0)
    segments = [struct.unpack_from("<I4xQQ8xQ", image, start + i * size) for i in range(count)]

    def in_file(address: int) -> int:
        for kind, offset, at, length in segments:
            if kind == _PT_LOAD and at <= address < at + length:
                return int(address - at + offset)
        raise SlotError(f"address {address:#x} lies in no segment")

    dynamic: dict[int, int] = {}
    for kind, offset, _at, length in segments:
        if kind == _PT_DYNAMIC:
            dynamic = dict(struct.iter_unpack("<QQ", image[offset : offset + length - length % 16]))
    if not {_DT_STRTAB, _DT_SYMTAB} <= dynamic.keys():
        raise SlotError("no dynamic symbol table")
    names, symbols = in_file(dynamic[_DT_STRTAB]), in_file(dynamic[_DT_SYMTAB])

    for table, length in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if table not in dynamic:
            continue
        at = in_file(dynamic[table])
        for offset, info, addend in struct.iter_unpack("<QQq", image[at : at + dynamic[length]]):
            symbol, kind = info >> 32, info & 0xFFFFFFFF
            if symbol and addend == 0 and kind in RELOCATIONS[machine]:
                name = names + struct.unpack_from("<I", image, symbols + 24 * symbol)[0]
                yield image[name : image.find(b"\0", name)].decode("ascii"), offset


def read(slot: Slot) -> int:
    """The address that is called through the slot now."""
    return ctypes.c_uint64.from_address(slot.address).value


def write(addresses: Mapping[Slot, int]) -> None:
    """Calls through each slot go to its address from now on.

    Pages that are read-only are opened first and closed again at the end, so a refusal changes nothing. A
    slot is eight aligned bytes: another thread sees the old address or the new one.
    """
    with contextlib.ExitStack() as stack:
        for page in sorted({slot.address - slot.address % mmap.PAGESIZE for slot in addresses}):
            before = protection(page)
            if not before & mmap.PROT_WRITE:
                protect(page, before | mmap.PROT_WRITE)
                stack.callback(protect, page, before)
        for slot, address in addresses.items():
            ctypes.c_uint64.from_address(slot.address).value = address


def symbol_at(address: int) -> Symbol:
    """Which library, and which function of it, an address belongs to."""
    info = _DlInfo()
    if not _libc.dladdr(ctypes.c_void_p(address), ctypes.byref(info)) or info.fname is None:
        raise SlotError(f"address {address:#x} belongs to no loaded library")
    return Symbol(os.path.realpath(os.fsdecode(info.fname)), os.fsdecode(info.sname or b""))


def protection(address: int) -> int:
    """The protection of the page at `address`, as mprotect(2) takes it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, flags = line.split(None, 2)[:2]
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            known = {"r": mmap.PROT_READ, "w": mmap.PROT_WRITE, "x": mmap.PROT_EXEC}
            return sum(known[flag] for flag in flags[:3] if flag != "-")
    raise SlotError(f"address {address:#x} is not mapped")


def protect(address: int, flags: int) -> None:
    """Set the protection of the page that holds `address`."""
    page = address - address % mmap.PAGESIZE
    if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), flags):
        reason = os.strerror(ctypes.get_errno())
        raise SlotError(f"mprotect of the page at {page:#x} was refused: {reason}")
