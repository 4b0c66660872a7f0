"""What one run of a model asks for, and what it has seen so far.

What lives here: edits made and activations noted at a hook point. What doesn't: where the run comes by there
(`layer_taps.py`), the run (`forward.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx

from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.selection import Window
from mlxterp.errors import HookError

Edits = dict[HookPoint, list[Intervention]]


@dataclass(eq=False)
class Visit:
    """What one run asks for and has seen so far."""

    edits: Edits
    wanted: frozenset[HookPoint]
    window: Window
    captured: dict[HookPoint, mx.array] = field(default_factory=dict)
    fired: set[Intervention] = field(default_factory=set)
    called: set[HookPoint] = field(default_factory=set)  # modules named by their path
    layer: int = -1
    resid_pre: mx.array | None = None

    def asks(self, point: HookPoint) -> bool:
        return point in self.wanted or point in self.edits

    def at(self, point: HookPoint, x: mx.array, *, start: int | None = None) -> mx.array:
        """The activation to go on with: edited, and noted if it is wanted. Unasked, `x` itself."""
        if point.is_module_path:
            self._note_call(point)
        window = self.window if start is None else Window(start, self.window.lengths, self.window.grows)
        for intervention in self.edits.get(point, ()):
            edited = intervention.apply(x, window)
            if edited is not None:
                self.fired.add(intervention)
                x = edited
        if point in self.wanted:
            # A handle of its own: a model's `h += ...` would change the captured array under our hands.
            self.captured[point] = x[...]
        return x

    def _note_call(self, point: HookPoint) -> None:
        if point in self.called:
            raise HookError(
                f"{point}: one run calls this module more than once, as it does a rotary embedding (for "
                "queries and for keys), so its output is no single activation. Name what you mean, as in "
                "'L0.q' or 'L0.k', or a module that runs once."
            )
        self.called.add(point)
