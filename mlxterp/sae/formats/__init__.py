"""Files of SAEs: `load_sae` finds out which format a place holds, `save_sae` writes SAELens's.

One module per format (`saelens.py`, `sparsify.py`, `gemma_scope.py`), each with the conventions of its
writer; `weight_files.py` has what they share. What is read becomes an `SAE` on raw activations; what cannot
be expressed as one is refused by name.
"""

from __future__ import annotations

from pathlib import Path

from mlxterp._files import user_path
from mlxterp.errors import SAEFormatError
from mlxterp.sae.formats import gemma_scope, saelens, sparsify
from mlxterp.sae.formats.saelens import save_sae as save_sae
from mlxterp.sae.formats.weight_files import CONFIG, Overrides, read_arrays, read_config
from mlxterp.sae.sae import SAE


def load_sae(
    path: str | Path,
    *,
    model: str | None = None,
    hook_point: str | None = None,
    hook_point_out: str | None = None,
) -> SAE:
    """The SAE in a directory or file, on raw activations in float32.

    Read are directories of SAELens (`cfg.json`, `sae_weights.safetensors`; architectures as in
    `saelens.ARCHITECTURES`) and of sparsify (`cfg.json`, `sae.safetensors`); Gemma Scope's `params.npz`, and
    directories of Gemma Scope 2 (`config.json`, `params.safetensors`).

    Args:
        path: the directory, or a `.npz` file.
        model, hook_point, hook_point_out: what the file lacks, or spells in a way not known here; they
            override what the file says.

    Raises:
        SAEFormatError: no such file; a format, architecture or option not known here, listing those that
            are; arrays of the wrong shape, or with NaN among their values.
    """
    file = user_path(path)
    overrides = Overrides(model, hook_point, hook_point_out)
    if file.suffix == ".npz" and file.is_file():
        return gemma_scope.to_sae(file, overrides)
    if (file / gemma_scope.WEIGHTS).is_file():
        return gemma_scope.to_sae(file / gemma_scope.WEIGHTS, overrides)
    if (file / CONFIG).is_file() and (file / saelens.WEIGHTS).is_file():
        return saelens.to_sae(read_config(file), read_arrays(file / saelens.WEIGHTS), overrides, file)
    if (file / CONFIG).is_file() and (file / sparsify.WEIGHTS).is_file():
        return sparsify.to_sae(read_config(file), read_arrays(file / sparsify.WEIGHTS), overrides, file)
    if gemma_scope.is_version_2(file):
        return gemma_scope.to_sae_2(file, overrides)
    there = ", ".join(sorted(p.name for p in file.iterdir())) if file.is_dir() else "nothing"
    raise SAEFormatError(
        f"No SAE at {file}: there is {there or 'an empty directory'}. Read are: {CONFIG} with "
        f"{saelens.WEIGHTS} (SAELens) or {sparsify.WEIGHTS} (sparsify), {gemma_scope.WEIGHTS} (Gemma "
        f"Scope), and {gemma_scope.CONFIG_2} with {gemma_scope.WEIGHTS_2} (Gemma Scope 2)."
    )
