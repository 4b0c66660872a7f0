# ruff: noqa: T201 - a command that prints
"""How long pages take: `python -m tests.benchmarks.reports`.

Prints, each with wall and CPU seconds, bytes and the load of the machine: a report of 50 sections and 20
figures (a sweep of 30 layers by 20 positions each) in HTML and Markdown, a page to explore of every head of a
model of 30 layers, dashboards of 100 and 1,000 features. CPU seconds mean something on a busy machine too.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlxterp.reports import interactive, save_report
from mlxterp.reports.dashboard import Accuracy, Examples, Excerpt, FeatureEntry, dashboard, write_dashboard
from mlxterp.results import AttentionPatternResult, MetricsResult, MetricsRow, PatchingResult

LAYERS, POSITIONS, HEADS = 30, 20, 9


def main() -> None:
    sweeps = [_sweep(seed) for seed in range(20)]
    tables = [_answers() for _ in range(30)]
    entries = [_entry(i) for i in range(1000)]
    patterns = _patterns()
    # The first figure pays for loading matplotlib and its fonts.
    with tempfile.TemporaryDirectory() as folder:
        _timed("first figure, with loading", lambda: save_report(sweeps[0], Path(folder, "first.html")))
        _timed(
            "50 sections, 20 figures, HTML", lambda: save_report([*sweeps, *tables], Path(folder, "r.html"))
        )
        _timed("the same without figures", lambda: _without(folder, [*sweeps, *tables]))
        _timed("the same in Markdown", lambda: save_report([*sweeps, *tables], Path(folder, "r.md")))
        heads = f"{len(patterns.heads)} heads of {POSITIONS} tokens to explore"
        _timed(heads, lambda: Path(str(interactive(patterns, Path(folder, "a.html")).path)))
        for n in (100, 1000):
            page = Path(folder, f"{n}.html")
            _timed(
                f"dashboard of {n} features",
                lambda n=n, page=page: write_dashboard(page, dashboard(entries[:n])),
            )
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _without(folder: str, results: list[PatchingResult | MetricsResult]) -> Path:
    return save_report(results, Path(folder, "plain.html"), include_plots=False)


def _timed(name: str, make: Callable[[], Path]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    path = make()
    took = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:44} {took[0]:6.2f} s wall {took[1]:6.2f} s CPU {path.stat().st_size / 1000:8,.0f} kB")


def _sweep(seed: int) -> PatchingResult:
    effects = np.random.default_rng(seed).normal(size=(LAYERS, POSITIONS)) / 4
    return PatchingResult(
        effects=effects,
        axes=("layer", "pos"),
        component="resid_pre",
        by="layer_pos",
        direction="denoising",
        metric="logit_diff",
        clean_metric=4.0,
        corrupted_metric=-2.0,
        labels={"pos": [f" token{i}" for i in range(POSITIONS)]},
        ci_low=effects - 0.1,
        ci_high=effects + 0.1,
    )


def _answers() -> MetricsResult:
    row = MetricsRow(prompt="The Eiffel Tower is in", answer=" Paris", prob=0.5, rank=1, logit_diff=2.0)
    return MetricsResult(rows=[row] * 20)


def _patterns() -> AttentionPatternResult:
    weights = np.tril(np.random.default_rng(0).random((LAYERS * HEADS, POSITIONS, POSITIONS)))
    return AttentionPatternResult(
        heads=tuple((i // HEADS, i % HEADS) for i in range(LAYERS * HEADS)),
        patterns=weights / weights.sum(axis=-1, keepdims=True),
        tokens=[f" token{i}" for i in range(POSITIONS)],
    )


def _entry(i: int) -> FeatureEntry:
    rng = np.random.default_rng(i)
    words = [f" word{j}" for j in rng.integers(0, 20_000, size=32 * 26)]
    texts = [
        Excerpt(
            tuple(words[32 * k : 32 * k + 32]),
            tuple(rng.random(32) * (rng.random(32) > 0.8)),
            20,
            "document 1",
        )
        for k in range(26)
    ]
    weights = tuple((word, float(rng.random())) for word in words[:10])
    return FeatureEntry(
        feature_id=i,
        label=f"feature {i}",
        confidence=float(rng.random()),
        accuracies=(Accuracy("rule", 0.9, 0.8, 0.95, 0.93),),
        counts=tuple(rng.integers(0, 100, size=30).tolist()),
        max_activation=1.0,
        examples=(Examples("Strongest", tuple(texts[:10])), Examples("Others", tuple(texts[10:]))),
        top_tokens=weights,
        promoted=weights,
        suppressed=weights,
        neighbours=(1, 2, 3, 4, 5),
    )


if __name__ == "__main__":
    main()
