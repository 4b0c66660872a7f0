"""`autointerp selftest`: the keep rule measured in worlds with known truth.

Measures the worlds' heads once (`measured.py`), makes claims whose truth is known (`claims.py`), lets
adversaries search for false findings (`adversaries.py`), and counts what the judge's own functions make of
them (`sections.py`). `python -m mlxterp.selftest` is the process that the command starts. `power.py` measures
how often an effect is found at the levels of a night's first claims.
"""

from __future__ import annotations

from mlxterp.selftest.claims import KEEP_2, Rule
from mlxterp.selftest.sections import FULL, QUICK, SelftestResult, Size, run_selftest

__all__ = ["FULL", "KEEP_2", "QUICK", "Rule", "SelftestResult", "Size", "run_selftest"]
