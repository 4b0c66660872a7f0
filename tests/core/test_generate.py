import mlx.core as mx
import numpy as np
import pytest

from mlxterp.core import interventions as iv
from mlxterp.core.generate import Sampling
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import HookError, InterventionNotFired, NotFinite, TokenError
from tests.tiny_models import ByteTokenizer, tiny_module

TEXT = "The cat sat"
PROBS = mx.log(mx.array([0.2, 0.4, 0.1, 0.3]))  # tokens 1, 3, 0, 2 by likelihood


def step(model, tokens: list[int], logprobs: list[float], edits) -> None:
    """Adds the likeliest next token, from a run of everything."""
    last = model.logits(tokens, interventions=edits)[0, -1]
    tokens.append(int(mx.argmax(last).item()))
    logprobs.append(float((mx.max(last) - mx.logsumexp(last)).item()))


def allowed(sampling: Sampling, logits: mx.array = PROBS) -> set[int]:
    return {int(i) for i in np.flatnonzero(np.isfinite(np.array(sampling.truncated(logits))))}


@pytest.mark.parametrize(
    ("top_p", "tokens"), [(0.3, {1}), (0.4, {1}), (0.6, {1, 3}), (0.75, {0, 1, 3}), (1.0, {0, 1, 2, 3})]
)
def test_a_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, tokens):
    assert allowed(Sampling(1.0, top_p=top_p)) == tokens


def test_a_nucleus_of_a_sure_model_is_its_one_token():
    assert allowed(Sampling(1.0, top_p=0.5), mx.log(mx.array([0.9, 0.05, 0.03, 0.02]))) == {0}


@pytest.mark.parametrize(("top_k", "tokens"), [(1, {1}), (2, {1, 3}), (9, {0, 1, 2, 3})])
def test_top_k_keeps_the_k_likeliest(top_k, tokens):
    assert allowed(Sampling(1.0, top_k=top_k)) == tokens


def test_the_nucleus_is_taken_of_what_top_k_leaves():
    assert allowed(Sampling(1.0, top_k=2, top_p=0.6)) == {1, 3}
    assert allowed(Sampling(1.0, top_k=2, top_p=0.55)) == {1}


def test_what_truncation_leaves_keeps_its_own_logit():
    left = np.array(Sampling(1.0, top_p=0.6).truncated(PROBS))

    np.testing.assert_allclose(left[[1, 3]], np.array(PROBS)[[1, 3]])


def test_sampling_follows_the_probabilities_at_the_temperature():
    keys = mx.random.split(mx.random.key(0), 4000)
    drawn = [int(Sampling(0.5).choose(PROBS, key).item()) for key in keys]

    sharpened = np.exp(np.array(PROBS) / 0.5)
    np.testing.assert_allclose(np.bincount(drawn) / 4000, sharpened / sharpened.sum(), atol=0.03)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1.0},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.5},
        {"top_p": 0.9},
        {"top_k": 3},
    ],
)
def test_a_sampling_that_means_nothing_is_an_error(setting):
    with pytest.raises(TokenError):
        Sampling(**setting)


def test_greedy_takes_the_likeliest_token_and_reports_its_log_probability(tiny_llama):
    made = tiny_llama.generate(TEXT, max_new_tokens=1)

    last = tiny_llama.logits(TEXT)[0, -1]
    assert made.tokens == (int(mx.argmax(last).item()),)
    assert made.logprobs[0] == pytest.approx(float((mx.max(last) - mx.logsumexp(last)).item()), abs=1e-5)


def test_a_seed_repeats_its_sample_and_another_draws_another(tiny_llama):
    one, again, other = (
        tiny_llama.generate(TEXT, max_new_tokens=12, temperature=1.5, seed=s, stop_at_end=False).tokens
        for s in (1, 1, 2)
    )

    assert one == again != other


def test_an_end_of_sequence_token_ends_the_text(tiny_llama):
    end = ByteTokenizer.eos_token_id
    row = mx.zeros(128).at[end].add(1e6)

    ended = tiny_llama.generate(TEXT, max_new_tokens=5, interventions=[iv.add("logits", row)])
    held = tiny_llama.generate(
        TEXT, max_new_tokens=5, interventions=[iv.add("logits", row)], stop_at_end=False
    )

    assert (ended.tokens, ended.stopped, ended.text) == ((end,), "end", "")
    assert (held.tokens, held.stopped) == ((end,) * 5, "length")


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gemma2"])
@pytest.mark.parametrize(
    "positions", [2, -1, 12, slice(12, None), None], ids=["prompt", "end", "new", "from there on", "all"]
)
def test_an_edit_by_absolute_position_is_the_same_with_and_without_a_cache(family, positions):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    edits = [iv.scale("L0.mlp_out", 3.0, positions=positions), iv.zero("L1.z", heads=1, positions=positions)]

    made = model.generate(TEXT, max_new_tokens=4, interventions=edits, stop_at_end=False)

    fixed = len(TEXT) - 1 if positions == -1 else positions
    tokens, logprobs = model.to_tokens(TEXT)[0].tolist(), []
    for _ in range(4):
        late = isinstance(fixed, int) and fixed >= len(tokens)
        late = late or (isinstance(fixed, slice) and fixed.start >= len(tokens))
        now = [
            iv.scale("L0.mlp_out", 3.0, positions=fixed),
            iv.zero("L1.z", heads=1, positions=fixed),
        ]
        step(model, tokens, logprobs, () if late else now)
    assert list(made.tokens) == tokens[-4:]
    np.testing.assert_allclose(made.logprobs, logprobs, atol=1e-4)


