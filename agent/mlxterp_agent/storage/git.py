"""Commits exactly the bytes that ran, and exactly our paths.

Covers: the repository of an investigation, one commit per kept entry, a ref per attempt that was not kept.
Does not cover: what is kept, writing the files into the working tree, and calling git (`git_driver.py`).

A commit is built from objects (`hash-object`, a private index, `commit-tree`) and becomes visible by one
compare-and-swap of HEAD. The user's index, staged work and files play no part in it. Their index learns our
new paths only where it agreed with HEAD about them, so that `git status` stays clean. git is a derived view:
what is missing here is rebuilt from the log.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from mlxterp._files import sync_directory
from mlxterp.errors import ProjectError
from mlxterp_agent.exit_codes import GitUnavailable
from mlxterp_agent.platform import NotRegular, read_regular
from mlxterp_agent.storage.git_driver import ENVIRONMENT, GitDirs, GitDriver, git_dirs
from mlxterp_agent.text import one_line

EXPERIMENT_TRAILER = "Autointerp-Experiment"
VERDICT_TRAILER = "Autointerp-Verdict"
ATTEMPT_TRAILER = "Autointerp-Attempt"
ATTEMPTS = "refs/autointerp/attempts"

_TRIES = 50
_TRIES_LOCKED = 5
_PAUSE = 0.02
_STALE = 60.0
"""Seconds after which a lock of HEAD or of a branch belongs to a git that was killed: it is held for
milliseconds."""
_INDEX_TRIES = 25
_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n"
_NOT_DAMAGE = re.compile(
    r"permission denied|dubious ownership|extension|repo(?:sitory)? version|too many open|cannot allocate"
    r"|no space|read-only|input/output",
    re.IGNORECASE,
)
"""Messages of git about the machine or about formats that it does not know, not about damage."""

_BRANCH = re.compile(rb"ref: (refs/heads/(?:[\w-][\w.-]*/)*[\w-][\w.-]*)\n?")

_SUBJECT = 100
_BODY_LINE = 1000


class _Blob(NamedTuple):
    """A file in a tree or an index."""

    mode: str
    sha: str


P = ParamSpec("P")
T = TypeVar("T")


def _names_faults(method: Callable[P, T]) -> Callable[P, T]:
    """The machine's faults beside git (no descriptor, no process, no temporary directory) are git's trouble
    too: they delay a commit, and never stop the experiments."""

    @functools.wraps(method)
    def named(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return method(*arguments, **options)
        except OSError as problem:
            raise GitUnavailable(
                f"git could not be used: {problem}. What is missing is committed once that has passed."
            ) from problem

    return named


class Committer:
    """The git side of one project.

    Every method may raise GitUnavailable or DiskFull, and can simply be called again.

    Args:
        scratch: where temporary files go; what a kill leaves there, the next start removes.
    """

    def __init__(self, project: Path, *, scratch: Path | None = None) -> None:
        self._git = GitDriver(project)
        self._project = self._git.project
        self._scratch = scratch

    @_names_faults
    def ensure_repo(self, paths: Sequence[str]) -> str:
        """Makes the project its own repository, also inside another one's working tree, and gives HEAD.

        A repository without a commit gets "Begin the investigation" with those of `paths` that exist. One
        that has commits is left as it is.

        Raises:
            ProjectError: the project is a bare repository.
            GitUnavailable: `.git` is there and git cannot read it; nothing is written over it.
        """
        self._refuse_bare()
        if not os.path.lexists(self._project / ".git"):
            self._git.tell("init", "--quiet", "--template=", "--initial-branch=main")
        self._git.tell("rev-parse", "--git-dir")
        head = self._head()
        if head:
            return head
        files: dict[str, bytes] = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError, NotRegular):
                files[path] = read_regular(self._project / path)
        return self.commit(files, subject="Begin the investigation", trailers={"Autointerp": "begin"})

    @_names_faults
    def commit(
        self, files: Mapping[str, bytes], *, subject: str, trailers: Mapping[str, str], body: str = ""
    ) -> str:
        """One commit on the current branch (or the detached HEAD) that sets these files, and its id.

        Args:
            files: paths from the project's top, with "/", to content.
            subject, body: may hold an agent's text. The subject becomes one line; each line of the body is
                quoted with ">".
            trailers: the last paragraph; nothing in `subject` and `body` can become part of it.
        """
        with tempfile.TemporaryDirectory(prefix="autointerp-git-", dir=self._scratch) as scratch:
            blobs = self._store(Path(scratch), files)
            message = _message(subject, body, trailers)
            before: dict[str, _Blob | None] = {}
            locked = 0
            for _ in range(_TRIES):
                head = self._head()
                commit = self._build(Path(scratch), head, blobs, message)
                # First the index, then HEAD: a user's commit between the two takes our files along. The other
                # way round it would be made from an index without them, and remove them again.
                before = self._into_users_index(head, blobs) | before
                reply = self._git.ask("update-ref", "-m", "autointerp", "HEAD", commit, head)
                if reply.status == 0:
                    self._push_to_disk(commit, blobs, self._branch())
                    return commit
                locked += ".lock" in reply.err
                if locked >= _TRIES_LOCKED:
                    break
                if locked:
                    self._remove_stale_locks()
                time.sleep(_PAUSE)
            self._set_users_index(before)
        raise GitUnavailable(
            f"HEAD of {self._project} could not be moved: {reply.err}. If no git command "
            "is running there, remove the .lock file it names; what is missing is committed at the next "
            "start."
        )

    @_names_faults
    def keep_attempt(self, run: int, files: Mapping[str, bytes], message: str) -> str:
        """Keeps the files of a run that was not kept, under refs/autointerp/attempts/NNNN, on top of HEAD."""
        ref = f"{ATTEMPTS}/{run:04d}"
        with tempfile.TemporaryDirectory(prefix="autointerp-git-", dir=self._scratch) as scratch:
            blobs = self._store(Path(scratch), files)
            text = _message(message, "", {ATTEMPT_TRAILER: f"{run:04d}"})
            commit = self._build(Path(scratch), self._head(), blobs, text)
        self._git.tell("update-ref", "--no-deref", ref, commit)
        self._push_to_disk(commit, blobs, ref)
        return commit

    @_names_faults
    def experiments(self) -> dict[str, str]:
        """Experiment id to commit, from the trailers on the current branch; of two commits of one id, the
        older."""
        if not self._head():
            return {}
        form = f"%x00%H %(trailers:key={EXPERIMENT_TRAILER},valueonly,separator=%x20)"
        found: dict[str, str] = {}
        for record in self._git.tell("rev-list", f"--format={form}", "HEAD").text().split("\0")[1:]:
            sha, *ids = record.splitlines()[0].split()
            found |= dict.fromkeys(ids, sha)
        return found

    @_names_faults
    def foreign(self, paths: Sequence[str]) -> list[tuple[str, str]]:
        """The commits of the current branch that change these paths and are not the supervisor's: id and
        subject."""
        if not self._head():
            return []
        reply = self._git.ask("log", "--format=%H%x00%an <%ae>%x00%s", "HEAD", "--", *paths)
        ours = f"{ENVIRONMENT['GIT_AUTHOR_NAME']} <{ENVIRONMENT['GIT_AUTHOR_EMAIL']}>"
        commits = [line.split("\0") for line in reply.text().splitlines()]
        return [(sha, one_line(subject, 80)) for sha, author, subject in commits if author != ours]

    @_names_faults
    def read(self, commit: str, path: str) -> bytes | None:
        """A file's bytes in a commit; None if the commit or the file does not exist."""
        reply = self._git.ask("cat-file", "blob", f"{commit}:{path}")
        return reply.out if reply.status == 0 else None

    @_names_faults
    def descends(self, commit: str, ancestor: str) -> bool:
        """Whether `commit` has `ancestor` in its history, or is it."""
        return self._git.ask("merge-base", "--is-ancestor", ancestor, commit).status == 0

    def _refuse_bare(self) -> None:
        inside = all((self._project / name).exists() for name in ("HEAD", "objects", "refs"))
        dirs = git_dirs(self._project)
        # A worktree that is linked to a bare repository shares its configuration, and is not bare.
        if inside or (
            dirs is not None and dirs.own == dirs.common and _is_marked_bare(dirs.common / "config")
        ):
            raise ProjectError(
                f"{self._project} is a bare git repository: it has no working tree, and an investigation "
                f"needs one. Clone it (git clone '{self._project}' DIR) and start in the clone, or start in "
                "a new directory."
            )

    @_names_faults
    def trouble(self) -> str | None:
        """Why nothing can be committed on what HEAD names; None if it can."""
        if not os.path.lexists(self._project / ".git"):
            return None
        reply = self._git.ask("rev-parse", "--git-dir")
        if reply.status != 0:
            return reply.err
        branch = self._git.ask("symbolic-ref", "--quiet", "HEAD")
        unborn = branch.status == 0 and self._git.ask("show-ref", "--verify", "--quiet", branch.text()).status
        if unborn and not self._ref_file_exists(branch.text()):
            return None
        return self._unreadable("HEAD")

    def _unreadable(self, commit: str) -> str | None:
        """Why a commit, its newest ancestors or its files cannot be read; None if they can."""
        partial = self._git.ask(
            "config", "--get-regexp", r"^(extensions\.partialclone|remote\..*\.promisor)$"
        )
        # `--long` reads the header of every file's object. A partial clone lacks some on purpose.
        files = ("ls-tree", "-r", commit) if partial.status == 0 else ("ls-tree", "-r", "--long", commit)
        for check in (("rev-list", "-n", "200", commit, "--"), files):
            reply = self._git.ask(*check)
            if reply.status != 0:
                return reply.err or f"git {check[0]} fails"
        return None

    @_names_faults
    def repair(self, head: str | None, aside: Path) -> list[str]:
        """Makes a damaged repository one that can be committed to, and says what was done, a sentence each.

        First the cheapest: a configuration that cannot be read is replaced, HEAD and its branch are set to
        the newest commit of ours if that can be read. If it is still damaged the whole repository is moved
        aside, and a new one is made.

        Args:
            head: the newest commit that was made here.
            aside: a directory for what is replaced.
        """
        why = self.trouble()
        if why is None:
            return []
        done: list[str] = []
        dirs = git_dirs(self._project)
        if dirs is not None and dirs.own == dirs.common:
            config = dirs.common / "config"
            if self._git.ask("config", "--list").status != 0:
                done.append(
                    f"the configuration of git could not be read; it is kept in {_moved(config, aside)}"
                )
                config.write_text(
                    "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n"
                )
            # Without a HEAD that names something git does not take the directory for a repository at all.
            moved = _restore_head(dirs, aside)
            if self.trouble() is not None and head is not None and self._unreadable(head) is None:
                _set_branch(dirs, head, aside)
                moved = True
            if moved and self.trouble() is None:
                done.append(f"HEAD of git was damaged; it is {self._head()[:10]} again")
        why = self.trouble()
        if why is None:
            return done
        if _NOT_DAMAGE.search(why) or dirs is None or dirs.own != dirs.common:
            raise GitUnavailable(
                f"git cannot read the repository of {self._project}: {one_line(why, 300)}. The log and the "
                "findings are safe; correct the repository: what is missing is committed then."
            )
        kept = _moved(self._project / ".git", aside)
        self._git.tell("init", "--quiet", "--template=", "--initial-branch=main")
        return [
            *done,
            f"the repository was beyond repair ({one_line(why, 200)}); it is kept whole in {kept}, and a new "
            "one is made from the log",
        ]

    def _ref_file_exists(self, name: str) -> bool:
        dirs = git_dirs(self._project)
        return dirs is not None and os.path.lexists(dirs.common / name)

    def _remove_stale_locks(self) -> None:
        """Removes the locks that a git left behind which was killed."""
        dirs = git_dirs(self._project)
        if dirs is None:
            return
        for lock in (dirs.own / "HEAD.lock", dirs.common / f"{self._branch()}.lock"):
            with contextlib.suppress(OSError):
                if time.time() - lock.lstat().st_mtime > _STALE:
                    lock.unlink()

    def _head(self) -> str:
        return self._git.ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}").text()

    def _branch(self) -> str:
        return self._git.ask("symbolic-ref", "--quiet", "HEAD").text() or "HEAD"

    def _store(self, scratch: Path, files: Mapping[str, bytes]) -> dict[str, _Blob]:
        if not files:
            return {}
        copies: list[str] = []
        for number, data in enumerate(files.values()):
            copy = scratch / f"blob{number}"
            copy.write_bytes(data)
            copies.append(str(copy))
        shas = self._git.tell("hash-object", "-w", "--no-filters", "--", *copies).text().split()
        return {path: _Blob("100644", sha) for path, sha in zip(files, shas, strict=True)}

    def _build(self, scratch: Path, head: str, blobs: Mapping[str, _Blob], message: str) -> str:
        index, text = scratch / "index", scratch / "message"
        index.unlink(missing_ok=True)
        text.write_text(message, encoding="utf-8", errors="replace")
        self._git.tell("read-tree", *([head] if head else ["--empty"]), index=index)
        if blobs:
            self._git.tell("update-index", "--add", "--replace", *_cacheinfo(blobs), index=index)
        tree = self._git.tell("write-tree", index=index).text()
        parent = ["-p", head] if head else []
        return self._git.tell("commit-tree", tree, *parent, "-F", str(text)).text()

    def _into_users_index(self, head: str, blobs: Mapping[str, _Blob]) -> dict[str, _Blob | None]:
        """Puts our paths into the user's index where it agrees with HEAD about them; what stood there
        before."""
        if not blobs:
            return {}
        in_index = _listing(self._git.ask("ls-files", "--stage", "-z", "--", *blobs).out)
        in_head: dict[str, _Blob | None] = {}
        if head:
            in_head = _listing(self._git.ask("ls-tree", "-z", "--full-tree", head, "--", *blobs).out)
        same = [
            path
            for path in blobs
            if in_index.get(path) == in_head.get(path) and in_index.get(path) != blobs[path]
        ]
        before = {path: in_head.get(path) for path in same}
        return before if self._set_users_index({path: blobs[path] for path in same}) else {}

    def _set_users_index(self, entries: Mapping[str, _Blob | None]) -> bool:
        """Best effort: while another git has the index locked for longer than half a second, it is left
        alone."""
        if not entries:
            return True
        added = {path: blob for path, blob in entries.items() if blob is not None}
        removed = [path for path, blob in entries.items() if blob is None]
        arguments = ["--add", *_cacheinfo(added)] if added else []
        if removed:
            arguments += ["--force-remove", "--", *removed]
        for _ in range(_INDEX_TRIES):
            reply = self._git.ask("update-index", *arguments)
            if reply.status == 0:
                return True
            if "index.lock" not in reply.err:
                return False
            time.sleep(_PAUSE)
        return False

    def _push_to_disk(self, commit: str, blobs: Mapping[str, _Blob], ref: str) -> None:
        # git fsyncs the contents (core.fsync=all) but no directory: after a power cut the names could be
        # missing.
        dirs = git_dirs(self._project)
        if dirs is None:
            return
        objects = dirs.common / "objects"
        touched = {objects, dirs.own, dirs.common / "reftable"}
        touched |= {objects / sha[:2] for sha in (commit, *(blob.sha for blob in blobs.values()))}
        touched |= {dirs.common / parent for parent in Path(ref).parents}
        for directory in touched:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                sync_directory(directory)


