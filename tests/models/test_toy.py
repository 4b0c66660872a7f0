"""`toy-induction` does induction, by the two heads that its truth names and by nothing else."""

from __future__ import annotations

import json
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.core.architecture import attention
from mlxterp.errors import TokenError
from mlxterp.models import toy, toy_circuit
from mlxterp.models.attention import scaled_dot_product_attention
from mlxterp.models.mlx_lm_classes import model_module

TRUTH = json.loads((toy.weights_file().parent / toy_circuit.TRUTH).read_text(encoding="utf-8"))
HEADS = [(layer, head) for layer in range(toy_circuit.N_LAYERS) for head in range(toy_circuit.N_HEADS)]
PLANTED = {(0, 2), (1, 1)}


class Repeated(NamedTuple):
    """A sequence that repeats a random block, and what comes next where that is determined, else -1."""

    tokens: np.ndarray
    answers: np.ndarray


def repeated(seed: int) -> Repeated:
    rng = np.random.default_rng(seed)
    offset, period = rng.integers(0, 20), rng.integers(2, 30)
    length = int(rng.integers(offset + 2 * period, toy_circuit.N_CTX + 1))
    start = rng.integers(0, len(toy_circuit.WORDS), offset)
    block = rng.integers(0, len(toy_circuit.WORDS), period)
    tokens = np.concatenate([start, np.tile(block, length // period + 1)])[:length]
    answers = np.full(length, -1)
    for pos, token in enumerate(tokens):
        followers = {tokens[before + 1] for before in range(pos) if tokens[before] == token}
        if len(followers) == 1:
            answers[pos] = followers.pop()
    return Repeated(tokens, answers)


def accuracy(model: toy.Model) -> float:
    right, determined = 0, 0
    for seed in range(40):
        tokens, answers = repeated(seed)
        guesses = np.array(mx.argmax(model(mx.array(tokens[None])), axis=-1))[0]
        known = answers >= 0
        right += int((guesses[known] == answers[known]).sum())
        determined += int(known.sum())
    return right / determined


def without(*heads: tuple[int, int]) -> toy.Model:
    """The model with these heads' outputs at zero."""
    model = toy.load().module
    for layer, head in heads:
        projection = model.layers[layer].self_attn.o_proj
        columns = mx.arange(projection.weight.shape[1]) // toy_circuit.D_HEAD
        projection.weight = mx.where(columns[None] == head, 0.0, projection.weight)
    return model


@pytest.fixture
def patterns(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The attention probabilities [n_heads, dest, src] of each layer, as the model runs."""
    seen: list[np.ndarray] = []

    def recording(queries, keys, values, cache=None, *, scale, mask):
        seen.append(np.array(attention.pattern(queries, keys, scale=scale, mask=mask))[0])
        return scaled_dot_product_attention(queries, keys, values, cache, scale=scale, mask=mask)

    monkeypatch.setattr(toy, "scaled_dot_product_attention", recording)
    return seen


def test_it_continues_sequences_of_any_period_and_offset():
    assert accuracy(toy.load().module) == 1.0


@pytest.mark.parametrize("head", sorted(PLANTED))
def test_without_either_planted_head_it_does_not(head: tuple[int, int]):
    assert accuracy(without(head)) < 0.2


def test_without_all_the_other_heads_it_does_and_gives_the_same_logits():
    tokens = mx.array(repeated(3).tokens[None])
    only_planted = without(*set(HEADS) - PLANTED)

    assert accuracy(only_planted) == 1.0
    assert mx.allclose(only_planted(tokens), toy.load().module(tokens), atol=1e-5)


def test_it_is_sure_of_what_it_predicts():
    tokens, answers = repeated(7)
    probabilities = np.array(mx.softmax(toy.load().module(mx.array(tokens[None])), axis=-1))[0]
    known = np.flatnonzero(answers >= 0)

    assert probabilities[known, answers[known]].min() > 0.99


def test_the_truth_names_the_planted_heads():
    assert (TRUTH["previous_token_head"], TRUTH["induction_head"]) == ("L0.H2", "L1.H1")


def test_the_previous_token_head_attends_to_the_token_before(patterns: list[np.ndarray]):
    toy.load().module(mx.arange(toy_circuit.N_CTX)[None] % 40)

    assert np.diagonal(patterns[0][2], offset=-1).min() > 0.999


def test_the_induction_head_attends_to_what_followed_last_time(patterns: list[np.ndarray]):
    block = np.random.default_rng(0).permutation(40)[:13]
    toy.load().module(mx.array(np.tile(block, 2)[None]))

    assert np.diagonal(patterns[1][1], offset=-12)[1:].min() > 0.999


@pytest.mark.parametrize(("layer", "head"), sorted(set(HEADS) - PLANTED))
def test_a_distractor_attends_somewhere_in_particular_but_writes_where_nothing_reads(
    patterns: list[np.ndarray], layer: int, head: int
):
    model = toy.load().module
    tokens = np.tile(np.random.default_rng(1).permutation(40)[:9], 3)
    model(mx.array(tokens[None]))
    columns = slice(head * toy_circuit.D_HEAD, (head + 1) * toy_circuit.D_HEAD)
    written = np.abs(np.array(model.layers[layer].self_attn.o_proj.weight)[:, columns]).sum(axis=1)

    assert patterns[layer][head][-1].max() > 0.3
    assert set(np.flatnonzero(written)) == set(range(*TRUTH["subspaces"]["spare"]))


def test_nothing_reads_the_spare_dimensions():
    spare = slice(*TRUTH["subspaces"]["spare"])
    weights = toy_circuit.build()
    readers = [name for name in weights if any(p in name for p in ("q_proj", "k_proj", "v_proj", "lm_head"))]

    assert len(readers) == 7
    assert [name for name in readers if weights[name][:, spare].any()] == []


def test_each_token_edge_of_the_truth_matters_and_each_position_edge_exists():
    reads = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
    subspaces = {"token": ("tok", "prev"), "position": ("pos",)}

    for edge in TRUTH["edges"]:
        if edge["to"] == "logits":
            continue
        layer, head, part = edge["to"].split(".")
        model = toy.load().module
        projection = getattr(model.layers[int(layer[1:])].self_attn, reads[part])
        rows = mx.arange(160)[:, None] // toy_circuit.D_HEAD == int(head[1:])
        columns = np.zeros(160, dtype=bool)
        for name in subspaces[edge["carries"]]:
            columns[slice(*TRUTH["subspaces"][name])] = True
        cut = mx.where(rows & mx.array(columns)[None], 0.0, projection.weight)
        assert not mx.array_equal(cut, projection.weight), edge
        projection.weight = cut

        assert accuracy(model) < 1.0, edge


def test_the_shipped_files_are_what_the_builder_writes(tmp_path):
    toy_circuit.save(tmp_path)

    for name in (toy_circuit.WEIGHTS, toy_circuit.TRUTH):
        assert (tmp_path / name).read_bytes() == (toy.weights_file().parent / name).read_bytes()


def test_the_weights_are_small_enough_to_ship():
    assert toy.weights_file().stat().st_size < 300_000


def test_loading_gives_the_builders_numbers():
    model = toy.load().module
    built = toy_circuit.build()

    assert np.array_equal(model.lm_head.weight, built["lm_head.weight"])
    assert np.array_equal(
        model.layers[1].self_attn.k_proj.weight, built["model.layers.1.self_attn.k_proj.weight"]
    )


def test_a_run_with_a_cache_equals_a_run_without():
    model = toy.load().module
    tokens = mx.array(repeated(5).tokens[None])
    cache = model_module("cache").make_prompt_cache(model)

    steps = [
        model(tokens[:, :10], cache),
        *(model(tokens[:, i : i + 1], cache) for i in range(10, tokens.shape[1])),
    ]

    assert mx.allclose(mx.concatenate(steps, axis=1), model(tokens), atol=1e-4)


def test_too_many_tokens_are_refused():
    with pytest.raises(TokenError, match="97 tokens are too many: this model has 96 positions"):
        toy.load().module(mx.zeros((1, 97), dtype=mx.int32))


def test_a_leading_space_changes_nothing():
    tokenizer = toy.load().tokenizer

    assert tokenizer.encode(" cat") == tokenizer.encode("cat")
    assert len(tokenizer.encode(" cat")) == 1


def test_every_word_comes_back_from_its_token():
    tokenizer = toy.load().tokenizer
    text = " ".join(tokenizer.words)

    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(set(tokenizer.words)) == tokenizer.vocab_size == 40


def test_an_unknown_word_is_refused_and_some_known_ones_are_named():
    with pytest.raises(
        TokenError, match=r"'Paris' is not one of the 40 words of toy-induction\. Use .* apple"
    ):
        toy.load().tokenizer.encode("cat Paris")


def test_a_token_that_does_not_exist_is_refused():
    with pytest.raises(TokenError, match="no token 40: ids run from 0 to 39"):
        toy.load().tokenizer.decode([40])
