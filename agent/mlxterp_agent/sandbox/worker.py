"""What runs in the child: closes the jail, imports the sealed setup.py, waits, runs one experiment.

Run as a program by `warden.py`, standard library only. Orders come as JSON lines on standard input, frames go
to the outbox (`child_messages.py`). The bytes of setup.py and of the experiment are in the orders; they are
compared with their digest and compiled here: a changed file, a planted `__pycache__` or a module that shadows
`setup` cannot take their place. Both are compiled under the names they have in the project, so a traceback
reads as if they had been run there.

The jail is closed before anything of the investigation, numpy or mlx is imported (`jail/linux.py`, loaded by
its path; on macOS `sandbox-exec` has closed it already), and what it must prevent is tried. A jail that does
not hold ends this process.

An experiment works in a scratch directory, where the project's files are links: it reads them by their names,
and what it writes stays there.

Does not cover: what an experiment writes to the outbox. It shares this process.
"""

import os
import sys

# Python puts the directory of this file first on the path; an experiment must not find the machinery's
# modules there.
sys.path[:] = [entry for entry in sys.path if entry not in ("", os.path.dirname(os.path.abspath(__file__)))]

import atexit  # noqa: E402
import contextlib  # noqa: E402
import faulthandler  # noqa: E402
import hashlib  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import linecache  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import traceback  # noqa: E402
import types  # noqa: E402
from collections.abc import Mapping, Sized  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

PDEATHSIG = 1
MAX_TRACE = 8000
MAX_OPEN = 4096


class TimeIsUp(BaseException):
    """SIGTERM came. Not an Exception: an experiment that catches those must not swallow it."""


class Report:
    """Sends frames; the last one when the experiment's threads and its own exit handlers have ended."""

    def __init__(self, outbox: int) -> None:
        self._outbox = outbox
        self._last: dict[str, Any] | None = None

    def send(self, **frame: Any) -> None:
        rest = memoryview(json.dumps(frame, ensure_ascii=True).encode("ascii") + b"\n")
        while rest:
            rest = rest[os.write(self._outbox, rest) :]

    def at_the_end(self, **frame: Any) -> None:
        self._last = frame

    def finish(self) -> None:
        # Registered before anything of the experiment's, so called after all of it. `os._exit` spares the
        # teardown of a loaded model, and crashes in it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()  # type: ignore[union-attr]
        if self._last is not None:
            with contextlib.suppress(OSError):
                self.send(**self._last)
        os._exit(0 if self._last is not None and self._last.get("status") == "ok" else 1)


def main() -> None:
    belong_to(int(os.environ.pop("AUTOINTERP_WARDEN")))
    outbox = int(os.environ["AUTOINTERP_OUTBOX"].removeprefix("fd:"))
    os.set_inheritable(outbox, False)  # noqa: FBT003
    orders = _take_orders_from_stdin()
    order = json.loads(orders.readline() or b"null")
    if order is None:
        return
    report, project = Report(outbox), order["project"]
    atexit.register(report.finish)
    limit_files(order["max_file"])
    problem = None if order["jail"] is None else close_jail(order["jail"])
    if problem is not None:
        report.send(type="jail_error", error=problem, traceback=None)
        return
    sys.path.append(project)
    sys.argv = [os.path.join(project, "experiment.py")]
    imported = _import_setup(project, order)
    report.send(**imported)
    if imported["type"] == "setup_error":
        return
    order = json.loads(orders.readline() or b"null")
    if order is None:
        os._exit(0)
    orders.close()
    sys.dont_write_bytecode = True
    _enter_scratch(project, order["scratch"], order["not_linked"])
    signal.signal(signal.SIGTERM, _raise_time_is_up)
    _keep_explored(order["explore"], report)
    report.at_the_end(**_run(project, order))


