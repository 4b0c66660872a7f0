"""The jail: what a hostile experiment can do without it, it cannot do inside.

Each file of `tests/hostile` is one attack. It has succeeded when it ends without an error. It finds
`project`, `state`, `home`, `scratch`, `other` (a temporary directory of another program), `library`, `victim`
(a process that does nothing) and `port` (a server on loopback) as names.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlxterp_agent.sandbox.jail import Policy, experiment_policy, linux, macos, protection

pytestmark = pytest.mark.skipif(
    sys.platform == "linux" and protection().kind == "none",
    reason="this kernel has no jail: " + protection().reason,
)
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the jail of macOS is applied by sandbox-exec, which needs macOS"
)
HOSTILE = sorted((Path(__file__).resolve().parents[2] / "hostile").glob("*.py"))
NEEDS_ROOT = {"mount_over", "change_root", "make_a_device"}
NOT_BARE_EVERYWHERE = {
    "trace_another",
    "read_memory_by_call",
    "new_namespace",
    "ring_of_requests",
    "read_memory_of_another",
}
"""What a kernel may be set to refuse to every process."""

RUN = """
import json, sys
place = json.loads(sys.argv[1])
if sys.argv[2] == "jailed":
    from mlxterp_agent.sandbox.jail import linux
    linux.close(place["roots"], place["write"])
exec(compile(open(place["attack"]).read(), "attack", "exec"), dict(place["names"], __name__="__main__"))
"""


class Place(NamedTuple):
    """A machine in small: what attacks aim at."""

    names: dict[str, Any]
    policy: Policy

    def attack(self, file: Path, *, jailed: bool) -> subprocess.CompletedProcess[str]:
        scratch = Path(self.names["scratch"])
        shutil.rmtree(scratch)
        scratch.mkdir()
        inside = scratch / "attack.py"
        inside.write_text(file.read_text())
        place = {
            "names": self.names,
            "attack": str(inside),
            "roots": self.policy.roots(),
            "write": self.policy.write,
        }
        return subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(place), "jailed" if jailed else "bare"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=self.names["scratch"],
            env={**os.environ, "TMPDIR": self.names["scratch"]},
        )


class Answers:
    """Answers whatever connects, over TCP, UDP and two sockets of this machine, until it is closed."""

    def __init__(self, other: Path, victim: int) -> None:
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        self.unix = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
        self.unix[0].bind(str(other / "socket"))
        self.unix[0].listen()
        if sys.platform == "linux":
            self.unix[1].bind("\0autointerp-hostile-" + str(victim))
            self.unix[1].listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.tcp.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        for each in (self.tcp, self.udp, *self.unix):
            each.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A project, a state directory, a home, somebody's temporary files, a process and servers."""
    names = {name: tmp_path / name for name in ("project", "state", "home", "scratch", "other", "library")}
    for path in names.values():
        path.mkdir()
    for path in (
        "project/.git/hooks",
        "project/.git/refs/heads",
        "project/.autointerp",
        "project/findings",
        "home/.ssh",
    ):
        (tmp_path / path).mkdir(parents=True)
    for path in (
        *("project/setup.py", "project/results.jsonl", "project/.git/config", "project/.git/refs/heads/main"),
        *("state/journal.jsonl", "state/salt", "state/setup.py", "home/.ssh/id_ed25519", "home/.bashrc"),
        *("other/session", "library/module.py", "project/CLAUDE.md", "project/.autointerp/config.json"),
    ):
        (tmp_path / path).write_text("as it was\n")
    policy = experiment_policy(
        project=names["project"],
        state=names["state"],
        scratch=names["scratch"],
        caches=[names["library"]],
        home=names["home"],
    )
    idle = subprocess.Popen(
        [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"], stdout=subprocess.PIPE
    )
    assert idle.stdout is not None
    idle.stdout.readline()
    answers = Answers(names["other"], idle.pid)
    try:
        plain = {name: str(path) for name, path in names.items()}
        yield Place({**plain, "victim": idle.pid, "port": answers.port}, policy)
    finally:
        answers.close()
        idle.kill()
        idle.wait()
        idle.stdout.close()


def files_below(place: Place) -> dict[str, tuple[int, bytes | None]]:
    root = Path(place.names["project"]).parent
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in sorted(root.rglob("*"))
        if "scratch" not in path.parts and not path.is_socket()
    }


