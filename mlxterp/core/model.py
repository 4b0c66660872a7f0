"""InterpretableModel: a model whose activations can be read and edited by name.

What lives here: wrapping, tokens in and out, one run, a trace, a generation. What doesn't: analyses, which
take a model as an argument (`mlxterp.causal`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlxterp import other_libraries
from mlxterp.component_names import GLOBAL_NAMES, LAYER_NAMES
from mlxterp.core import forward, self_check
from mlxterp.core.architecture.discovery import describe
from mlxterp.core.architecture.families import Family
from mlxterp.core.architecture.parts import Architecture, Capability
from mlxterp.core.generate import Generation, Sampling, generate
from mlxterp.core.hook_points import HookPoint, expand
from mlxterp.core.interventions import Intervention
from mlxterp.core.linux_blas import blas
from mlxterp.core.tokens import Padded, Prompt, TextTokens, Tokens, as_rows, pad
from mlxterp.core.trace import Trace
from mlxterp.errors import CapabilityUnavailable, ModelError, TokenError, UnsupportedArchitecture
from mlxterp.measurements import recorder
from mlxterp.models import precision, registry
from mlxterp.models.fetch import Step
from mlxterp.progress import reporting
from mlxterp.results import rendering
from mlxterp.results.views import Section, Table

Capture = str | HookPoint | Iterable[str | HookPoint | tuple[str, int]]


class _NamesElsewhere(type):
    """Lets `InterpretableModel.from_pretrained` say what to write instead."""

    def __getattr__(cls, name: str) -> Any:
        raise _no_attribute(cls.__name__, name)


class InterpretableModel(metaclass=_NamesElsewhere):
    """A model, its tokenizer, and names for the places inside it.

    Args:
        model: "smollm2-135m", "gemma3-270m" or "toy-induction"; a GGUF file; a directory or hub id for
            mlx-lm; or a module.
        tokenizer: for a module; without one, prompts are token ids.
        quantized: keep the weights as they are stored. By default those of a GGUF file are read into float32;
            where MLX has no GPU so are quantised and 16-bit weights of a directory or hub id, if the memory
            allows: on a CPU they compute 10 to 100 times slower (`models/precision.py`).
        dtype: what to cast the weights to, as in `mx.bfloat16`; quantised ones then stay quantised.
        adapter_path: a directory with a LoRA or DoRA adapter as mlx-lm writes it (`adapter_config.json`,
            `adapters.safetensors`); W_O, W_U and all runs are then of the adapted weights.
        prepend_bos: whether a text begins with the tokenizer's token for the beginning of a sequence; by
            default as the tokenizer itself has it. Or the text of the token to begin with, as in
            "<|endoftext|>". It is there once, also if the text has it written out. Prompts of token ids stay
            as they are.
        family: how the blocks of a module of your own differ from the common ones (`families.py`).
        verify: check by two forwards of five tokens that the hook points are what they are named, and on a
            GPU that it computes what the CPU does (`self_check.py`). For a model loaded by name the outcome
            is kept in MLXTERP_CACHE and used again for the same weights and code.
        progress: called with a line of text at each stage of fetching and loading a model; by default a bar
            while something is downloaded or read for more than two seconds, False for none.

    Raises:
        ModelNotFound: no model of this name; the message says what was tried.
        UnsupportedArchitecture: the module has no blocks that can be hooked.
        DeviceDisagrees: the GPU's logits of five tokens are not the CPU's.
    """

    def __init__(
        self,
        model: str | nn.Module,
        tokenizer: Any = None,
        *,
        quantized: bool = False,
        dtype: mx.Dtype | None = None,
        adapter_path: str | Path | None = None,
        prepend_bos: bool | str | None = None,
        family: Family | None = None,
        verify: bool = True,
        progress: Callable[[str], None] | bool | None = None,
    ) -> None:
        if isinstance(model, nn.Module):
            if quantized:
                raise ModelError(
                    "quantized=True is for models loaded by name. Quantise a module with nn.quantize."
                )
            loaded = registry.Loaded(type(model).__module__.rsplit(".", 1)[-1], model, tokenizer)
        else:
            loaded = _load_by_name(model, quantized=quantized, progress=progress, convert=dtype is None)
        if adapter_path is not None:
            loaded = registry.add_adapter(loaded, adapter_path)
        self.name = loaded.name
        self.model = loaded.module
        if dtype is not None:
            self.model.set_dtype(dtype)
        if isinstance(model, str) and (quantized or dtype is not None):
            precision.warn_of_cost(self.model, self.name)
        self.tokenizer = loaded.tokenizer if tokenizer is None else tokenizer
        self.prepend_bos_option = prepend_bos
        self._text = TextTokens(self.tokenizer, prepend_bos=prepend_bos)
        self.facts: Mapping[str, Any] = {**loaded.facts, "prepend_bos": self._text.prepend_bos}
        _evaluate_every_array(self.model)
        self.architecture: Architecture = describe(self.model, family)
        self_check.measure_sizes(self.architecture)
        if verify:
            self._verify(keep=isinstance(model, str) and family is None)

    def _verify(self, *, keep: bool) -> None:
        """Checks the hook points, or reads what an earlier process found for the same weights and code."""
        found = self_check.read_kept_capabilities(self.architecture, self.digest) if keep else None
        if found is not None:
            self.architecture.capabilities = found
            return
        try:
            self_check.compare_devices(self.architecture, self_check.probe_tokens(self.architecture))
            self_check.switch_off_what_fails(self.architecture)
        except RuntimeError as problem:  # how MLX says that it has no such operation for a type or device
            raise UnsupportedArchitecture(
                f"{self.name}: MLX cannot compute five tokens of it on {mx.default_device()} in these types: "
                f"{problem} Load it with dtype=mx.float32, or compute on another device."
            ) from problem
        if keep:
            self_check.keep_capabilities(self.architecture, self.digest)

    def __getattr__(self, name: str) -> Any:
        """Only called for what a model does not have: other libraries' names get an error with ours."""
        raise _no_attribute(type(self).__name__, name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refused: whether logits or activations are meant would be a guess.

        Raises:
            ModelError: always; says which calls give which.
        """
        raise ModelError(f"A model is not called. {other_libraries.CALLED}")

    def __repr__(self) -> str:
        return f"InterpretableModel({self.name!r}, n_layers={self.n_layers}, d_model={self.d_model})"

    def _repr_html_(self) -> str:
        """What a notebook shows: sizes and type, and every hook point with what limits it."""
        sizes = [
            ("layers", self.n_layers),
            ("heads", self.architecture.n_heads),
            ("key/value heads", self.architecture.n_kv_heads),
            ("d_model", self.d_model),
            ("d_vocab", self.d_vocab),
            ("type", str(self.architecture.dtype).removeprefix("mlx.core.")),
            ("texts begin with a BOS token", self.prepend_bos),
            ("BLAS", str(self.blas)),
        ]
        points = [
            (name, found.available, found.reason)
            for name in (*LAYER_NAMES, *GLOBAL_NAMES)
            for found in [self.capabilities[name]]
        ]
        shows = (
            Table("Model", ("", "value"), tuple(sizes)),
            Table("Hook points", ("name", "available", "limit"), tuple(points)),
        )
        return rendering.fragment(
            Section(self.name, f"{self.architecture.name}, {self.n_layers} layers.", shows)
        )

    @property
    def loaded_by_name(self) -> bool:
        """Whether `InterpretableModel(self.name)` loads these weights: a bundled model or a GGUF file,
        unadapted."""
        return "source" in self.facts and "adapter" not in self.facts

    @property
    def n_layers(self) -> int:
        return len(self.architecture.layers)

    @property
    def n_heads(self) -> int:
        return self._known(self.architecture.n_heads, "n_heads")

    @property
    def n_kv_heads(self) -> int:
        return self._known(self.architecture.n_kv_heads, "n_kv_heads")

    @property
    def d_model(self) -> int:
        return self.architecture.d_model

    @property
    def d_vocab(self) -> int:
        return self.architecture.d_vocab

    @cached_property
    def d_head(self) -> int:
        """The width of one head's z."""
        layers = self.architecture.layers_with("head_outputs")
        return int(self.architecture.w_o(layers[0] if layers else 0).shape[1])

    @property
    def capabilities(self) -> Mapping[str, Capability]:
        """For each hook point and part, whether this model has it, and if not, why."""
        return self.architecture.capabilities

    @property
    def blas(self) -> blas.BlasInfo:
        """Which library multiplies matrices here."""
        return blas.which()

    @cached_property
    def digest(self) -> str:
        """A sha256 that distinguishes these weights from others.

        Of the names, shapes and types of all arrays and 64 values of each: cheap, so a change of a few
        weights can escape it.
        """
        seen = hashlib.sha256(type(self.model).__module__.encode())
        for path, array in sorted(tree_flatten(self.model.parameters())):
            flat = array.reshape(-1)
            spread = flat[mx.array(np.linspace(0, flat.size - 1, num=min(flat.size, 64)).astype(np.int32))]
            seen.update(f"{path} {array.shape} {array.dtype}".encode())
            seen.update(np.array(spread.view(mx.uint8)).tobytes())
        return seen.hexdigest()

    def _known(self, number: int | None, name: str) -> int:
        if number is None:
            raise CapabilityUnavailable(
                f"{self.name}: {name} is not known: its attention modules have no such attribute."
            )
        return number

    def to_tokens(self, prompt: Prompt | Sequence[Prompt]) -> Tokens | list[Tokens]:
        """Token ids [1, pos] of a text or of ids; of a list of prompts, a list of such arrays."""
        if _is_list_of_prompts(prompt):
            return [self._one_prompt(p) for p in prompt]
        return self._one_prompt(prompt)

    def _one_prompt(self, prompt: Any) -> Tokens:
        ids = self._text.encode(prompt) if isinstance(prompt, str) else prompt
        return self._checked(as_rows(ids))

    def to_str_tokens(self, prompt: Prompt) -> list[str]:
        """The text of each token."""
        return self._text.split(self._row(prompt))

    def to_single_token(self, text: str) -> int:
        """The one token that `text` is; raises TokenError showing the split if it is not one.

        A tokenizer that puts a space in front of every text by itself has one token for "Paris" and " Paris".
        """
        return self._text.single(text)

    def other_form(self, text: str) -> str | None:
        """`text` with its leading space taken off, or with one put in front, if that is another single token.

        None where it is not one token, or where the tokenizer makes both the same.
        """
        return self._text.other_form(text)

    @property
    def prepend_bos(self) -> bool:
        """Whether a prompt given as text begins with a token for the beginning of a sequence."""
        return self._text.prepend_bos

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, or would with `prepend_bos=True`; None if the tokenizer has none."""
        return self._text.bos_id

    def to_string(self, tokens: Iterable[int]) -> str:
        """The text of these token ids."""
        return self._text.decode(tokens)

    def _row(self, prompt: Prompt) -> list[int]:
        rows = self._batch(prompt)
        if len(rows.lengths) != 1:
            raise TokenError(
                f"{len(rows.lengths)} prompts were given where one is allowed. Call it once for each, as in "
                "[model.generate(prompt) for prompt in prompts]."
            )
        return [int(i) for i in rows.tokens[0]]

    def _batch(self, prompt: Prompt | Sequence[Prompt]) -> Padded:
        tokens = self.to_tokens(prompt)
        return pad(tokens if isinstance(tokens, list) else [tokens])

    def _checked(self, tokens: Tokens) -> Tokens:
        if tokens.min() < 0 or tokens.max() >= self.d_vocab:
            raise TokenError(
                f"Token ids {tokens.min()} to {tokens.max()} were given; "
                f"this model has 0 to {self.d_vocab - 1}."
            )
        return tokens

    def run(
        self,
        tokens: mx.array | Tokens,
        *,
        interventions: Sequence[Intervention] = (),
        capture: Capture = (),
        lengths: Sequence[int] | None = None,
    ) -> tuple[mx.array, dict[HookPoint, mx.array]]:
        """Logits [batch, pos, d_vocab] and what was captured; every other run goes through this one.

        Args:
            tokens: [batch, pos]; rows of unequal length padded on the right, with their `lengths`.
            interventions: edits; `rows=` restricts one to batch rows, and a value may have a batch axis.
            capture: hook points; "resid_pre" is every layer's, "L9.z" only itself, "all" every one that this
                model has.

        Raises:
            UnknownHookPoint, CapabilityUnavailable: listing what there is.
            InterventionNotFired: an edit changed nothing.
        """
        return self._run(tokens, interventions, capture, lengths)

    def _run(
        self,
        tokens: mx.array | Tokens,
        interventions: Sequence[Intervention],
        capture: Capture,
        lengths: Sequence[int] | None,
        comparisons: forward.Comparisons | None = None,
    ) -> tuple[mx.array, dict[HookPoint, mx.array]]:
        ids = tokens if isinstance(tokens, mx.array) else mx.array(self._checked(as_rows(tokens)))
        logits, captured, _ = forward.run(
            self.architecture,
            ids,
            interventions=interventions,
            capture=self._points(capture),
            lengths=None if lengths is None else tuple(lengths),
            comparisons=comparisons,
        )
        own = np.array(ids, dtype=np.int32)
        kept = map(len, own) if lengths is None else lengths
        recorder.add_forward(self, [row[:n].tobytes() for row, n in zip(own, kept, strict=True)])
        return logits, captured

    def _points(self, capture: Capture) -> list[HookPoint]:
        if capture == "all":
            layered = [n for n in LAYER_NAMES if self.architecture.layers_with(n)]
            capture = [*layered, *(n for n in GLOBAL_NAMES if self.capabilities[n].available)]
        return expand(capture, self.n_layers, self._layers_with)

    def _layers_with(self, name: str) -> Sequence[int]:
        """The layers that a layer's name without a number stands for: those that have it, else all."""
        return self.architecture.layers_with(name) or range(self.n_layers)

    def trace(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        capture: Capture = (),
        interventions: Sequence[Intervention] = (),
    ) -> Trace:
        """One run of a text, token ids, or a list of them, with the activations asked for.

        A list is one batch, padded on the right; causal attention makes each row what it is alone. All
        arrays are computed when this returns, so a trace can be read in any thread; `trace.layers[9].z` and
        `trace["L9.z"]` are the same array.
        """
        batch = self._batch(prompt)
        comparisons: forward.Comparisons = []
        logits, captured = self._run(batch.tokens, interventions, capture, batch.lengths, comparisons)
        # A lazy array cannot be read in another thread.
        mx.eval(logits, captured, [differs for _, differs in comparisons])
        for point, differs in comparisons:
            recorder.add_comparison(str(point), changed=bool(differs))
        adds_positions = self.architecture.max_positions is not None
        return Trace(batch, logits, captured, self._text.split, self.n_layers, adds_positions)

    def logits(
        self, prompt: Prompt | Sequence[Prompt], *, interventions: Sequence[Intervention] = ()
    ) -> mx.array:
        """Logits [batch, pos, d_vocab]."""
        return self.trace(prompt, interventions=interventions).logits

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        interventions: Sequence[Intervention] = (),
        stop_at_end: bool = True,
    ) -> Generation:
        """Continues a prompt, greedily at temperature 0.

        Positions of interventions are absolute, negative ones count from the prompt's end. An intervention at
        all positions acts on every new token too; `positions=slice(n, None)` acts from n on.

        One prompt a call. The activations at generated tokens are those of
        `trace([*found.prompt_tokens, *found.tokens], capture=…)` with the same interventions.
        """
        row = self._row(prompt)
        recorder.add_forward(self, [np.array(row, dtype=np.int32).tobytes()])
        return generate(
            self.architecture,
            row,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_k, top_p),
            seed=seed,
            end=self._text.eos_ids if stop_at_end else frozenset(),
            interventions=interventions,
            decode=self._text.decode if self.tokenizer is not None else lambda _: "",
        )

    def unembedding(self, token_ids: int | Sequence[int] | Tokens | mx.array) -> mx.array:
        """Rows of W_U in float32 [n, d_model], dequantised."""
        return self.architecture.unembed_rows(mx.array(np.atleast_1d(np.array(token_ids))))