def belong_to(parent: int) -> None:
    """Ends with the warden; leaves no core file; is the first that the kernel ends when memory runs out."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)
    faulthandler.enable()


def _take_orders_from_stdin() -> Any:
    """The pipe moves away from descriptor 0: `input()` in an experiment finds an end of file, not its
    orders."""
    orders = open(os.dup(0), "rb")  # noqa: SIM115 - it lives as long as the process
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return orders


def limit_files(max_file: "int | None") -> None:
    """The largest file it may write, and how many it may have open."""
    if max_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file, max_file))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = MAX_OPEN if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def close_jail(jail: Mapping[str, Any]) -> "str | None":
    """Closes the jail and tries what it must prevent: None, or why it does not hold."""
    if jail["module"] is not None:
        spec = importlib.util.spec_from_file_location("jail", jail["module"])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            module.close(jail["read"], jail["write"])
        except module.JailError as error:
            return str(error)
    for flags, path, verb in ((os.O_RDONLY, jail["secret"], "read"), (os.O_WRONLY, jail["fixed"], "written")):
        with contextlib.suppress(OSError):
            os.close(os.open(path, flags))
            return f"{path} can be {verb} all the same"
    return None


def _enter_scratch(project: str, scratch: str, not_linked: "list[str]") -> None:
    """Makes the scratch directory, with links to what stands in the project, the current one."""
    os.mkdir(scratch)
    for name in os.listdir(project):
        if not name.startswith(".") and name not in not_linked:
            os.symlink(os.path.join(project, name), os.path.join(scratch, name))
    os.chdir(scratch)


def _import_setup(project: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the module `setup` from the sealed bytes: a frame "ready", or "setup_error"."""
    path = os.path.join(project, "setup.py")
    setup = types.ModuleType("setup")
    setup.__file__ = path
    try:
        code = _compiled(order["source"], order["sha"], path)
        sys.modules["setup"] = setup
        exec(code, setup.__dict__)
        facts = _facts(setup)
    except SystemExit as end:
        return {
            "type": "setup_error",
            "error": f"setup.py ended the program: exit({end.code!r})",
            "traceback": None,
        }
    except BaseException as error:  # noqa: BLE001 - whatever the investigation's code raises is reported
        return {"type": "setup_error", "error": _one_line(error), "traceback": _trace(error, project)}
    return {"type": "ready", "facts": facts}


def _keep_explored(explore: "list[int] | None", report: Report) -> None:
    """Leaves in `setup.dataset` and `setup.candidates` what experiments may explore; all of it for None. The
    rest can be rebuilt from setup.py: a frame says which pairs of it a model has run."""
    if explore is None:
        return
    setup: Any = sys.modules["setup"]
    whole, pairs = setup.dataset, sys.modules["mlxterp.causal.prompts.pair"]
    setup.dataset = [whole[i] for i in explore]
    if hasattr(setup, "candidates"):
        setup.candidates = pairs.without_prompts_of(setup.candidates, whole, explore)
    pairs.withhold(setup.model, whole, explore, lambda seen: report.send(type="held_out", pairs=list(seen)))


