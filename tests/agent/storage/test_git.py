"""Commits of exactly our bytes at exactly our paths, with real git, in whatever repository there is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlxterp.errors import ProjectError
from mlxterp_agent.exit_codes import DiskFull, GitUnavailable
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.storage.git_driver import GitDriver

SCAFFOLD = ("setup.py", "program.md", "missing.txt")
FILES = {"experiment.py": b"x = 1\r\n", "findings/0001-a/finding.md": "caf\u00e9\n".encode()}
TRAILERS = {"Autointerp-Experiment": "0001", "Autointerp-Verdict": "lead"}
USER = {
    "GIT_AUTHOR_NAME": "user",
    "GIT_AUTHOR_EMAIL": "user@example.org",
    "GIT_COMMITTER_NAME": "user",
    "GIT_COMMITTER_EMAIL": "user@example.org",
}


def git(where: Path, *arguments: str, check: bool = True) -> str:
    """git as a person uses it."""
    ended = subprocess.run(
        ["git", *arguments],
        cwd=where,
        env={**os.environ, **USER},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0 or not check, ended.stderr
    return ended.stdout.rstrip("\n")


def write(project: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(data)


def status(project: Path) -> list[str]:
    return git(project, "status", "--porcelain", "--untracked-files=all").splitlines()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a setup.py, on a machine without any git configuration."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "GIT_DIR", "GIT_INDEX_FILE", "GIT_CONFIG_GLOBAL"):
        monkeypatch.delenv(name, raising=False)
    made = tmp_path / "project"
    write(made, {"setup.py": b"model = 1\n", "program.md": b"Why?\n"})
    return made


@pytest.fixture
def committer(project: Path) -> Committer:
    made = Committer(project)
    made.ensure_repo(SCAFFOLD)
    return made


def commit(committer: Committer, files: dict[str, bytes] | None = None) -> str:
    return committer.commit(
        FILES if files is None else files, subject="0001 lead: it works", trailers=TRAILERS
    )


def test_a_project_becomes_a_repository_with_its_files_and_needs_no_identity(
    project: Path, committer: Committer
):
    assert git(project, "log", "--format=%an %s") == "autointerp Begin the investigation"
    assert git(project, "ls-tree", "-r", "--name-only", "HEAD").split() == ["program.md", "setup.py"]
    assert status(project) == []
    assert not (project / ".git" / "hooks").exists()


def test_making_the_repository_twice_changes_nothing(project: Path, committer: Committer):
    head = git(project, "rev-parse", "HEAD")

    assert committer.ensure_repo(SCAFFOLD) == head


def test_a_commit_holds_exactly_the_given_bytes_and_leaves_git_status_clean(
    project: Path, committer: Committer
):
    write(project, FILES)

    sha = commit(committer)

    assert git(project, "rev-parse", "main") == sha
    assert {path: committer.read(sha, path) for path in FILES} == FILES
    assert committer.read(sha, "nothing") is None
    assert git(project, "show", "--format=", "--name-only", sha).split() == sorted(FILES)
    assert status(project) == []


def test_a_project_inside_another_repository_gets_its_own_and_the_outer_one_is_untouched(project: Path):
    outer = project.parent
    git(outer, "init", "--quiet")
    (outer / "theirs.txt").write_text("staged\n")
    git(outer, "add", "theirs.txt")
    index = (outer / ".git" / "index").read_bytes()

    committer = Committer(project)
    committer.ensure_repo(SCAFFOLD)
    commit(committer)

    assert git(project, "rev-list", "--count", "HEAD") == "2"
    assert (outer / ".git" / "index").read_bytes() == index
    assert git(outer, "rev-parse", "--verify", "--quiet", "HEAD", check=False) == ""


@pytest.fixture
def users(project: Path) -> Path:
    """The project as a person's repository: a commit, staged work, a modified file, an untracked one."""
    git(project, "init", "--quiet", "--initial-branch=work")
    write(project, {"notes.txt": b"one\n", "paper.tex": b"one\n"})
    git(project, "add", "setup.py", "program.md", "notes.txt", "paper.tex")
    git(project, "commit", "--quiet", "-m", "mine")
    write(project, {"notes.txt": b"staged\n", "paper.tex": b"modified\n", "scratch.txt": b"untracked\n"})
    git(project, "add", "notes.txt")
    return project


