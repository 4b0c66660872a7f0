"""The jail of an experiment's process on Linux: Landlock for files, network and signals, seccomp for the
rest.

Standard library only, through ctypes, without privileges: the worker applies it to itself before it imports
anything of the investigation. It holds for this process and all its threads until the process ends; nothing
can take it back. A deny list over many system calls is strong against agents and accidents, not against
somebody who exploits the kernel.

Lives here: what the kernel is asked for. Does not live here: which paths a run may read and write
(`policy.py`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
_SECCOMP_FILTER, _SECCOMP_TSYNC = 1, 1

# Landlock's rights, in the order of their bits, and the ABI version that brought them.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1, 2, 4, 8, 1 << 14, 1 << 15
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: _IOCTL_DEV}
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_MAKE_DEVICES = (1 << 6) | (1 << 9) | (1 << 11)  # character devices, sockets, block devices
_NETWORK_ABI, _NETWORK = 4, 3  # binding and connecting TCP
_SCOPE_ABI, _SCOPES = 6, 3  # abstract unix sockets, signals
MINIMUM_ABI = 1


class JailError(Exception):
    """The jail could not be closed; the message says which part of it and why."""


def landlock_abi() -> int:
    """The version of Landlock that this kernel offers; 0 where it offers none."""
    if sys.platform != "linux":
        return 0
    version = _libc().syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(int(version), 0)


def machine() -> Mapping[str, int] | None:
    """The numbers of the system calls of this processor; None where they are not known."""
    return _NUMBERS.get(platform.machine())


def close(read: Sequence[str], write: Sequence[str]) -> None:
    """Jails this process: files, network, processes, signals, privileges.

    Afterwards it reads below `read` and `write`, writes below `write` and to /dev/null, and starts no
    process, opens no socket, and reaches no other process. Changing modes, owners and times of files does
    nothing. Takes about a millisecond.

    Raises:
        JailError: the kernel refused a part; the process is then to end. Or there are threads, which Landlock
            would leave outside.
    """
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise JailError(
            f"the process has {threads} threads already, and Landlock binds only the one that asks"
        )
    libc = _libc()
    _drop_capabilities(libc)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _restrict_files(libc, read, write)
    _filter_system_calls(libc)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise JailError(f"{what}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
    return result


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root without capabilities is a user like others. Where there are none, nothing changes."""
    header = struct.pack("=Ii", 0x20080522, 0)
    libc.syscall(_number("capset"), header, struct.pack("=6I", *[0] * 6))


