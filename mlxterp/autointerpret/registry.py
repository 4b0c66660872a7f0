"""`MetricRegistry`: the metrics that setup.py offers, by name and with a description an agent can read.

Does not live here: the metrics themselves (`mlxterp.metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mlxterp.errors import ContractError, UnknownMetricName


class _Registered(NamedTuple):
    fn: Callable[..., Any]
    description: str


class MetricRegistry:
    """Metrics by name, in the order they were registered."""

    def __init__(self) -> None:
        self._metrics: dict[str, _Registered] = {}

    def register(
        self, name: str, fn: Callable[..., Any], description: str = "", *, replace: bool = False
    ) -> None:
        """Adds a metric. A name that is taken is refused unless `replace=True`: a metric that silently
        changes its meaning makes earlier results incomparable.
        """
        if not isinstance(name, str) or not name.strip():
            raise ContractError(
                f"a metric needs a name; {name!r} was given. Give a text such as 'logit_diff'."
            )
        if not callable(fn):
            raise ContractError(
                f"metric {name!r} was registered with {fn!r}, a {type(fn).__name__}. "
                "Give the function itself."
            )
        if name in self._metrics and not replace:
            raise ContractError(
                f"metric {name!r} is registered already "
                f"({self._metrics[name].description or 'no description'}). "
                "Choose another name, or pass replace=True."
            )
        self._metrics[name] = _Registered(fn, str(description))

    def get(self, name: str) -> Callable[..., Any]:
        """The function of this name; UnknownMetricName lists those there are."""
        if name not in self._metrics:
            there = f"Registered: {', '.join(self._metrics)}." if self._metrics else "Nothing is registered."
            raise UnknownMetricName(
                f"no metric {name!r}. {there} Use one of them, or register({name!r}, fn, description=…)."
            )
        return self._metrics[name].fn

    def list(self) -> list[dict[str, str]]:
        """`{"name": …, "description": …}` of every metric."""
        return [{"name": name, "description": each.description} for name, each in self._metrics.items()]

    def names(self) -> tuple[str, ...]:
        return tuple(self._metrics)

    def __contains__(self, name: object) -> bool:
        return name in self._metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)
