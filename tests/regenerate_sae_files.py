"""Writes `tests/data/saes`: small SAEs as their own packages write them, and what these give.

Run as `python -m tests.regenerate_sae_files` where sae-lens and eai-sparsify are installed; they are no
dependencies of this project, and neither mlxterp nor MLX is imported here. Weights are random; 6 tokens, 8
dimensions, 16 features. `expected.npz` of each package holds the tokens, the version, and for each folder
what the package's own reading of it encodes and reconstructs; nothing for folders that mlxterp refuses.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent / "data" / "saes"
D, D_SAE, K = 8, 16, 3
READS = {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
WRITES = {
    "model_name": "gpt2",
    "hook_name": "blocks.3.hook_resid_mid",
    "hook_name_out": "blocks.3.hook_mlp_out",
}
TOKENS = (np.random.default_rng(0).normal(size=(6, D)) * 2 + 0.5).astype(np.float32)

TRANSCODER = {"d_out": 5, "apply_b_dec_to_input": False}
SAELENS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "standard_b_dec_stays": ("standard", {"apply_b_dec_to_input": False}),
    "gated": ("gated", {}),
    "topk": ("topk", {"k": K}),
    "topk_b_dec_stays": ("topk", {"k": K, "apply_b_dec_to_input": False}),
    "topk_rescaled": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("jumprelu", {}),
    "transcoder": ("transcoder", TRANSCODER),
    "skip_transcoder": ("skip_transcoder", TRANSCODER),
    "jumprelu_transcoder": ("jumprelu_transcoder", TRANSCODER),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", TRANSCODER),
}
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "batchtopk": ("batchtopk", {"k": K, "rescale_acts_by_decoder_norm": False}),
    "batchtopk_rescaled": ("batchtopk", {"k": K}),
    "matryoshka": ("matryoshka_batchtopk", {"k": K, "matryoshka_widths": [4, D_SAE]}),
}
"""Each as a checkpoint and as saved for inference: SAELens reads the second only; both are the same SAE."""
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "refused_abstopk": ("abstopk", {"k": K}),
    "refused_matching_pursuit": ("matching_pursuit", {}),
    "refused_layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
    "refused_constant_norm": ("standard", {"normalize_activations": "constant_norm_rescale"}),
    "refused_expected_average": ("standard", {"normalize_activations": "expected_average_only_in"}),
}
SPARSIFY: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("layers.3", {}),
    "not_normalised": ("layers.3", {"normalize_decoder": False}),
    "multi_topk": ("layers.3", {"multi_topk": True}),
    "skip": ("layers.3", {"skip_connection": True}),
    "transcoder": ("layers.3.mlp", {"transcode": True}),
    "skip_transcoder": ("layers.3.mlp", {"transcode": True, "skip_connection": True}),
    "refused_groupmax": ("layers.3", {"activation": "groupmax", "k": 4}),
}


def randomise(module: Any, seed: int) -> None:
    import torch

    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, values in sorted([*module.named_parameters(), *module.named_buffers()]):
            drawn = random.normal(size=tuple(values.shape))
            if name in ("threshold", "topk_threshold"):
                drawn = np.abs(drawn) + 0.5
            if name in ("log_threshold", "r_mag"):
                drawn = 0.3 * drawn
            if values.is_floating_point():
                values.copy_(torch.tensor(drawn))


def saelens(root: Path) -> None:
    import torch
    from sae_lens import SAE
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
    from sae_lens.saes.sae import SAEMetadata

    expected: dict[str, Any] = {"x": TOKENS, "version": version("sae-lens")}
    x = torch.tensor(TOKENS)

    def made(registry: Any, architecture: str, options: dict[str, Any], seed: int) -> Any:
        of, config = registry[architecture]
        facts = SAEMetadata(**(WRITES if "transcoder" in architecture else READS))
        sae = of(config(d_in=D, d_sae=D_SAE, metadata=facts, **options))
        randomise(sae, seed)
        return sae

    def note(name: str, folder: Path) -> None:
        with torch.no_grad():
            sae = SAE.load_from_disk(str(folder))
            expected[f"{name}.encoded"], expected[f"{name}.reconstructed"] = (
                sae.encode(x).numpy(),
                sae(x).numpy(),
            )

    for seed, (name, (architecture, options)) in enumerate((SAELENS | REFUSED).items()):
        made(SAE_CLASS_REGISTRY, architecture, options, seed).save_model(str(root / name))
        if name not in REFUSED:
            note(name, root / name)
    for seed, (name, (architecture, options)) in enumerate(TRAININGS.items()):
        sae = made(SAE_TRAINING_CLASS_REGISTRY, architecture, options, 100 + seed)
        sae.save_model(str(root / f"{name}_checkpoint"))
        sae.save_inference_model(str(root / name))
        note(name, root / name)
        for part in ("encoded", "reconstructed"):
            expected[f"{name}_checkpoint.{part}"] = expected[f"{name}.{part}"]
    _, options = REFUSED["refused_expected_average"]
    folded = made(SAE_CLASS_REGISTRY, "standard", options, 200)
    folded.fold_activation_norm_scaling_factor(0.5)
    folded.save_model(str(root / "folded_average"))
    note("folded_average", root / "folded_average")
    # Written as versions before 6 did; SAELens 6 still reads it.
    old = root / "topk_before_6"
    shutil.copytree(root / "topk", old)
    config = {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "d_in": D,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "hook_name": READS["hook_name"],
        "model_name": READS["model_name"],
    }
    (old / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")
    note("topk_before_6", old)
    np.savez_compressed(root / "expected.npz", **expected)


def sparsify(root: Path) -> None:
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    expected: dict[str, Any] = {"x": TOKENS, "version": version("eai-sparsify")}
    x = torch.tensor(TOKENS)
    for seed, (name, (place, options)) in enumerate(SPARSIFY.items()):
        coder = SparseCoder(D, SparseCoderConfig(**({"num_latents": D_SAE, "k": K} | options)))
        randomise(coder, seed)
        folder = root / name / place
        coder.save_to_disk(folder)
        if name.startswith("refused"):
            continue
        again = SparseCoder.load_from_disk(folder)
        with torch.no_grad():
            found = again.encode(x)
            encoded = torch.zeros(len(x), D_SAE).scatter_(1, found.top_indices.long(), found.top_acts)
            # forward with multi_topk is of 4 k features, for its loss; decode is of the k that encode gives.
            multi = options.get("multi_topk", False)
            out = again.decode(found.top_acts, found.top_indices) if multi else again(x).sae_out
        expected[f"{name}.encoded"], expected[f"{name}.reconstructed"] = encoded.numpy(), out.numpy()
    np.savez_compressed(root / "expected.npz", **expected)


if __name__ == "__main__":
    for write in (saelens, sparsify):
        folder = ROOT / write.__name__
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
