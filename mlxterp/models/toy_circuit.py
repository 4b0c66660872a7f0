"""The weights of `toy-induction`, written by hand, and the circuit they are.

The model continues repeated sequences: after `sun river dog sun` comes `river`. Head L0.H2 copies each
token's predecessor into the residual stream, head L1.H1 looks for the position whose predecessor is the
current token and copies what stands there (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"; Olsson et al. 2022, "In-context Learning and Induction Heads"). The six other heads attend
somewhere and write where nothing reads.

The residual stream is five subspaces side by side, each basis vector with one meaning:

    tok    the word at this position
    prev   the word before it              written by L0.H2, read by the keys of L1.H1
    out    the word that comes next        written by L1.H1, read by the unembedding
    pos    the position modulo 3, 5, 7 and 8, each as a one-hot; and a flag at position 0
    spare  written by the other heads, read by nothing

`weights/` holds what `save()` writes: the weights, and `truth()` beside them. Here are numbers only, no mlx:
the module that computes with them is in `toy.py`.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int8 = NDArray[np.int8]

_WORDS = """
apple bird book bread bridge cat chair cloud coat corn dog door fish fire flag garden glass horse house island
king lake leaf moon mouse paper queen rain river road salt ship snow star stone storm sun tree wind wolf
"""
WORDS = tuple(_WORDS.split())
N_CTX = 96
N_LAYERS, N_HEADS, D_HEAD, D_MODEL = 2, 4, 40, 160
MODULI = (3, 5, 7, 8)  # two positions less than 105 apart agree in at most two of them

TOK, PREV, OUT = (slice(i * len(WORDS), (i + 1) * len(WORDS)) for i in range(3))
POS = slice(OUT.stop, OUT.stop + sum(MODULI))
FIRST = POS.stop
SPARE = slice(FIRST + 1, D_MODEL)

# Query weights: large enough that attention leaks less than 0.1 % at 96 positions, small enough that softmax
# has a gradient: the right position's score is about 12.6 above the next best.
SHARP_POSITION, SHARP_TOKEN, LOGIT = 40, 80, 10

WEIGHTS = "toy_induction.safetensors"
TRUTH = "toy_induction.json"


def truth() -> dict[str, Any]:
    """The circuit as it was built: the planted heads, the edges between them, what every other head does."""
    return {
        "model": "toy-induction",
        "behaviour": "after a word that occurred before, predict the word that followed it",
        "previous_token_head": "L0.H2",
        "induction_head": "L1.H1",
        "edges": [
            {"from": "embed", "to": "L0.H2.v", "carries": "token"},
            {"from": "L0.H2", "to": "L1.H1.k", "carries": "token"},
            {"from": "embed", "to": "L1.H1.q", "carries": "token"},
            {"from": "embed", "to": "L1.H1.v", "carries": "token"},
            {"from": "L1.H1", "to": "logits", "carries": "token"},
            {"from": "embed", "to": "L0.H2.q", "carries": "position"},
            {"from": "embed", "to": "L0.H2.k", "carries": "position"},
            {"from": "embed", "to": "L1.H1.k", "carries": "position"},
        ],
        "distractors": {
            "L0.H0": "attends to the current position",
            "L0.H1": "attends to the same word",
            "L0.H3": "attends to position 0",
            "L1.H0": "attends two positions back",
            "L1.H2": "attends to the same word",
            "L1.H3": "attends where the word before is the same",
        },
        "subspaces": {
            name: [part.start, part.stop]
            for name, part in (("tok", TOK), ("prev", PREV), ("out", OUT), ("spare", SPARE))
        }
        | {"pos": [POS.start, FIRST + 1]},
        "n_ctx": N_CTX,
        "words": list(WORDS),
    }


def build() -> dict[str, Int8]:
    """Every weight of the model by its name: small whole numbers, so that nothing is lost in storing them."""
    words, spare = len(WORDS), SPARE.stop - SPARE.start
    zeros = np.zeros((D_MODEL, D_MODEL), dtype=np.int8)
    weights = {
        f"model.layers.{layer}.self_attn.{name}_proj.weight": zeros.copy()
        for layer in range(N_LAYERS)
        for name in "qkvo"
    }

    def head(label: str, *, q: Int8, k: Int8, v: Int8, o: Int8) -> None:
        layer, index = (int(digits) for digits in re.findall(r"\d+", label))
        rows = slice(index * D_HEAD, (index + 1) * D_HEAD)
        prefix = f"model.layers.{layer}.self_attn"
        for name, matrix in (("q", q), ("k", k), ("v", v)):
            weights[f"{prefix}.{name}_proj.weight"][rows] = matrix
        weights[f"{prefix}.o_proj.weight"][:, rows] = o

    tok, prev = _read(TOK), _read(PREV)
    here, back_1, back_2 = (_positions(back) for back in (0, 1, 2))
    is_first = _read(slice(FIRST, FIRST + 1))
    always = np.zeros_like(tok)
    always[0, POS.start : POS.start + MODULI[0]] = 1  # one of the three is 1 at every position
    not_first = prev.copy()
    not_first[:words, FIRST] = -1  # position 0 has no predecessor, and L0.H2 has to write something there

    def mixed(read: Int8, step: int) -> Int8:
        """Values in as many dimensions as `spare` has: word w in dimension (step · w) mod their number."""
        hashed = np.zeros_like(read)
        for word in range(words):
            hashed[step * word % spare] += read[word]
        return hashed

    head("L0.H2", q=SHARP_POSITION * back_1, k=here, v=tok, o=_write(PREV))
    head("L1.H1", q=SHARP_TOKEN * tok, k=not_first, v=tok, o=_write(OUT))

    nowhere = _write(SPARE)
    head("L0.H0", q=SHARP_POSITION * here, k=here, v=mixed(tok, 1), o=nowhere)
    head("L0.H1", q=SHARP_TOKEN * tok, k=tok, v=mixed(tok, 3), o=-nowhere)
    head("L0.H3", q=SHARP_TOKEN * always, k=is_first, v=mixed(tok, 5), o=nowhere)
    head("L1.H0", q=SHARP_POSITION * back_2, k=here, v=mixed(prev, 7), o=nowhere)
    head("L1.H2", q=SHARP_TOKEN * tok, k=tok, v=mixed(tok, 9), o=nowhere)
    head("L1.H3", q=SHARP_TOKEN * prev, k=prev, v=mixed(tok, 11), o=-nowhere)

    embed_tokens = np.zeros((words, D_MODEL), dtype=np.int8)
    embed_tokens[:, TOK] = np.eye(words)
    embed_positions = np.zeros((N_CTX, D_MODEL), dtype=np.int8)
    for position in range(N_CTX):
        embed_positions[position, [_residue(m, position) for m in MODULI]] = 1
    embed_positions[0, FIRST] = 1
    lm_head = np.zeros((words, D_MODEL), dtype=np.int8)
    lm_head[:, OUT] = LOGIT * np.eye(words)
    return weights | {
        "model.embed_tokens.weight": embed_tokens,
        "model.embed_positions.weight": embed_positions,
        "lm_head.weight": lm_head,
    }


def save(directory: Path) -> None:
    """Write the weights and the true circuit, as they ship.

    The format is safetensors, written here so that the bytes depend on nothing but the weights.
    """
    header: dict[str, Any] = {}
    data = b""
    for name, value in sorted(build().items()):
        end = len(data) + value.nbytes
        header[name] = {"dtype": "I8", "shape": list(value.shape), "data_offsets": [len(data), end]}
        data += value.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)
    (directory / TRUTH).write_text(json.dumps(truth(), indent=2) + "\n", encoding="utf-8")


def _residue(modulus: int, position: int) -> int:
    """The dimension of the residual stream that is 1 where the position has this residue."""
    return POS.start + sum(m for m in MODULI if m < modulus) + position % modulus


def _read(part: slice) -> Int8:
    """[d_head, d_model]: a head's dimension i is the subspace's i."""
    matrix = np.zeros((D_HEAD, D_MODEL), dtype=np.int8)
    matrix[: part.stop - part.start, part] = np.eye(part.stop - part.start)
    return matrix


def _write(part: slice) -> Int8:
    """[d_model, d_head]: the subspace's dimension i is the head's i."""
    matrix: Int8 = _read(part).T
    return matrix


def _positions(back: int) -> Int8:
    """[d_head, d_model]: reads this position's residues, shifted to those `back` positions before."""
    matrix = np.zeros((D_HEAD, D_MODEL), dtype=np.int8)
    for modulus in MODULI:
        for residue in range(modulus):
            matrix[_residue(modulus, residue - back) - POS.start, _residue(modulus, residue)] = 1
    return matrix