def _load_by_name(
    name: str, *, quantized: bool, progress: Callable[[str], None] | bool | None, convert: bool
) -> registry.Loaded:
    """The model, with what its loading reports shown as the caller asked for it."""
    if callable(progress):
        return registry.load(name, quantized=quantized, progress=progress, convert=convert)
    with reporting(progress, f"loading {name}") as shown:

        def count(line: str) -> None:
            if isinstance(line, Step) and shown is not None:
                shown(line.done, line.total)

        return registry.load(name, quantized=quantized, progress=count, convert=convert)


END_OF_TEXT = "<|endoftext|>"  # what many models were trained to see between texts


def bos_caution(
    model: InterpretableModel, clean_ids: Sequence[int], corrupted_ids: Sequence[int]
) -> str | None:
    """What to try when two prompts differ in their first token and no BOS token stands before it.

    The first position of a sequence is treated by most models like no other (an attention sink: Xiao et al.
    2024, arXiv:2309.17453), so a difference there is not the difference of two words. None if that is not so.
    """
    bos = model.bos_token_id
    if bos is None or not len(clean_ids) or not len(corrupted_ids) or clean_ids[0] == corrupted_ids[0]:
        return None
    if bos in (clean_ids[0], corrupted_ids[0]):
        return None
    try:
        other = f", or prepend_bos={END_OF_TEXT!r}" if model.to_single_token(END_OF_TEXT) != bos else ""
    except TokenError:
        other = ""
    return (
        "The prompts differ at position 0, which models treat like no other, and the tokenizer of "
        f"{model.name} has a token for the beginning of a text ({model.to_str_tokens([bos])[0]!r}) that is "
        f"not used. Try InterpretableModel(..., prepend_bos=True){other}."
    )


def _no_attribute(owner: str, name: str) -> AttributeError:
    known = other_libraries.instead(other_libraries.MODEL, owner, name)
    return AttributeError(known or f"{owner!r} has no attribute {name!r}", name=name)


def _evaluate_every_array(model: nn.Module) -> None:
    """Computes what a module's constructor left lazy, such as frequencies of a rotary embedding.

    A lazy array belongs to the thread that made it, and the first forward may come from another.
    """
    # A module is a dict of its arrays and parts, those too whose names begin with an underscore.
    lazy = [leaf for _, leaf in tree_flatten(model) if isinstance(leaf, mx.array)]
    for module in model.modules():
        lazy += [value for value in vars(module).values() if isinstance(value, mx.array)]
    mx.eval(lazy)


def _is_list_of_prompts(prompt: Any) -> bool:
    """Whether these are several prompts, and not the ids of one."""
    return isinstance(prompt, list | tuple) and bool(prompt) and not isinstance(prompt[0], int | np.integer)
