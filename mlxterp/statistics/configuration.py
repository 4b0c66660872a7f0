"""The numbers of the keep rule, by which a selftest says what configuration it was made under."""

from __future__ import annotations

from typing import Any

from mlxterp.statistics import decisions, outcome, ratio, sequential


def rule_defaults() -> dict[str, Any]:
    """The defaults of splits, looks, levels, placebos and gate, as plain values."""
    return {
        "N_MIN": outcome.N_MIN,
        "N_FIRST": decisions.N_FIRST,
        "N_MOST": decisions.N_MOST,
        "EXPLORE_MIN": decisions.EXPLORE_MIN,
        "LEVEL_CAP": sequential.LEVEL_CAP,
        "FDR": sequential.FDR,
        "W0": sequential.INITIAL_WEALTH,
        "PLACEBOS": decisions.PLACEBOS,
        "PLACEBOS_MIN": outcome.PLACEBOS_MIN,
        "SE_FLOOR": ratio.SE_FLOOR,
        "SESOI": list(decisions.SESOI),
        "GATE_T": decisions.GATE_T,
        "GATE_PREFERENCE": decisions.GATE_PREFERENCE,
        "GATE_RANK_SHARE": decisions.GATE_RANK_SHARE,
        "GATE_CANDIDATES": decisions.GATE_CANDIDATES,
        "GATE_PREFIXED": decisions.GATE_PREFIXED,
    }
