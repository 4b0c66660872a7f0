"""Where training activations come from: what counts, shuffled how, kept where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import sample_texts
from mlxterp.errors import SAEError, TooLittleData, UnknownHookPoint
from mlxterp.sae import (
    ArrayActivations,
    SAEConfig,
    StreamedActivations,
    cached_activations,
    train_sae,
)
from mlxterp.sae.texts import texts_digest
from mlxterp.sae.training.source import (
    Cursor,
    ahead,
    batches,
    to_bfloat16_bits,
    widened,
)
from tests.rounding import UNIT

POINT = "L1.resid_post"
ROOT = Path(__file__).resolve().parents[3]


def texts(n: int = 12) -> list[str]:
    return [text.encode("ascii", "ignore").decode()[:90] for text in sample_texts(n)]


def everything(source, *, seed=0, epoch=0):
    return np.concatenate([block[POINT] for block in source.blocks(seed=seed, epoch=epoch)])


def in_order(rows):
    return rows[np.lexsort(rows.T)]


def test_activations_are_the_models_without_first_tokens_and_padding(tiny_llama):
    short, long = "hello", "hello my dear world"

    source = StreamedActivations(tiny_llama, [long, short], POINT)

    trace = tiny_llama.trace([long, short], capture=[POINT])
    expected = [np.array(trace[POINT])[0, 1:], np.array(trace[POINT])[1, 1 : len(short)]]
    assert source.n_tokens == len(long) - 1 + len(short) - 1
    got = in_order(everything(source))
    np.testing.assert_allclose(
        got, in_order(widened(to_bfloat16_bits(np.concatenate(expected)))), rtol=1e-2, atol=1e-3
    )


def test_padding_changes_no_activation(tiny_llama):
    words = ["one two three four", "five", "six seven"]

    together = StreamedActivations(tiny_llama, words, POINT)
    alone = [StreamedActivations(tiny_llama, [word], POINT) for word in words]

    got = np.concatenate([part[POINT] for part in together.forwards(together._rows)])
    assert len(got) == sum(each.n_tokens for each in alone)
    for each in alone:
        for row in each.of_text(0)[POINT]:
            assert np.abs(got - row).max(axis=1).min() < 1e-4  # values up to 15


def test_special_tokens_do_not_count(tiny_llama):
    with_end = [*b"abc", 0, *b"de"]  # 0 is this tokenizer's end of text

    source = StreamedActivations(tiny_llama, [with_end], POINT)

    assert source.n_tokens == 4


def test_a_long_text_becomes_rows_that_each_begin_anew(tiny_llama):
    source = StreamedActivations(tiny_llama, ["abcdefghijkl"], POINT, context=5)

    assert [len(row) for row in source.rows_of_text(0)] == [5, 5, 2]
    assert source.n_tokens == 4 + 4 + 1


def test_tokens_with_an_outlying_norm_are_left_out(tiny_llama):
    everyone = StreamedActivations(tiny_llama, texts(), POINT, outlier=1e9)
    norms = np.linalg.norm(everything(everyone), axis=1)
    limit = float(np.quantile(norms, 0.9) / np.median(norms))

    fewer = StreamedActivations(tiny_llama, texts(), POINT, outlier=limit)

    kept = np.linalg.norm(everything(fewer), axis=1)
    assert len(kept) < len(norms)
    assert kept.max() <= 1.05 * limit * np.median(norms)


def test_epochs_are_the_same_tokens_in_other_orders_and_seeds_repeat(tiny_llama):
    source = StreamedActivations(tiny_llama, texts(), POINT, block_tokens=300)

    first, second = everything(source, epoch=0), everything(source, epoch=1)

    assert not np.array_equal(first, second)
    # In another batch a row may be off by rounding, and then bfloat16 by its last bit: 2⁻⁷ of the value.
    off = np.abs(first[:, None] - second[None]) - 2.0**-7 * np.abs(first[:, None])
    apart = off.max(axis=2) > 32 * UNIT * np.abs(first).max()
    assert len(first) == len(second)
    assert not apart[linear_sum_assignment(apart)].any()
    assert np.array_equal(first, everything(source, epoch=0))
    assert not np.array_equal(first, everything(source, seed=1))


def test_neighbours_in_a_text_are_not_neighbours_in_a_batch():
    """Batch means of a drifting sequence: one after the other they would rise, shuffled they do not."""
    drift = np.linspace(0, 1, 40_000, dtype=np.float32)[:, None].repeat(4, axis=1)
    source = ArrayActivations({POINT: drift}, block_tokens=8192)

    means = np.array([b[POINT].mean() for b, _ in batches(source, 512, seed=0, epochs=1, cursor=Cursor())])

    assert means.std() < 0.1  # 0.29 in order


@pytest.mark.parametrize("stop_after", [1, 3, 4, 7, 11])
def test_batches_go_on_from_any_place_exactly(stop_after):
    x = np.arange(3_000, dtype=np.float32).reshape(1_500, 2)
    source = ArrayActivations({POINT: x}, block_tokens=512)
    whole = list(batches(source, 200, seed=3, epochs=2, cursor=Cursor()))

    rest = list(batches(source, 200, seed=3, epochs=2, cursor=whole[stop_after - 1][1]))

    assert len(whole) == 15
    assert len(rest) == 15 - stop_after
    for (got, _), (expected, _) in zip(rest, whole[stop_after:], strict=True):
        assert np.array_equal(got[POINT], expected[POINT])
    seen = np.concatenate([block[POINT] for block, _ in whole])
    assert np.array_equal(np.sort(seen[:, 0]), np.sort(np.concatenate([x[:, 0]] * 2)))


def test_a_cache_is_written_once_and_read_without_a_forward(tiny_llama, tmp_path, monkeypatch):
    first = cached_activations(tiny_llama, texts(), POINT, path=tmp_path)
    expected = everything(first)
    monkeypatch.setattr(type(tiny_llama), "run", lambda *_, **__: pytest.fail("a forward"))

    again = cached_activations(tiny_llama, texts(), POINT, path=tmp_path)

    assert np.array_equal(everything(again), expected)
    assert [p.name for p in tmp_path.iterdir()] == [first.digest[:24]]


def test_other_texts_places_or_rules_are_another_cache(tiny_llama):
    same = StreamedActivations(tiny_llama, texts(), POINT)
    others = [
        StreamedActivations(tiny_llama, texts(11), POINT),
        StreamedActivations(tiny_llama, texts(), "L0.resid_post"),
        StreamedActivations(tiny_llama, texts(), POINT, context=64),
        StreamedActivations(tiny_llama, texts(), POINT, outlier=5.0),
    ]

    assert len({each.digest for each in [same, *others]}) == 5
    assert StreamedActivations(tiny_llama, texts(), POINT).digest == same.digest


def test_several_places_come_from_one_forward_and_stay_aligned(tiny_llama, monkeypatch):
    runs = []
    plain = type(tiny_llama).run
    monkeypatch.setattr(type(tiny_llama), "run", lambda *a, **k: runs.append(1) or plain(*a, **k))
    places = ("L0.resid_post", "L1.resid_pre", "L1.mlp_out")

    source = StreamedActivations(tiny_llama, texts(), places)
    block = next(iter(source.blocks(seed=0, epoch=0)))

    assert np.array_equal(block["L0.resid_post"], block["L1.resid_pre"])
    assert not np.array_equal(block["L0.resid_post"], block["L1.mlp_out"])
    assert len(runs) == 2  # one to calibrate the norms, one for all texts


def test_a_sample_costs_no_more_than_its_tokens_and_repeats(tiny_llama, monkeypatch):
    source = StreamedActivations(tiny_llama, texts(), POINT, batch_tokens=128)
    source.sample(10, seed=0)  # calibrates the norms
    runs = []
    plain = type(tiny_llama).run
    monkeypatch.setattr(type(tiny_llama), "run", lambda *a, **k: runs.append(1) or plain(*a, **k))

    sample = source.sample(150, seed=3)[POINT]

    assert sample.shape == (150, tiny_llama.d_model)
    assert len(runs) <= 3
    assert np.array_equal(sample, source.sample(150, seed=3)[POINT])
    assert not np.array_equal(sample, source.sample(150, seed=4)[POINT])


def test_bfloat16_rounds_to_nearest():
    x = np.array([1.0, 1.0 + 2**-8, 1.0 + 2**-9, -3.14159, 0.0, 65504.0], dtype=np.float32)

    assert np.array_equal(
        widened(to_bfloat16_bits(x)), np.array(mx.array(x).astype(mx.bfloat16).astype(mx.float32))
    )


def test_an_error_of_a_source_reaches_the_training():
    def broken():
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(ahead(broken()))


def test_what_makes_no_source_is_refused(tiny_llama):
    with pytest.raises(TooLittleData, match="No texts"):
        StreamedActivations(tiny_llama, [], POINT)
    with pytest.raises(TooLittleData, match="without a token that counts"):
        StreamedActivations(tiny_llama, ["a"], POINT)
    with pytest.raises(UnknownHookPoint):
        StreamedActivations(tiny_llama, ["abc"], "L9.resid_post")
    with pytest.raises(SAEError, match="Choose 2 or more"):
        StreamedActivations(tiny_llama, ["abc"], POINT, context=1)
    with pytest.raises(SAEError, match=r"same tokens"):
        ArrayActivations({"L0.z": np.zeros((3, 2)), "L1.z": np.zeros((4, 2))})


def test_the_sample_is_paragraphs_of_prose():
    every = sample_texts()

    assert len(every) == len(set(every)) > 200
    assert min(len(text.split()) for text in every) >= 60
    assert sample_texts(5) == sample_texts(5)
    assert len(sample_texts(5)) == 5
    with pytest.raises(TooLittleData, match="Choose 1 to"):
        sample_texts(10_000)


WRITES = """
import sys
from tests.sae.training.test_activations import written_by_another
written_by_another(sys.argv[1])
"""


def written_by_another(home: str) -> None:
    """What another process runs: it says when it writes, and waits to be killed or told to go on."""

    def progress(_: int, __: int) -> None:
        sys.stdout.write("here\n")
        sys.stdout.flush()
        sys.stdin.readline()

    model = InterpretableModel("toy-induction")
    cached_activations(model, ["sun moon dog"], "L0.resid_post", path=home, progress=progress)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False])
def test_what_a_killed_run_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path, killed):
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    model = InterpretableModel("toy-induction")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout.readline() == "here\n"
            if killed:
                process.kill()
                process.wait()
            cached_activations(model, ["cat fish cat fish"], "L0.resid_post", path=tmp_path)
            left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
            if not killed:
                process.communicate("\n", timeout=120)
                assert process.returncode == 0
        finally:
            process.kill()

    assert len(left) == (0 if killed else 1)
    assert len(list(tmp_path.iterdir())) == (1 if killed else 2)


def test_an_sae_carries_the_digest_of_the_texts_it_was_trained_on(tiny_llama, tmp_path):
    documents = texts()
    cached = cached_activations(tiny_llama, documents, POINT, path=tmp_path)
    config = SAEConfig(d_sae=48, k=3, batch_tokens=16, learning_rate=1e-3)

    sae = train_sae(cached, config, stop=lambda: True).sae

    assert sae.metadata["training"]["source"]["texts_digest"] == texts_digest(documents)
    assert texts_digest(documents) != texts_digest(documents[::-1])
