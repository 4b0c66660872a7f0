"""The scripted researcher: an adaptive investigation without a language model.

It writes one experiment.py at a time from `templates/experiments/` and chooses the next from the log.
`plan.py` decides, `researcher.py` is the driver, and there is one package per study: `heads/` (a behaviour
that prompt pairs show) and `features/` (the features of a sparse autoencoder).
"""

from __future__ import annotations

from mlxterp_agent.researchers.scripted.researcher import ScriptedResearcher

__all__ = ["ScriptedResearcher"]