@pytest.mark.skipif(
    sys.platform != "linux", reason="the jail of macOS is applied by sandbox-exec, which needs macOS"
)
@pytest.mark.parametrize("file", HOSTILE, ids=lambda file: file.stem)
def test_an_attack_that_succeeds_bare_fails_in_the_jail(place, file):
    before = files_below(place)

    jailed = place.attack(file, jailed=True)

    assert jailed.returncode not in (0, -signal.SIGKILL), jailed.stdout + jailed.stderr
    assert "attack" in jailed.stderr or "Error" in jailed.stderr, f"it never began: {jailed.stderr}"
    assert files_below(place) == before
    os.kill(place.names["victim"], 0)
    if file.stem in NEEDS_ROOT and os.geteuid() != 0:
        return
    bare = place.attack(file, jailed=False)
    if file.stem not in NOT_BARE_EVERYWHERE:
        assert bare.returncode == 0, f"it fails without a jail too: {bare.stderr}"


COMPUTES = """
import os
import tempfile
from pathlib import Path

import mlx.core as mx

from mlxterp import InterpretableModel
from mlxterp.causal import activation_patching

found = activation_patching(InterpretableModel("toy-induction"), [5, 6, 7, 8, 5, 6], [5, 6, 9, 8, 5, 6],
                            component="z", by="layer_head", answer=7, foil=9)
mx.eval(mx.compile(lambda x: mx.exp(x) + 1)(mx.ones(4)))
Path(scratch, "report.html").write_text("a report")
with tempfile.TemporaryDirectory() as directory:
    Path(directory, "a").write_text("b")
os.kill(os.getpid(), 0)
assert Path(project, "setup.py").read_text() and found.effects.size
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="the jail of macOS is applied by sandbox-exec, which needs macOS"
)
def test_an_honest_experiment_computes_and_writes_to_its_scratch_directory(place, tmp_path):
    file = tmp_path / "honest.py"
    file.write_text(COMPUTES)

    ended = place.attack(file, jailed=True)

    assert ended.returncode == 0, ended.stderr
    assert Path(place.names["scratch"], "report.html").read_text() == "a report"


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock binds the thread that asks, on Linux")
def test_the_jail_does_not_close_around_a_process_that_has_threads():
    code = (
        "import threading\nfrom mlxterp_agent.sandbox.jail import linux\ngo = threading.Event()\n"
        "other = threading.Thread(target=go.wait)\nother.start()\n"
        "try:\n    linux.close([], [])\nexcept linux.JailError as error:\n    print(error)\ngo.set()"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "has 2 threads already" in said


def test_what_is_hidden_is_left_out_of_the_directory_that_holds_it(tmp_path):
    for name in ("data/a", "data/secret/b", "data/c"):
        (tmp_path / name).mkdir(parents=True)
    policy = Policy(read=(str(tmp_path / "data"),), write=(), hide=(str(tmp_path / "data/secret"),))

    assert policy.roots() == (str(tmp_path / "data/a"), str(tmp_path / "data/c"))


def test_the_profile_for_macos_names_what_is_written_and_what_is_hidden(tmp_path):
    odd = tmp_path / 'a "b"'
    odd.mkdir()

    profile = macos.profile(Policy(read=(), write=(str(odd), "/dev/null"), hide=(str(tmp_path / "state"),)))

    quoted = str(odd.resolve()).replace('"', '\\"')
    assert f'(allow file-write* (subpath "{quoted}")' in profile
    assert f'(deny file-read* file-write* (subpath "{tmp_path.resolve() / "state"}")' in profile
    for rule in ("(deny network*)", "(deny process-fork)", "(deny signal)", "(deny file-write*)"):
        assert rule in profile.splitlines()


def test_the_scratch_directory_inside_the_hidden_one_is_allowed_by_a_later_rule_of_the_profile(tmp_path):
    state = tmp_path / "state"
    scratch = state / "tmp" / "a"
    scratch.mkdir(parents=True)

    profile = macos.profile(Policy(read=(), write=(str(scratch),), hide=(str(state),)))

    hidden = profile.index(f'(deny file-read* file-write* (subpath "{state.resolve()}")')
    assert profile.index(f'(allow file-read* (subpath "{scratch.resolve()}")') > hidden
    assert profile.index(f'(allow file-write* (subpath "{scratch.resolve()}")') > hidden
    assert f'(literal "{state.resolve()}")' in profile
    assert profile.index("(allow process-exec* ") > profile.index("(deny process-exec*)")


def test_a_process_may_look_at_itself_and_not_at_the_one_that_made_its_policy(tmp_path):
    roots = experiment_policy(project=tmp_path, state=tmp_path / "s", scratch=tmp_path, caches=()).roots()

    assert [root for root in roots if root.startswith(f"/proc/{os.getpid()}")] == []
    assert "/proc/self" in roots


def test_a_path_that_the_profile_cannot_spell_is_refused():
    with pytest.raises(ValueError, match="has a control character in its name"):
        macos.profile(Policy(read=(), write=("/tmp/a\nb",), hide=()))


def test_a_processor_whose_system_calls_are_not_known_has_no_jail(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    if sys.platform == "linux":
        assert protection().kind == "none"
        assert "riscv64" in protection().reason
    assert linux.machine() is None
