"""The scripted researcher: an adaptive investigation without a language model.

It writes one experiment.py at a time and chooses the next from the log. `study.py` defines a study and
chooses the next step; `heads.py` and `features.py` are the studies; `researcher.py` writes the files.
"""

from __future__ import annotations

from mlxterp_agent.researchers.scripted.researcher import ScriptedResearcher

__all__ = ["ScriptedResearcher"]