def _restore_head(dirs: GitDirs, aside: Path) -> bool:
    """Writes HEAD anew if it names neither a branch nor a commit; whether it did."""
    path = dirs.own / "HEAD"
    try:
        text = path.read_bytes()
    except OSError:
        text = b""
    if _BRANCH.fullmatch(text) or re.fullmatch(rb"[0-9a-f]{40,64}\n?", text):
        return False
    if os.path.lexists(path):
        _moved(path, aside)
    path.write_text("ref: refs/heads/main\n")
    return True


def _set_branch(dirs: GitDirs, commit: str, aside: Path) -> None:
    """Makes what HEAD names this commit."""
    head = (dirs.own / "HEAD").read_bytes()
    branch = _BRANCH.fullmatch(head)
    path = dirs.common / branch[1].decode() if branch else dirs.own / "HEAD"
    if os.path.lexists(path):
        _moved(path, aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{commit}\n")


def _is_marked_bare(config: Path) -> bool:
    """Whether a repository's own configuration calls it bare; ours overrides that for each call."""
    try:
        text = config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"^\s*bare\s*=\s*(true|yes|on|1)\s*$", text, re.MULTILINE | re.IGNORECASE) is not None


def _moved(path: Path, aside: Path) -> Path:
    """Where something was moved to, to be looked at."""
    aside.mkdir(parents=True, exist_ok=True)
    target = aside / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%f}-{path.name.lstrip('.')}"
    shutil.move(path, target)
    return target


