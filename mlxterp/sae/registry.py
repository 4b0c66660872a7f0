"""Ready SAEs and transcoders by name: the bundled one, and those in local directories.

`available` lists them without loading weights; `load_named` loads one. Nothing is fetched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxterp._files import user_path
from mlxterp.errors import SAEError
from mlxterp.sae.bundled import BUNDLED, bundled_path
from mlxterp.sae.formats import gemma_scope, load_sae, saelens, sparsify
from mlxterp.sae.formats.weight_files import CONFIG
from mlxterp.sae.sae import SAE

DIRECTORIES = "MLXTERP_SAES"
"""The environment variable with directories to look into, separated as in PATH."""

_DEPTH = 6
_GEMMA_SCOPE = re.compile(r"gemma-scope-(?P<size>\w+?)-(?P<kind>pt|it)-(?P<place>res|mlp|att)")
_PLACES = {"res": "resid_post", "mlp": "mlp_out", "att": "z"}


@dataclass(frozen=True, kw_only=True)
class AvailableSAE:
    """One SAE that can be loaded.

    Attributes:
        name: for `load_named`: "smollm2-135m", or its path below the directory it was found in.
        path: its directory or file.
        format: "mlxterp", "SAELens", "sparsify", "Gemma Scope" or "Gemma Scope 2".
        model: what it was trained on; None where neither its file nor its path says so.
        reads: the hook point it reads, as its file spells it; None likewise.
        writes: where a transcoder writes; None for an SAE.
        trained_on: the texts of its training, as its file names them; None where it does not.
    """

    name: str
    path: Path
    format: str
    model: str | None
    reads: str | None
    writes: str | None = None
    trained_on: str | None = None

    def __str__(self) -> str:
        place = self.reads or "an unnamed place (give hook_point=)"
        target = f" → {self.writes}" if self.writes else ""
        model = self.model or "an unnamed model (give model=)"
        texts = f"trained on {self.trained_on}" if self.trained_on else "training texts not named"
        return f"{self.name}: {model} at {place}{target}; {texts} ({self.format})"


def available(*directories: str | Path) -> tuple[AvailableSAE, ...]:
    """The SAEs and transcoders at hand: the bundled one, and all below these directories.

    Found are directories of SAELens, sparsify and Gemma Scope 2, and Gemma Scope's `params.npz`, up to six
    levels deep. Of a
    path such as `gemma-scope-2b-pt-res/layer_20/width_16k/…/params.npz` model and hook point are read from
    its names. Reads configurations, no weights.

    Args:
        directories: where to look; without any, those of the environment variable MLXTERP_SAES.

    Raises:
        SAEError: one is no directory.
    """
    given: Sequence[str | Path] = directories or [
        each for each in os.environ.get(DIRECTORIES, "").split(os.pathsep) if each
    ]
    found = [_described(bundled_path(model), model, own=True) for model in BUNDLED]
    for each in given:
        root = user_path(each)
        if not root.is_dir():
            raise SAEError(f"{root} was given to look for SAEs in; there is no such directory. Give others.")
        found += [_described(path, _name(path, root)) for path in _below(root, _DEPTH)]
    return tuple(found)


def load_named(name: str, *directories: str | Path, **overrides: str | None) -> SAE:
    """The SAE that `available(*directories)` lists under this name.

    Args:
        overrides: model, hook_point, hook_point_out, as in `load_sae`; they override what the listing knows.

    Raises:
        SAEError: there is none of this name, or two.
        SAEFormatError: as `load_sae`.
    """
    every = available(*directories)
    matching = [each for each in every if each.name == name]
    if len(matching) != 1:
        there = ", ".join(each.name for each in every)
        raise SAEError(
            f"{len(matching)} SAEs are named {name!r}. There are: {there}. Name one of them, or give the "
            "directory it is in."
        )
    one = matching[0]
    known = {"model": one.model, "hook_point": one.reads} if one.format == "Gemma Scope" else {}
    return load_sae(one.path, **(known | overrides))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """The places of SAEs in a directory and its subdirectories, by name."""
    if (folder / CONFIG).is_file() and any(
        (folder / w).is_file() for w in (saelens.WEIGHTS, sparsify.WEIGHTS)
    ):
        yield folder
    if (folder / gemma_scope.WEIGHTS).is_file():
        yield folder / gemma_scope.WEIGHTS
    if gemma_scope.is_version_2(folder):
        yield folder
    if depth:
        for each in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
            yield from _below(each, depth - 1)


def _name(path: Path, root: Path) -> str:
    folder = path.parent if path.name == gemma_scope.WEIGHTS else path
    return root.name if folder == root else folder.relative_to(root).as_posix()


def _described(path: Path, name: str, *, own: bool = False) -> AvailableSAE:
    if path.name == gemma_scope.WEIGHTS:
        return _gemma_scope(path, name)
    if not (path / CONFIG).is_file():
        facts_2 = gemma_scope.facts(path)
        return AvailableSAE(
            name=name,
            path=path,
            format="Gemma Scope 2",
            model=facts_2.model,
            reads=facts_2.reads,
            writes=facts_2.writes,
        )
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise SAEError(
            f"{path / CONFIG} is no JSON ({problem}). Remove the directory, or repair it."
        ) from problem
    facts: dict[str, Any] = {**config, **(config.get("metadata") or {})}
    ours = facts.get("mlxterp") or {}
    source = ((ours.get("metadata") or {}).get("training") or {}).get("source") or {}
    is_saelens = (path / saelens.WEIGHTS).is_file()
    return AvailableSAE(
        name=name,
        path=path,
        format=("mlxterp" if ours or own else "SAELens") if is_saelens else "sparsify",
        model=ours.get("model") or facts.get("model_name"),
        reads=ours.get("hook_point") or facts.get("hook_name") or facts.get("hookpoint"),
        writes=ours.get("hook_point_out") or facts.get("hook_name_out"),
        trained_on=_texts(source) or facts.get("dataset_path") or facts.get("dataset"),
    )


def _texts(source: dict[str, Any]) -> str | None:
    """What mlxterp's own record of a training says of its texts."""
    if not source:
        return None
    tokens = f"{source['tokens']:,} tokens" if "tokens" in source else "texts"
    return f"{tokens} of {source['corpora']}" if "corpora" in source else tokens


def _gemma_scope(path: Path, name: str) -> AvailableSAE:
    whole = path.as_posix()
    kind, layer = _GEMMA_SCOPE.search(whole), re.search(r"/layer_(\d+)/", whole)
    model = None
    if kind is not None:
        model = f"gemma-2-{kind['size']}" + ("-it" if kind["kind"] == "it" else "")
    reads = f"L{layer[1]}.{_PLACES[kind['place']]}" if kind is not None and layer is not None else None
    return AvailableSAE(name=name, path=path, format="Gemma Scope", model=model, reads=reads)
