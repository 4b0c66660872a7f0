"""The study of a sparse autoencoder's features: which have a label that holds, and which of them matter.

`criteria.py` has the steps and thresholds, `steps.py` asks, `facts.py` reads the log, `conclude.py`
concludes.
"""

from __future__ import annotations

from mlxterp_agent.researchers.scripted.features.criteria import ESSENTIAL, OPTIONAL, ORDER
from mlxterp_agent.researchers.scripted.features.steps import build
from mlxterp_agent.researchers.scripted.plan import Study

FEATURES = Study(ORDER, ESSENTIAL, OPTIONAL, build, nothing="the dictionary could not be surveyed")

__all__ = ["FEATURES"]
