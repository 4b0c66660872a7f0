"""A small compiler from programs in the style of RASP (Weiss et al. 2021) to the weights of a transformer.

A program is a list of operations, each one head or one MLP. Variables are subspaces of the residual stream:
a categorical one is a one-hot, a numerical one a single dimension. Every head and MLP that a program does not
use computes something random and writes it where nothing reads. Because the compiler knows which operation
reads which variable, it knows the edges of the circuit: `Compiled.truth`.

The answer is read at the last position, and attention looks back only. Position 0 holds a token of its own,
the "beginning of sequence", which heads attend to when nothing else matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxterp.core.model import InterpretableModel
from mlxterp.metrics import Floats
from mlxterp.models.toy import Attention, ToyArgs

SHARP = 80.0  # score of a match: attention leaks e^-40 to what does not match
LOGIT = 10.0
SPARE = 6  # dimensions that only the idle parts write to


class Mlp(nn.Module):  # type: ignore[misc]
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def __call__(self, x: mx.array) -> mx.array:
        out: mx.array = self.down(nn.relu(self.up(x)))
        return out


class Block(nn.Module):  # type: ignore[misc]
    """Attention, then the MLP, without norms."""

    def __init__(self, args: ToyArgs, hidden: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(args), Mlp(args.hidden_size, hidden)

    def __call__(self, x: mx.array, mask: mx.array | str | None = None) -> mx.array:
        h = x + self.self_attn(x, mask)
        out: mx.array = h + self.mlp(h)
        return out


class Transformer(nn.Module):  # type: ignore[misc]
    """Embeddings of tokens and positions, the blocks, and an unembedding."""

    def __init__(self, args: ToyArgs, hidden: int, n_out: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.embed_positions = nn.Embedding(args.max_position_embeddings, args.hidden_size)
        self.layers = [Block(args, hidden) for _ in range(args.num_hidden_layers)]
        self.lm_head = nn.Linear(args.hidden_size, n_out, bias=False)

    def __call__(self, inputs: mx.array) -> mx.array:
        h = self.embed_tokens(inputs) + self.embed_positions(mx.arange(inputs.shape[1]))
        for layer in self.layers:
            h = layer(h, "causal")
        logits: mx.array = self.lm_head(h)
        return logits


@dataclass(frozen=True)
class Variable:
    """Dimensions of the residual stream, who writes them, and whether they depend on the tokens."""

    dims: range
    writer: str
    varies: bool


@dataclass(frozen=True)
class Compiled:
    """A program as a model, with the edges that carry something which depends on the tokens, and all that
    carry something which is read."""

    model: InterpretableModel
    truth: frozenset[str]
    wired: frozenset[str]

    def truth_under(self, ablation: str) -> frozenset[str]:
        """The edges that matter: a constant is missed where it is set to zero, and only there."""
        return self.wired if ablation == "zero" else self.truth


@dataclass
class Program:
    """Operations on tokens `0 … n_tokens − 1`; id `n_tokens` is the beginning of sequence."""

    n_tokens: int
    n_positions: int
    n_layers: int
    n_heads: int = 3
    hidden: int = 24
    seed: int = 0
    variables: dict[str, Variable] = field(default_factory=dict)
    edges: set[str] = field(default_factory=set)
    wired: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._width = 0
        self._heads: dict[str, tuple[Floats, ...]] = {}
        self._mlps: dict[str, tuple[Floats, ...]] = {}
        self.tok = self._new("tok", self.n_tokens, "input", varies=True)
        self.pos = self._new("pos", self.n_positions, "input")
        self.bos = self._new("bos", 1, "input")
        self.one = self._new("one", 1, "input")

    def _new(self, name: str, size: int, writer: str, *, varies: bool = False) -> Variable:
        dims = range(self._width, self._width + size)
        self._width += size
        self.variables[name] = Variable(dims, writer, varies)
        return self.variables[name]

    def _reads(self, into: str, variable: Variable) -> None:
        self.wired.add(f"{variable.writer}→{into}")
        if variable.varies:
            self.edges.add(f"{variable.writer}→{into}")

    def head(
        self,
        node: str,
        query: Variable,
        key: Variable,
        selector: Floats,
        value: Variable,
        values: Floats | None = None,
        *,
        beginning: float = 0.5,
    ) -> Variable:
        """Attends evenly to the positions where `selector[query, key]` is 1; writes the mean of the values.

        Args:
            node: as `L0.H1`.
            values: `[size of value, size of the output]`; by default the value itself.
            beginning: the score of position 0: below 1 for a default, 1 if it is counted with the rest.
        """
        values = np.eye(len(value.dims)) if values is None else values
        out = self._new(node, values.shape[1], node, varies=value.varies or query.varies or key.varies)
        size = len(key.dims)
        q, k = np.zeros((size + 1, 500)), np.zeros((size + 1, 500))
        q[:size, query.dims] = SHARP * selector.T
        k[:size, key.dims] = np.eye(size)
        q[size, self.one.dims[0]], k[size, self.bos.dims[0]] = SHARP * beginning, 1.0
        v, o = np.zeros((values.shape[1], 500)), np.zeros((500, values.shape[1]))
        v[:, value.dims] = values.T
        o[out.dims, :] = np.eye(values.shape[1])
        self._heads[node] = q, k, v, o
        for into, variable in (("q", query), ("k", key), ("v", value)):
            if into == "v" or selector.any():
                self._reads(f"{node}.{into}", variable)
        if beginning:
            self._reads(f"{node}.q", self.one)
            self._reads(f"{node}.k", self.bos)
        return out

    def table(self, node: str, reads: Mapping[str, float], bounds: Sequence[float]) -> Variable:
        """One-hot of which interval a weighted sum of numerical variables lies in; `bounds` ascend."""
        out = self._new(node, len(bounds) + 1, node, varies=True)
        steep = 4.0 / min([1.0, *np.diff(bounds)])
        up, bias = np.zeros((2 * len(bounds), 500)), np.zeros(2 * len(bounds))
        down, base = np.zeros((500, 2 * len(bounds))), np.zeros(500)
        base[out.dims[0]] = 1.0
        for i, bound in enumerate(bounds):  # relu(a) − relu(a − 1) is a step from 0 to 1
            for name, weight in reads.items():
                up[2 * i : 2 * i + 2, self.variables[name].dims[0]] = steep * weight
            bias[2 * i : 2 * i + 2] = 0.5 - steep * bound, -0.5 - steep * bound
            for sign, j in ((-1.0, i), (1.0, i + 1)):
                down[out.dims[j], 2 * i], down[out.dims[j], 2 * i + 1] = sign, -sign
        self._mlps[node] = up, bias, down, base
        for name in reads:
            self._reads(node, self.variables[name])
        return out

    def map(self, node: str, read: Variable, matrix: Floats) -> Variable:
        """A function of one categorical variable: row i of `matrix` where it is i."""
        out = self._new(node, matrix.shape[1], node, varies=read.varies)
        up, down = np.zeros((len(read.dims), 500)), np.zeros((500, len(read.dims)))
        up[:, read.dims] = np.eye(len(read.dims))
        down[out.dims, :] = matrix.T
        self._mlps[node] = up, np.zeros(len(read.dims)), down, np.zeros(500)
        self._reads(node, read)
        return out

    def either(self, node: str, reads: Sequence[Variable]) -> Variable:
        """Of categorical variables of one size: 1 at each value that at least one of them has."""
        size = len(reads[0].dims)
        out = self._new(node, size, node, varies=any(each.varies for each in reads))
        up, bias = np.zeros((2 * size, 500)), np.zeros(2 * size)
        down = np.zeros((500, 2 * size))
        for i in range(size):  # relu(a + b) − relu(a + b − 1) does not grow beyond 1
            for read in reads:
                up[2 * i : 2 * i + 2, read.dims[i]] = 1.0
            bias[2 * i + 1] = -1.0
            down[out.dims[i], 2 * i : 2 * i + 2] = 1.0, -1.0
        self._mlps[node] = up, bias, down, np.zeros(500)
        for read in reads:
            self._reads(node, read)
        return out

    def compile(self, answer: Variable) -> Compiled:
        """The model whose logits are LOGIT times the answer, one-hot or number, and 0 behind it."""
        self._reads("logits", answer)
        size, n_out = len(answer.dims), max(len(answer.dims), self.n_tokens + 1)
        width, d_head = self._width + SPARE, 1 + max(self.n_tokens, self.n_positions)
        args = ToyArgs(
            "rasp", self.n_tokens + 1, width, self.n_layers, self.n_heads, d_head, self.n_positions
        )
        module, rng = Transformer(args, self.hidden, n_out), np.random.default_rng(self.seed)
        tokens, positions = np.zeros((self.n_tokens + 1, width)), np.zeros((self.n_positions, width))
        tokens[np.arange(self.n_tokens), self.tok.dims] = 1
        tokens[self.n_tokens, self.bos.dims[0]] = 1
        tokens[:, self.one.dims[0]] = 1
        positions[np.arange(self.n_positions), self.pos.dims] = 1
        unembed = np.zeros((n_out, width))
        unembed[np.arange(size), answer.dims] = LOGIT
        weights = {"embed_tokens": tokens, "embed_positions": positions, "lm_head": unembed}
        for name, value in weights.items():
            module[name].weight = mx.array(value.astype(np.float32))
        for layer, block in enumerate(module.layers):
            self._fill_heads(block.self_attn, layer, width, d_head, rng)
            self._fill_mlp(block.mlp, f"L{layer}.mlp", width, rng)
        return Compiled(InterpretableModel(module), frozenset(self.edges), frozenset(self.wired))

    def _fill_heads(
        self, attn: Attention, layer: int, width: int, d_head: int, rng: np.random.Generator
    ) -> None:
        parts = {name: np.zeros((self.n_heads * d_head, width)) for name in "qkv"} | {
            "o": np.zeros((width, self.n_heads * d_head))
        }
        for i in range(self.n_heads):
            first = i * d_head
            idle = [rng.normal(size=(d_head, width)) for _ in "qkv"] + [np.zeros((width, d_head))]
            idle[3][-SPARE:] = rng.normal(size=(SPARE, d_head))
            given = self._heads.get(f"L{layer}.H{i}")
            for name, matrix in zip("qkvo", given or idle, strict=True):
                matrix = (
                    matrix[:, :width] if name != "o" else matrix[[*range(self._width)]] if given else matrix
                )
                if name == "o":
                    parts["o"][: len(matrix), first : first + matrix.shape[1]] = matrix
                else:
                    scale = d_head**0.5 if name == "q" else 1.0
                    parts[name][first : first + len(matrix)] = matrix * scale
        for name, matrix in parts.items():
            attn[f"{name}_proj"].weight = mx.array(matrix.astype(np.float32))

    def _fill_mlp(self, mlp: Mlp, node: str, width: int, rng: np.random.Generator) -> None:
        up, bias = rng.normal(size=(self.hidden, width)), rng.normal(size=self.hidden)
        down, base = np.zeros((width, self.hidden)), np.zeros(width)
        down[-SPARE:] = rng.normal(size=(SPARE, self.hidden))
        if node in self._mlps:
            own_up, own_bias, own_down, own_base = self._mlps[node]
            n = len(own_up)
            up[:n], bias[:n], base[: self._width] = own_up[:, :width], own_bias, own_base[: self._width]
            down[: self._width, :n] = own_down[: self._width]
        for layer, weight, plus in ((mlp.up, up, bias), (mlp.down, down, base)):
            layer.weight, layer.bias = mx.array(weight.astype(np.float32)), mx.array(plus.astype(np.float32))