def _restrict_files(libc: ctypes.CDLL, read: Sequence[str], write: Sequence[str]) -> None:
    abi = landlock_abi()
    if abi < MINIMUM_ABI:
        raise JailError("Landlock: this kernel does not offer it, or it is switched off")
    files = sum(rights for since, rights in _RIGHTS_BY_ABI.items() if since <= abi)
    fields = [files, _NETWORK if abi >= _NETWORK_ABI else 0, _SCOPES if abi >= _SCOPE_ABI else 0]
    size = 24 if abi >= _SCOPE_ABI else 16 if abi >= _NETWORK_ABI else 8
    ruleset = libc.syscall(_LANDLOCK_CREATE, struct.pack("=3Q", *fields), ctypes.c_size_t(size), 0)
    if ruleset < 0 and ctypes.get_errno() == errno.EINVAL and fields[2]:
        # Some kernels announce the version of scopes and have not got them.
        fields[2] = 0
        ruleset = libc.syscall(_LANDLOCK_CREATE, struct.pack("=3Q", *fields), ctypes.c_size_t(size), 0)
    _check(ruleset, "Landlock's ruleset")
    try:
        for path in read:
            _allow(libc, ruleset, path, files & _READ)
        for path in write:
            _allow(libc, ruleset, path, files & ~_MAKE_DEVICES)
        _check(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "Landlock")
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    """Paths that do not exist are passed over: there is nothing to allow."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_A_FILE
        _check(
            libc.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, fd), 0), f"Landlock: {path}"
        )
    finally:
        os.close(fd)


# A filter is a program for the kernel's packet filter: load a word, compare, return.
_LOAD, _EQUAL, _AT_LEAST, _AND_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x10000
Instruction = tuple[int, int, int, int]


def _error(number: int) -> int:
    return 0x00050000 | number


def _filter_system_calls(libc: ctypes.CDLL) -> None:
    program = b"".join(struct.pack("=HBBI", *each) for each in _program(os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    prog = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    done = libc.syscall(_number("seccomp"), _SECCOMP_FILTER, _SECCOMP_TSYNC, ctypes.byref(prog))
    _check(done, "seccomp")


def _program(pid: int) -> Iterator[Instruction]:
    """Denies what `_DENIED` lists, and what reaches another process; allows everything else."""
    numbers, arch = machine(), _ARCHITECTURES.get(platform.machine())
    if numbers is None or arch is None:
        raise JailError(f"seccomp: the system calls of a {platform.machine()} are not known here")
    yield (_LOAD, 0, 0, _AT_ARCH)
    yield (_EQUAL, 1, 0, arch)
    yield (_RETURN, 0, 0, _KILL)
    yield (_LOAD, 0, 0, _AT_NUMBER)
    yield (_AT_LEAST, 0, 1, 0x40000000)  # the 32-bit numbers of x86
    yield (_RETURN, 0, 0, _KILL)
    for name in _DENIED:
        yield from _when(numbers, name, [(_RETURN, 0, 0, _error(errno.EPERM))])
    for name in _IGNORED:
        yield from _when(numbers, name, [(_RETURN, 0, 0, _error(0))])
    yield from _when(numbers, "clone3", [(_RETURN, 0, 0, _error(errno.ENOSYS))])  # libc then calls clone
    yield from _when(numbers, "clone", _unless((_AND_SET, 1, 0, _CLONE_THREAD)))
    for name in _ON_OWN_PROCESS:
        yield from _when(numbers, name, _unless((_EQUAL, 1, 0, pid)))
    for name in _ON_OWN_PROCESS_OR_ZERO:
        yield from _when(numbers, name, _unless((_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, pid)))
    yield (_RETURN, 0, 0, _ALLOW)


def _when(numbers: Mapping[str, int], name: str, then: Iterable[Instruction]) -> Iterator[Instruction]:
    """Instructions for one system call; nothing where this processor has no such call."""
    if name in numbers:
        body = list(then)
        yield (_EQUAL, 0, len(body), numbers[name])
        yield from body


def _unless(*conditions: Instruction) -> list[Instruction]:
    """Allows if one of the conditions on the first argument holds, denies otherwise."""
    refuse = [(_RETURN, 0, 0, _error(errno.EPERM)), (_RETURN, 0, 0, _ALLOW)]
    return [(_LOAD, 0, 0, _AT_ARGUMENTS), *conditions, *refuse]


def _number(name: str) -> int:
    numbers = machine()
    if numbers is None:
        raise JailError(f"the system calls of a {platform.machine()} are not known here")
    return numbers[name]


_ON_OWN_PROCESS = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
_ON_OWN_PROCESS_OR_ZERO = (
    "prlimit64",
    "sched_setaffinity",
    "sched_setscheduler",
    "sched_setparam",
    "sched_setattr",
)
_IGNORED = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "futimesat", "utimensat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
)
"""What Landlock does not cover, and what copying a file calls: it succeeds without an effect."""
_DENIED = (
    *("fork", "vfork", "execve", "execveat", "setsid", "setpgid", "personality", "tkill"),
    *("socket", "connect", "bind", "listen", "accept", "accept4"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp"),
    *("pidfd_open", "pidfd_send_signal", "pidfd_getfd", "setpriority", "ioprio_set"),
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "swapon", "swapoff", "acct", "quotactl"),
    *("bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "fanotify_init"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "name_to_handle_at", "open_by_handle_at"),
    *("mknod", "mknodat", "shmget", "shmat", "shmctl", "msgget", "semget", "mq_open", "mq_unlink"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "syslog"),
    *("sethostname", "setdomainname", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime"),
    *("iopl", "ioperm", "vhangup"),
)

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COMMON = {
    "clone3": 435,
    "pidfd_open": 434,
    "pidfd_send_signal": 424,
    "pidfd_getfd": 438,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "process_madvise": 440,
    "fchmodat2": 452,
}
_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        **_COMMON,
        "shmget": 29,
        "shmat": 30,
        "shmctl": 31,
        "socket": 41,
        "connect": 42,
        "accept": 43,
        "bind": 49,
        "listen": 50,
        "clone": 56,
        "fork": 57,
        "vfork": 58,
        "execve": 59,
        "kill": 62,
        "semget": 64,
        "msgget": 68,
        "chmod": 90,
        "fchmod": 91,
        "chown": 92,
        "fchown": 93,
        "lchown": 94,
        "ptrace": 101,
        "syslog": 103,
        "setpgid": 109,
        "setsid": 112,
        "capset": 126,
        "rt_sigqueueinfo": 129,
        "utime": 132,
        "mknod": 133,
        "personality": 135,
        "setpriority": 141,
        "sched_setparam": 142,
        "sched_setscheduler": 144,
        "vhangup": 153,
        "pivot_root": 155,
        "adjtimex": 159,
        "chroot": 161,
        "acct": 163,
        "settimeofday": 164,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "swapoff": 168,
        "reboot": 169,
        "sethostname": 170,
        "setdomainname": 171,
        "iopl": 172,
        "ioperm": 173,
        "init_module": 175,
        "delete_module": 176,
        "quotactl": 179,
        "setxattr": 188,
        "lsetxattr": 189,
        "fsetxattr": 190,
        "removexattr": 197,
        "lremovexattr": 198,
        "fremovexattr": 199,
        "tkill": 200,
        "sched_setaffinity": 203,
        "clock_settime": 227,
        "tgkill": 234,
        "utimes": 235,
        "mq_open": 240,
        "mq_unlink": 241,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "ioprio_set": 251,
        "mknodat": 259,
        "fchownat": 260,
        "futimesat": 261,
        "fchmodat": 268,
        "unshare": 272,
        "utimensat": 280,
        "accept4": 288,
        "rt_tgsigqueueinfo": 297,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "prlimit64": 302,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "clock_adjtime": 305,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "finit_module": 313,
        "sched_setattr": 314,
        "seccomp": 317,
        "kexec_file_load": 320,
        "bpf": 321,
        "execveat": 322,
        "userfaultfd": 323,
    },
    "aarch64": {
        **_COMMON,
        "setxattr": 5,
        "lsetxattr": 6,
        "fsetxattr": 7,
        "removexattr": 14,
        "lremovexattr": 15,
        "fremovexattr": 16,
        "ioprio_set": 30,
        "mknodat": 33,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "chroot": 51,
        "fchmod": 52,
        "fchmodat": 53,
        "fchownat": 54,
        "fchown": 55,
        "vhangup": 58,
        "quotactl": 60,
        "utimensat": 88,
        "acct": 89,
        "capset": 91,
        "personality": 92,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "clock_settime": 112,
        "syslog": 116,
        "ptrace": 117,
        "sched_setparam": 118,
        "sched_setscheduler": 119,
        "sched_setaffinity": 122,
        "kill": 129,
        "tkill": 130,
        "tgkill": 131,
        "rt_sigqueueinfo": 138,
        "setpriority": 140,
        "reboot": 142,
        "setpgid": 154,
        "setsid": 157,
        "sethostname": 161,
        "setdomainname": 162,
        "settimeofday": 170,
        "adjtimex": 171,
        "mq_open": 180,
        "mq_unlink": 181,
        "msgget": 186,
        "semget": 190,
        "shmget": 194,
        "shmctl": 195,
        "shmat": 196,
        "socket": 198,
        "bind": 200,
        "listen": 201,
        "accept": 202,
        "connect": 203,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "clone": 220,
        "execve": 221,
        "swapon": 224,
        "swapoff": 225,
        "rt_tgsigqueueinfo": 240,
        "perf_event_open": 241,
        "accept4": 242,
        "prlimit64": 261,
        "fanotify_init": 262,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "clock_adjtime": 266,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "finit_module": 273,
        "sched_setattr": 274,
        "seccomp": 277,
        "bpf": 280,
        "execveat": 281,
        "userfaultfd": 282,
        "kexec_file_load": 294,
    },
}