USERS_WORK = ["M  notes.txt", " M paper.tex", "?? scratch.txt"]


def test_staged_modified_and_untracked_work_stays_as_it_was(users: Path):
    committer = Committer(users)
    committer.ensure_repo(SCAFFOLD)
    write(users, FILES)

    sha = commit(committer)

    assert status(users) == USERS_WORK
    assert committer.read(sha, "notes.txt") == b"one\n"
    assert (users / "notes.txt").read_bytes() == b"staged\n"
    assert git(users, "log", "--format=%s").splitlines() == ["0001 lead: it works", "mine"]


def test_a_path_of_ours_that_the_user_staged_differently_stays_staged(users: Path):
    write(users, {"experiment.py": b"the user's own\n"})
    git(users, "add", "experiment.py")
    committer = Committer(users)

    commit(committer)

    assert git(users, "show", ":experiment.py") == "the user's own"
    assert committer.read("HEAD", "experiment.py") == FILES["experiment.py"]


def test_an_unborn_branch_with_staged_work_keeps_it_staged(project: Path):
    git(project, "init", "--quiet", "--initial-branch=trunk")
    write(project, {"notes.txt": b"staged\n"})
    git(project, "add", "notes.txt")

    Committer(project).ensure_repo(SCAFFOLD)

    assert git(project, "symbolic-ref", "HEAD") == "refs/heads/trunk"
    assert git(project, "ls-tree", "--name-only", "HEAD").split() == ["program.md", "setup.py"]
    assert status(project) == ["A  notes.txt"]


def test_a_detached_head_moves_and_no_branch_does(project: Path, committer: Committer):
    git(project, "checkout", "--quiet", "--detach")
    before = git(project, "rev-parse", "main")

    sha = commit(committer)

    assert git(project, "rev-parse", "HEAD") == sha
    assert git(project, "rev-parse", "main") == before


def test_a_linked_worktree_is_a_repository_of_its_own_branch(users: Path, tmp_path: Path):
    git(users, "worktree", "add", "--quiet", str(tmp_path / "linked"))
    committer = Committer(tmp_path / "linked")
    committer.ensure_repo(SCAFFOLD)

    sha = commit(committer)

    assert git(users, "rev-parse", "linked") == sha
    assert git(users, "rev-parse", "work") != sha


def test_a_merge_in_progress_is_left_in_progress(users: Path):
    git(users, "stash", "--quiet")
    git(users, "checkout", "--quiet", "-b", "other")
    for branch, text in (("other", b"theirs\n"), ("work", b"ours\n")):
        git(users, "checkout", "--quiet", branch)
        write(users, {"paper.tex": text, "experiment.py": text})
        git(users, "add", "paper.tex", "experiment.py")
        git(users, "commit", "--quiet", "-m", branch)
    git(users, "merge", "other", check=False)
    conflicts = git(users, "ls-files", "--unmerged")

    sha = commit(Committer(users))

    assert git(users, "ls-files", "--unmerged") == conflicts
    assert (users / ".git" / "MERGE_HEAD").exists()
    assert git(users, "rev-parse", "HEAD") == sha


@pytest.mark.parametrize("how", ["whole directory", "configured"])
def test_a_bare_repository_is_refused(project: Path, how: str):
    if how == "configured":
        git(project, "init", "--quiet")
        git(project, "config", "core.bare", "true")
    else:
        git(project, "init", "--quiet", "--bare")

    with pytest.raises(ProjectError, match=r"bare git repository.*git clone"):
        Committer(project).ensure_repo(SCAFFOLD)


def test_a_damaged_repository_is_named_and_nothing_is_written_over_it(project: Path):
    (project / ".git").mkdir()
    (project / ".git" / "keep").write_text("something")

    with pytest.raises(GitUnavailable, match="not a git repository"):
        Committer(project).ensure_repo(SCAFFOLD)

    assert [path.name for path in (project / ".git").iterdir()] == ["keep"]


