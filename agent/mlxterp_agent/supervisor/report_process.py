"""Makes report.md and report.html from the log, at the end of a run and on request.

At the end of a run a process of its own does it, so that no fault in figures and pages can delay or break the
end of an investigation. What the pages hold is decided in `mlxterp.reports`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mlxterp_agent.storage.project_files import clear_for_file, clear_for_folder
from mlxterp_agent.supervisor.project_view import Overview, read_project

_LONGEST = 120.0


def write_report(directory: Path) -> tuple[Path, Path]:
    """Renders both reports from what is on the disk now, and returns their paths."""
    from mlxterp.reports import write_investigation_report

    seen: Overview = read_project(directory)
    for name in ("report.md", "report.html"):
        clear_for_file(seen.project.path, name)
    clear_for_folder(seen.project.path, "report_files")
    return write_investigation_report(
        seen.project.path,
        seen.entries,
        config=seen.report_config(),
        spent=seen.spent._asdict(),
        stop_reason="; ".join(filter(None, (seen.stop_reason, seen.uncommitted))),
    )


def refresh_report(directory: Path, *, wait: bool = True) -> str | None:
    """Has both reports rendered by a process of its own. Returns what went wrong, or None.

    Args:
        wait: until it has ended, at most two minutes. Without it the reports appear a few seconds later, for
        an
            end that must be quick.
    """
    command = [sys.executable, "-m", "mlxterp_agent.cli", "report", str(directory)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if wait else subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    if not wait:
        return None
    try:
        _, errors = process.communicate(timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"it took longer than {_LONGEST:.0f} s"
    except KeyboardInterrupt:
        process.kill()
        process.communicate()
        return "it was interrupted; `autointerp report` writes it"
    return None if process.returncode == 0 else errors.strip() or f"exit code {process.returncode}"
