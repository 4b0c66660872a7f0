"""The study of a behaviour that prompt pairs show: where it is carried, by which heads, and tests.

`criteria.py` has the steps and thresholds, `steps.py` and `trials.py` ask, `facts.py` reads the log,
`sizing.py` fits a sweep into the time box, `conclude.py` concludes.
"""

from __future__ import annotations

from mlxterp_agent.researchers.scripted.heads.criteria import ESSENTIAL, OPTIONAL, ORDER
from mlxterp_agent.researchers.scripted.heads.steps import build
from mlxterp_agent.researchers.scripted.plan import Study

HEADS = Study(ORDER, ESSENTIAL, OPTIONAL, build, nothing="the behaviour could not be measured")

__all__ = ["HEADS"]