def test_without_git_the_message_says_how_to_install_it(project: Path, monkeypatch: pytest.MonkeyPatch):
    committer = Committer(project)
    only_env = project.parent / "bin"
    only_env.mkdir()
    (only_env / "env").symlink_to("/usr/bin/env")
    monkeypatch.setenv("PATH", str(only_env))

    with pytest.raises(GitUnavailable, match="apt install git"):
        committer.ensure_repo(SCAFFOLD)


def test_a_repository_that_belongs_to_somebody_else_is_used(project: Path, committer: Committer):
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    for path in (project, project / ".git"):
        os.chown(path, 12345, 12345)

    assert commit(committer)


def test_variables_of_an_outer_git_are_not_heeded(
    project: Path, committer: Committer, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = project.parent / "elsewhere"
    for name, value in {
        "GIT_DIR": str(elsewhere),
        "GIT_INDEX_FILE": str(elsewhere / "index"),
        "GIT_OBJECT_DIRECTORY": str(elsewhere / "objects"),
        "GIT_AUTHOR_NAME": "somebody",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.bare",
        "GIT_CONFIG_VALUE_0": "true",
    }.items():
        monkeypatch.setenv(name, value)

    sha = commit(committer)

    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_CONFIG_COUNT"):
        monkeypatch.delenv(name)
    assert git(project, "log", "-1", "--format=%H %an") == f"{sha} autointerp"
    assert not elsewhere.exists()


def test_keys_do_not_reach_git(project: Path, committer: Committer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary")
    shown = committer._git.ask("-c", "alias.shown=!env", "shown").text()

    assert "GIT_TERMINAL_PROMPT=0" in shown
    assert "canary" not in shown


HOOKS = (
    *("pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "post-index-change"),
    *("reference-transaction", "post-checkout", "pre-auto-gc", "fsmonitor-watchman", "post-rewrite"),
)
PROGRAMS = (
    *("core.fsmonitor", "core.editor", "core.pager", "core.sshCommand", "core.askPass", "core.gitProxy"),
    *("core.alternateRefsCommand", "credential.helper", "gpg.program", "gpg.ssh.program"),
    *("gpg.ssh.defaultKeyCommand", "diff.external", "interactive.diffFilter", "sequence.editor"),
    *("filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.evil.textconv"),
    *("diff.evil.command", "merge.evil.driver", "trailer.evil.cmd", "trailer.evil.command"),
    *("uploadpack.packObjectsHook", "remote.evil.uploadpack", "pager.log", "alias.commit-tree"),
)
SWITCHES = {
    "commit.gpgSign": "true",
    "log.showSignature": "true",
    "maintenance.auto": "true",
    "gc.auto": "1",
    "remote.evil.url": "ext::evil",
    "remote.evil.promisor": "true",
    "protocol.ext.allow": "always",
}
VECTORS = (*HOOKS, *PROGRAMS, "core.hooksPath", "include.path", "info/attributes", "config.worktree")


def planted(project: Path, ran: Path) -> None:
    """Everything in a repository that makes git run a program; each would leave its name in `ran`."""
    ran.mkdir()
    traps = project.parent / "traps"
    for folder in ("", "hooks", "included"):
        (traps / folder).mkdir()
    script = f"#!/bin/sh\ntouch '{ran}'/$(basename $0)\ncat 2>/dev/null\nexit 0\n"

    def trap(name: str, folder: str = "") -> str:
        path = traps / folder / name
        path.write_text(script)
        path.chmod(0o755)
        return str(path)

    (project / ".git" / "hooks").mkdir(exist_ok=True)
    for hook in HOOKS:
        (project / ".git" / "hooks" / hook).symlink_to(trap(hook))
    for key in PROGRAMS:
        git(project, "config", key, f"!{trap(key)}" if key.startswith("alias.") else trap(key))
    for key, value in SWITCHES.items():
        git(project, "config", key, value)
    trap("pre-commit", "hooks")
    git(project, "config", "core.hooksPath", str(traps / "hooks"))
    (traps / "included" / "config").write_text(f'[filter "more"]\n\tclean = {trap("include.path")}\n')
    git(project, "config", "include.path", str(traps / "included" / "config"))
    (project / ".git" / "config.worktree").write_text(f"[core]\n\tfsmonitor = {trap('config.worktree')}\n")
    git(project, "config", "extensions.worktreeConfig", "true")
    (project / ".gitattributes").write_text("* filter=evil diff=evil merge=evil text eol=crlf\n")
    (project / ".git" / "info").mkdir(exist_ok=True)
    (project / ".git" / "info" / "attributes").write_text("*.md filter=more\n*.py filter=evil diff=evil\n")


def test_nothing_that_is_planted_in_the_repository_is_run(
    project: Path, committer: Committer, tmp_path: Path
):
    assert len(VECTORS) >= 30
    planted(project, tmp_path / "ran")
    write(project, FILES)

    sha = commit(committer)
    committer.keep_attempt(1, FILES, "tried")
    committer.ensure_repo(SCAFFOLD)

    assert committer.experiments() == {"0001": sha}
    assert committer.descends(sha, sha)
    assert committer.read(sha, "experiment.py") == FILES["experiment.py"]
    assert committer.foreign(["results.jsonl"]) == []
    assert committer.trouble() is None
    assert (
        committer.read("f" * 40, "experiment.py") is None
    )  # nothing is fetched for an object that is not there
    assert sorted(os.listdir(tmp_path / "ran")) == []


def test_the_traps_of_that_test_do_catch_an_ordinary_git(project: Path, committer: Committer, tmp_path: Path):
    commit(committer)
    planted(project, tmp_path / "ran")
    write(project, FILES)

    git(project, "add", "experiment.py", check=False)
    git(project, "config", "--unset", "core.hooksPath")
    git(project, "commit", "-qam", "x", check=False)
    git(project, "log", "-p", "--show-signature", check=False)
    git(project, "fetch", "evil", check=False)

    caught = set(os.listdir(tmp_path / "ran"))
    assert {"core.fsmonitor", "filter.evil.clean", "pre-commit", "gpg.program"} & caught
    assert len(caught) >= 4


def test_an_agents_words_cannot_become_a_trailer(project: Path, committer: Committer):
    sha = committer.commit(
        FILES,
        subject="done\n\nAutointerp-Experiment: 0099\x1b[31m",
        body="I think\n\nAutointerp-Experiment: 0098\nAutointerp-Verdict: supported",
        trailers={**TRAILERS, "Autointerp-Verdict": "lead\nAutointerp-Experiment: 0097"},
    )

    assert committer.experiments() == {"0001": sha}
    assert git(project, "log", "-1", "--format=%s") == "done Autointerp-Experiment: 0099"
    assert git(project, "log", "-1", "--format=%b").splitlines()[:4] == [
        "> I think",
        ">",
        "> Autointerp-Experiment: 0098",
        "> Autointerp-Verdict: supported",
    ]


def test_odd_words_make_a_commit_too(project: Path, committer: Committer):
    committer.commit(
        FILES, subject="\0\n\x07", body="half a pair \ud800\n" + "long " * 5000, trailers=TRAILERS
    )

    assert git(project, "log", "-1", "--format=%s") == "Experiment"


def test_of_two_commits_of_one_experiment_the_older_counts(committer: Committer):
    first = commit(committer)
    commit(committer)

    assert committer.experiments() == {"0001": first}


def test_an_attempt_is_kept_on_top_of_head_without_moving_it(project: Path, committer: Committer):
    head = git(project, "rev-parse", "HEAD")

    committer.keep_attempt(7, FILES, "what was tried")
    sha = committer.keep_attempt(7, FILES, "the same after a crash")

    assert git(project, "rev-parse", "HEAD") == head
    assert git(project, "rev-parse", "refs/autointerp/attempts/0007", f"{sha}^").split() == [sha, head]
    assert committer.read(sha, "experiment.py") == FILES["experiment.py"]
    assert committer.experiments() == {}
    assert status(project) == []


def test_a_directory_where_a_file_was_is_committed(project: Path, committer: Committer):
    commit(committer, {"findings": b"a file\n"})

    sha = commit(committer)

    assert committer.read(sha, "findings/0001-a/finding.md") == FILES["findings/0001-a/finding.md"]


def test_a_locked_index_of_the_user_delays_nothing_but_their_view(project: Path, committer: Committer):
    lock = project / ".git" / "index.lock"
    lock.touch()

    sha = commit(committer)

    assert committer.read(sha, "experiment.py") == FILES["experiment.py"]
    assert lock.exists()


@pytest.mark.slow
def test_a_branch_that_cannot_be_moved_is_said_and_the_users_index_is_as_before(
    project: Path, committer: Committer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mlxterp_agent.storage.git._TRIES", 2)
    (project / ".git" / "refs" / "heads" / "main.lock").touch()

    with pytest.raises(GitUnavailable, match=r"remove the \.lock file"):
        commit(committer)

    assert status(project) == []


def test_a_full_disk_is_called_that(project: Path, committer: Committer, monkeypatch: pytest.MonkeyPatch):
    words = "error: file write error: No space left on device"
    monkeypatch.setattr(GitDriver, "_execute", lambda self, environment, arguments: (128, b"", words))

    with pytest.raises(DiskFull, match="Free some space"):
        commit(committer)


def test_a_git_that_hangs_is_stopped(project: Path, committer: Committer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlxterp_agent.storage.git_driver.TIMEOUT", 0.2)

    with pytest.raises(GitUnavailable, match=r"did not end within 0\.2 seconds"):
        committer._git.ask("-c", "alias.hang=!exec tail -f /dev/null", "hang")


USERS_LOOP = """
import subprocess, sys
made = 0
while made < 8:
    open(f"mine{made}.txt", "w").write(str(made))
    steps = (["add", f"mine{made}.txt"], ["commit", "--quiet", "-m", f"mine {made}"])
    if all(subprocess.run(["git", *step], stderr=subprocess.DEVNULL).returncode == 0 for step in steps):
        made += 1
"""


def test_a_user_who_commits_at_the_same_time_loses_nothing_and_neither_do_we(
    project: Path, committer: Committer
):
    person = subprocess.Popen([sys.executable, "-c", USERS_LOOP], cwd=project, env={**os.environ, **USER})
    made: dict[str, str] = {}
    while person.poll() is None or len(made) < 8:
        number = f"{len(made):04d}"
        files = {f"findings/{number}/finding.md": number.encode()}
        write(project, files)
        made[number] = committer.commit(
            files, subject=number, trailers={**TRAILERS, "Autointerp-Experiment": number}
        )

    assert committer.experiments() == made
    assert sorted(git(project, "log", "--format=%s", "--author=user").splitlines()) == [
        f"mine {i}" for i in range(8)
    ]
    assert all(committer.read("HEAD", f"mine{i}.txt") == str(i).encode() for i in range(8))
    assert all(committer.read("HEAD", f"findings/{number}/finding.md") == number.encode() for number in made)
    assert git(project, "fsck", "--strict", "--no-dangling") == ""


def test_a_commit_is_on_the_disk_with_its_names(
    project: Path, committer: Committer, monkeypatch: pytest.MonkeyPatch
):
    synced: list[Path] = []
    monkeypatch.setattr("mlxterp_agent.storage.git.sync_directory", synced.append)

    sha = commit(committer)

    objects = project / ".git" / "objects"
    assert {objects, objects / sha[:2], project / ".git" / "refs" / "heads"} <= set(synced)


def test_two_threads_may_commit_at_once(project: Path, committer: Committer):
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: made.append(commit(Committer(project), {f"{n}.txt": b"x"})))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert git(project, "rev-list", "--count", "HEAD") == "4"
    assert {f"{n}.txt" for n in range(3)} <= set(git(project, "ls-tree", "--name-only", "HEAD").split())