@pytest.mark.parametrize("name", ["k", "v", "q", "pattern"])
def test_attention_is_edited_in_a_cached_step_as_in_a_whole_run(tiny_llama, name):
    edits = [iv.scale(f"L1.{name}", 0.2, positions=12)]

    made = tiny_llama.generate(TEXT, max_new_tokens=5, interventions=edits, stop_at_end=False)

    tokens, logprobs = tiny_llama.to_tokens(TEXT)[0].tolist(), []
    for _ in range(5):
        step(tiny_llama, tokens, logprobs, edits if len(tokens) > 12 else ())
    assert list(made.tokens) == tokens[-5:]
    np.testing.assert_allclose(made.logprobs, logprobs, atol=1e-4)


@pytest.mark.parametrize("position", [15, 40, -12])
def test_a_position_that_is_never_computed_is_an_error(tiny_llama, position):
    with pytest.raises(HookError, match="positions 0 to 12"):
        tiny_llama.generate(TEXT, max_new_tokens=3, interventions=[iv.zero("L0.z", positions=position)])


def test_an_edit_that_a_short_answer_never_reaches_raises(tiny_llama):
    end = iv.add("logits", mx.zeros(128).at[0].add(1e6))

    with pytest.raises(InterventionNotFired, match="positions were reached"):
        tiny_llama.generate(TEXT, max_new_tokens=9, interventions=[end, iv.zero("L0.z", positions=13)])


def test_noise_differs_from_step_to_step(tiny_llama):
    seen = []
    noise = iv.noise("L1.mlp_out", 1.0, key=mx.random.key(0))
    before = iv.edit("L1.mlp_out", mx.zeros_like)
    after = iv.edit("L1.mlp_out", lambda x: seen.append(x) or x)

    tiny_llama.generate(TEXT, max_new_tokens=3, interventions=[before, noise, after], stop_at_end=False)

    assert not mx.array_equal(seen[1], seen[2])


def test_logits_that_are_no_numbers_end_the_text_with_an_error():
    module = tiny_module("llama")
    weight = np.array(module.lm_head.weight)
    weight[7] = np.nan
    module.lm_head.weight = mx.array(weight)
    model = InterpretableModel(module, ByteTokenizer(), verify=False)

    with pytest.raises(NotFinite, match="the logits behind 2 tokens are NaN"):
        model.generate([3, 4], max_new_tokens=2)


def test_fewer_than_no_new_tokens_are_refused(tiny_llama):
    with pytest.raises(TokenError, match="max_new_tokens is -1"):
        tiny_llama.generate([3, 4], max_new_tokens=-1)
    assert tiny_llama.generate([3, 4], max_new_tokens=0).tokens == ()


def test_the_text_is_that_of_the_new_tokens(tiny_llama):
    made = tiny_llama.generate(TEXT, max_new_tokens=4, stop_at_end=False)

    assert made.text == bytes(made.tokens).decode()
    assert made.prompt_tokens == tuple(TEXT.encode())


def test_the_activations_at_generated_tokens_are_those_of_a_trace_of_prompt_and_continuation(tiny_llama):
    seen = []
    keep = iv.edit("L1.z", lambda x: (seen.append(np.array(x)), x)[1])
    found = tiny_llama.generate([5, 9, 17, 33], max_new_tokens=3, stop_at_end=False, interventions=[keep])

    trace = tiny_llama.trace([*found.prompt_tokens, *found.tokens[:-1]], capture=["L1.z"])

    assert np.allclose(np.concatenate(seen, axis=1), np.array(trace["L1.z"]), atol=1e-5)


def test_several_prompts_are_refused_with_the_loop_that_generates_each(tiny_llama):
    with pytest.raises(TokenError, match=r"\[model\.generate\(prompt\) for prompt in prompts\]"):
        tiny_llama.generate(["a", "b"])
