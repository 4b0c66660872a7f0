"""Results and the log as pandas DataFrames and Parquet files, for whoever computes further with them.

pandas and pyarrow are an extra (`mlxterp[dataframe]`): nothing else of the library needs them, so they are
imported when a frame is made. A value with a structure of its own is one column of JSON.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxterp._files import user_path
from mlxterp.errors import ResultError
from mlxterp.results.values import json_safe
from mlxterp.results.views import Component, Show, Table

if TYPE_CHECKING:
    import pandas as pd


def rows_of(
    components: Sequence[Component], shows: Sequence[Show], fields: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """A row for each component; without any, a row for each of the first table's, else one of the fields."""
    if components:
        return [_of_component(each) for each in components]
    tables = [show for show in shows if isinstance(show, Table)]
    if tables:
        return [dict(zip(tables[0].columns, row, strict=True)) for row in tables[0].rows]
    return [fields]


def frame(rows: Iterable[Mapping[str, Any]], attrs: Mapping[str, str]) -> pd.DataFrame:
    """A DataFrame of these rows; lists and mappings in them become JSON.

    A column whose values are of several types would fit no Parquet file, so it is text.

    Raises:
        ResultError: pandas is not installed.
    """
    pandas = _module("pandas", "a DataFrame")
    flat = [{name: _flat(value) for name, value in row.items()} for row in rows]
    made = pandas.DataFrame(flat)
    for name in made.columns:
        given = [row.get(name) for row in flat]
        types = {type(value) for value in given if value is not None}
        if types == {int}:
            made[name] = pandas.array(given, dtype="Int64")  # an absent layer makes no number of it a float
        elif len(types - {float}) > 1 or (float in types and types - {float, int}):
            made[name] = [None if value is None else str(value) for value in given]
    made.attrs.update(attrs)
    return made


def write_parquet(made: pd.DataFrame, path: str | Path) -> Path:
    """Writes the frame with its `attrs`; returns the path.

    Raises:
        ResultError: pyarrow is not installed.
    """
    _module("pyarrow", "a Parquet file")
    file = user_path(path)
    made.to_parquet(file, engine="pyarrow", index=False)
    return file


def _of_component(component: Component) -> dict[str, Any]:
    row = {each.name: getattr(component, each.name) for each in dataclasses.fields(component)}
    low, high = row.pop("ci") or (None, None)
    return row | {"ci_low": low, "ci_high": high}


def _flat(value: Any) -> Any:
    return as_json(value) if isinstance(value, Mapping | list | tuple) else value


def as_json(value: Any) -> str:
    """The text of a column that holds structures; non-finite numbers become strings."""
    return json.dumps(json_safe(value), ensure_ascii=False, allow_nan=False)


def _module(name: str, wanted: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        raise ResultError(
            f"{wanted} was asked for, and {name} is not installed. Install it: "
            "python -m pip install 'mlxterp[dataframe]'; or use to_dict(), to_json() or components()."
        ) from missing