def _cacheinfo(blobs: Mapping[str, _Blob]) -> list[str]:
    return [
        part for path, blob in blobs.items() for part in ("--cacheinfo", f"{blob.mode},{blob.sha},{path}")
    ]


def _listing(out: bytes) -> dict[str, _Blob | None]:
    """`ls-files --stage -z` or `ls-tree -z`, by path. A path in conflict has no single entry, and gets one of
    no tree."""
    found: dict[str, _Blob | None] = {}
    for record in out.decode("utf-8", "surrogateescape").split("\0"):
        facts, _, path = record.partition("\t")
        match facts.split():
            case [mode, "blob" | "tree" | "commit", sha] | [mode, sha, "0"]:
                found[path] = _Blob(mode, sha)
            case [_, _, _]:
                found[path] = _Blob("conflict", "")
    return found


def _message(subject: str, body: str, trailers: Mapping[str, str]) -> str:
    paragraphs = [one_line(subject, _SUBJECT) or "Experiment"]
    if body.strip():
        paragraphs.append(
            "\n".join(f"> {one_line(line, _BODY_LINE)}".rstrip() for line in body.strip().splitlines())
        )
    for key in trailers:
        if not re.fullmatch(r"[A-Za-z][A-Za-z-]*", key):
            raise ValueError(f"{key!r} is no key of a trailer: letters and hyphens only")
    paragraphs.append("\n".join(f"{key}: {one_line(value, _BODY_LINE)}" for key, value in trailers.items()))
    return "\n\n".join(paragraphs) + "\n"
