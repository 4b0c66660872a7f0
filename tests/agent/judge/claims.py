"""An investigation of the toy model whose experiments declare claims, and what they declare."""

from __future__ import annotations

from pathlib import Path

from tests.agent.fakes import make_project

TOY = '''"""The toy with its two heads, and pairs that repeat."""

from mlxterp.autointerpret import MetricRegistry
from mlxterp.metrics import kl, logit_diff
from mlxterp.worlds import toy_induction

world = toy_induction({n})
model, dataset, candidates = world.model, list(world.pairs), world.candidates
metrics = MetricRegistry()
metrics.register("logit_diff", logit_diff)
metrics.register("kl", kl)
QUESTION = "Which heads repeat?"
'''

FRESH = """

def confirm_pairs(n, seed):
    return list(toy_induction(n, seed + 1).pairs)
"""

DECLARED = """from mlxterp.autointerpret import Hypothesis, InterventionClaim
{before}
HYPOTHESIS = Hypothesis(
    id={id!r},
    claim={claim!r},
    site={site!r},
    {done}
    direction={direction!r},
    sesoi={sesoi},
    forecast={{"supported": 0.7, "refuted": 0.1, "ruled_out": 0.2}},
    rivals=["Any head does."],
    falsified_if="the effect is below the smallest of interest",
    {more}
)
{after}
"""


def toy_project(path: Path, *, n: int = 48, fresh: bool = False, setup: str = TOY) -> Path:
    """The files of an investigation of the toy on `n` independent pairs."""
    return make_project(path, setup=setup.format(n=n) + (FRESH if fresh else ""))


def declaring(
    *site: str,
    op: str = 'InterventionClaim("patch", source="clean")',
    metric: str = "logit_diff",
    direction: str = "increase",
    sesoi: float = 0.1,
    id: str = "H001",
    claim: str = "",
    role: str = "",
    more: str = "",
    before: str = "",
    after: str = "",
) -> str:
    """An experiment.py that declares a claim about these sites, and does nothing else by itself."""
    done = f"role={role!r}," if role else f"intervention={op}, metric={metric!r},"
    return DECLARED.format(
        id=id,
        claim=claim or f"{' and '.join(site)} carries the answer.",
        site=list(site),
        done=done,
        direction=direction,
        sesoi=sesoi,
        more=more,
        before=before,
        after=after,
    )
