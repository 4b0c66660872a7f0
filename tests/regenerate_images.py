# ruff: noqa: T201 - a command that prints
"""Makes the docs' screenshots from real runs: `python -m tests.regenerate_images`. Minutes; needs Chromium.

`report.png`: the report of the main job on SmolLM2-135M; `dashboard.png`: features of the SAE that ships.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlxterp import InterpretableModel
from mlxterp.auto_interp import auto_label_features, save_dashboard
from mlxterp.datasets import sample_texts
from mlxterp.sae import bundled_sae, cached_store
from tests.chromium import chromium

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pages = [
            (_report(Path(folder)), "report.png", (1000, 1060)),
            (_dashboard(Path(folder)), "dashboard.png", (1000, 900)),
        ]
        with chromium(Path(folder) / "profile") as tab:
            for page, name, size in pages:
                tab.size(*size)
                tab.media()
                tab.open(page)
                tab.picture(IMAGES / name, whole=False)
                print(f"{IMAGES / name}: {(IMAGES / name).stat().st_size / 1000:.0f} kB")


def _report(folder: Path) -> Path:
    """The main job, as a newcomer starts it."""
    start = [sys.executable, "-m", "mlxterp_agent.cli", "start", "investigation", "--agent", "scripted"]
    environment = os.environ | {"AUTOINTERP_STATE_DIR": str(folder / "state")}
    subprocess.run(start, cwd=folder, env=environment, check=True)
    return folder / "investigation" / "report.html"


def _dashboard(folder: Path) -> Path:
    """The 40 most active features of the SAE that ships, with labels."""
    model, sae, texts = InterpretableModel("smollm2-135m"), bundled_sae(), sample_texts(120)
    store = cached_store(model, sae, texts)
    labels = auto_label_features(model, sae, texts, top_k_features=40, store=store, llm=None)
    return save_dashboard(folder / "features.html", model, sae, store, labels)


if __name__ == "__main__":
    main()
