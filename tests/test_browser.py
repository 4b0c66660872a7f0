"""The HTML report in a real browser: it draws, hostile words do nothing, the console stays silent."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mlxterp.autointerpret import ExperimentEntry
from mlxterp.reports import write_investigation_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# If it ran, the page would hold "0wned" in one piece.
SCRIPT = "document.body.append('0w' + 'ned')"
HOSTILE = f'</script><img src=x onerror="{SCRIPT}"><svg onload="{SCRIPT}">'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium on PATH; install it to run this"
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    project = tmp_path_factory.mktemp("project")
    entries = [
        ExperimentEntry(
            experiment_id="0001",
            timestamp=1_790_000_000.0,
            hypothesis=HOSTILE,
            method=HOSTILE,
            result={"effect": 0.82, HOSTILE: 1.5},
            informative=True,
            conclusion=HOSTILE,
            duration_seconds=1.0,
        )
    ]
    _, html = write_investigation_report(
        project, entries, config={"question": HOSTILE, "model": HOSTILE}, spent={}, stop_reason=HOSTILE
    )
    return html


def _browse(page: Path, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    quiet = (
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-quic",
    )
    base = (CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet)
    logging = ("--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}")
    command = [*base, *logging, *arguments, f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_hostile_words_stay_words_and_the_console_stays_silent(page, tmp_path):
    seen = _browse(page, tmp_path / "profile", "--dump-dom")

    assert "0wned" not in seen.stdout
    assert "<img src" not in seen.stdout
    assert ":CONSOLE" not in seen.stderr


def test_the_page_is_drawn_at_the_width_of_a_telephone(page, tmp_path):
    picture = tmp_path / "page.png"

    _browse(page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=400,900")

    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 5_000  # an empty page of this size takes about 2 kB