def _run(project: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the frozen experiment as `__main__`: the frame "done"."""
    path = os.path.join(project, "experiment.py")
    main_module = types.ModuleType("__main__")
    main_module.__file__ = path
    ended: dict[str, Any] = {"type": "done", "status": "ok", "error": None, "traceback": None}
    try:
        code = _compiled(order["source"], order["sha"], path)
        sys.modules["__main__"] = main_module
        _forget_measurements()
        known = set(sys.modules)
        try:
            exec(code, main_module.__dict__)
        finally:
            own = _project_modules(project, known)
        if own:
            ended |= {
                "status": "error",
                "error": f"experiment.py imported {', '.join(own)} of this project. An experiment is one "
                "file, which is frozen, judged and committed: put the code into it",
            }
    except SystemExit as end:
        if end.code not in (None, 0):
            ended |= {"status": "error", "error": f"experiment.py ended with exit({end.code!r})"}
    except BaseException as error:  # noqa: BLE001 - whatever the investigation's code raises is reported
        ended |= {"status": "error", "error": _one_line(error), "traceback": _trace(error, project)}
    return {**ended, "forwards": _forget_measurements()}


def _project_modules(project: str, known: "set[str]") -> "list[str]":
    """The files of the project that were imported since, however their names were written."""
    root = os.path.realpath(project) + os.sep
    files = [getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - known]
    paths = [os.path.realpath(file) for file in files if isinstance(file, str)]
    return sorted(path.removeprefix(root) for path in paths if path.startswith(root))


def _forget_measurements() -> int:
    """Begins to count anew, so that what setup.py measured is not the experiment's; how often a model ran."""
    measurements = sys.modules.get("mlxterp.measurements")
    return 0 if measurements is None else measurements.recorder.take().forwards


def _compiled(source: str, sha: str, name: str) -> types.CodeType:
    data = source.encode("latin-1")
    if hashlib.sha256(data).hexdigest() != sha:
        raise RuntimeError(f"{name} was changed between its digest and its run")
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    # Without a time of modification the cache does not look at the file again, which may have changed
    # meanwhile.
    linecache.cache[name] = (len(data), None, lines, name)
    return compile(data, name, "exec", dont_inherit=True)


def _facts(setup: types.ModuleType) -> dict[str, Any]:
    """What setup.py offers, for the live screen and the records: plain values, None for what it lacks."""
    model, dataset = getattr(setup, "model", None), getattr(setup, "dataset", None)
    return {
        "model": model if isinstance(model, str) else _text(getattr(model, "name", None)),
        "model_digest": _text(getattr(model, "digest", None)),
        "blas": _text(getattr(model, "blas", None)),
        "dataset": len(dataset) if isinstance(dataset, Sized) else None,
        "pairs": _pairs(model, dataset),
        "confirm_pairs": callable(getattr(setup, "confirm_pairs", None)),
        "metrics": _names(getattr(setup, "metrics", None)),
        "question": _text(getattr(setup, "QUESTION", None)),
        "size": _size(model),
        "capabilities": _capabilities(getattr(model, "capabilities", None)),
        "sae": _text(getattr(getattr(setup, "sae", None), "digest", None)),
        "vectors": _vectors(getattr(setup, "vectors", None)),
    }


def _pairs(model: object, dataset: object) -> "list[dict[str, Any]] | None":
    """The dataset's pairs as a judge divides them; None if they are none. Whoever made a pair has loaded its
    module."""
    module: Any = sys.modules.get("mlxterp.causal.prompts.pair")
    return None if module is None else module.list_pairs(model, dataset)


def _vectors(named: object) -> "dict[str, str]":
    """A digest of the numbers of each vector: two names may stand for one."""
    if not isinstance(named, Mapping):
        return {}
    return {
        str(name): hashlib.sha256(repr(each.tolist()).encode()).hexdigest() for name, each in named.items()
    }


def _size(model: object) -> "str | None":
    sizes = {name: getattr(model, name, None) for name in ("n_layers", "n_heads", "n_kv_heads", "d_model")}
    return None if None in sizes.values() else ", ".join(f"{name} {size}" for name, size in sizes.items())


def _capabilities(of_model: object) -> "str | None":
    """What this model's self-check found: what can be requested, and what cannot, with the reason."""
    if not isinstance(of_model, Mapping):
        return None
    there = [str(name) for name, each in of_model.items() if each.available]
    lacking = [f"{name} ({each.reason})" for name, each in of_model.items() if not each.available]
    return ", ".join(there) + (f"; missing: {', '.join(lacking)}" if lacking else "")


def _text(value: object) -> "str | None":
    return None if value is None else str(value)


def _names(metrics: object) -> "list[str]":
    names = getattr(metrics, "names", None)
    listed = names() if callable(names) else metrics
    return [str(name) for name in listed] if isinstance(listed, (list, tuple, set, Mapping)) else []


def _one_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _trace(error: BaseException, project: str) -> str:
    """The traceback without the frames of libraries, except for the last one, which raised."""
    whole = traceback.TracebackException.from_exception(error)
    _trim(whole, project, set())
    text = "".join(whole.format())
    return text if len(text) <= MAX_TRACE else f"{text[: MAX_TRACE // 2]}\n  […]\n{text[-MAX_TRACE // 2 :]}"


def _trim(part: "traceback.TracebackException | None", project: str, seen: "set[int]") -> None:
    if part is None or id(part) in seen:
        return
    seen.add(id(part))
    frames = [frame for frame in part.stack if frame.filename != __file__]
    kept = [frame for frame in frames[:-1] if frame.filename.startswith(project + os.sep)] + frames[-1:]
    part.stack = traceback.StackSummary.from_list(kept)
    _trim(part.__cause__, project, seen)
    _trim(part.__context__, project, seen)


def _raise_time_is_up(*_: object) -> NoReturn:
    raise TimeIsUp("the time box is over, or the run was stopped")


if __name__ == "__main__":
    main()
