"""The scripted researcher: an adaptive investigation without a language model.

It writes one experiment.py at a time from `templates/experiments/` and chooses the next from the log: the
behaviour, where it is carried, by what; then tests that could fail; then a conclusion. `plan.py` decides,
`steps.py` and `trials.py` ask, `conclude.py` concludes, `researcher.py` is the driver.
"""

from __future__ import annotations

from mlxterp_agent.drivers.scripted.researcher import ScriptedResearcher

__all__ = ["ScriptedResearcher"]
