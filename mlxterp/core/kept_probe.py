"""What the probe found of a model, kept between processes: the check takes a third of a cold start.

It is taken up again only for the same weights, the same code of this package's core and of the model's own
module, the same mlx, BLAS and device. A file that cannot be read or written costs the check and nothing else;
all of them can be deleted at any time. What doesn't live here: the check itself (`self_check.py`).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mlxterp._files import write_atomically
from mlxterp.core.architecture import attention
from mlxterp.core.architecture.parts import Architecture, Capability
from mlxterp.core.linux_blas import blas
from mlxterp.models.fetch import cache_dir

SCHEMA = "mlxterp-probe/1"


def read(architecture: Architecture, digest: str) -> dict[str, Capability] | None:
    """The capabilities that the probe found before, or None."""
    try:
        data = json.loads(_path(architecture, digest).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or set(data["capabilities"]) != set(architecture.capabilities):
            return None
        return {
            name: Capability(available=bool(available), reason=str(reason))
            for name, (available, reason) in data["capabilities"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return None


def write(architecture: Architecture, digest: str) -> None:
    """Keeps the capabilities that the probe has left."""
    found = {name: [each.available, each.reason] for name, each in architecture.capabilities.items()}
    content = json.dumps({"schema": SCHEMA, "model": architecture.name, "capabilities": found}, indent=1)
    path = _path(architecture, digest)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())


def _path(architecture: Architecture, digest: str) -> Path:
    modules = {inspect.getmodule(type(part)) for part in (architecture.model, architecture.layers[0].block)}
    modules |= {
        inspect.getmodule(layer.namespace[attention.NAME])
        for layer in architecture.layers[:1]
        if attention.NAME in layer.namespace
    }
    key = hashlib.sha256(f"{SCHEMA} {digest} {_code_of_the_core()} {_machine()}".encode())
    for file in sorted(file for module in modules if (file := getattr(module, "__file__", None))):
        key.update(Path(file).read_bytes())
    return cache_dir() / "probes" / f"{architecture.name}-{key.hexdigest()[:32]}.json"


@cache
def _code_of_the_core() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _machine() -> str:
    which = blas.which()
    return f"{version('mlx')} {platform.platform()} {mx.default_device()} {which.name} {which.version}"
