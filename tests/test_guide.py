"""The user's guide, word for word: every block runs, in order, and what each promises is so.

Each promise is compared with a computation of its own: logits, KL, patched runs and activations made here
from the model's plain forwards.
"""

from __future__ import annotations

import ast
import collections
import json
import re
import types
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import save_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mlxterp.causal import PromptPair, activation_patching
from mlxterp.core.interventions import replace
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.texts import sample_texts
from mlxterp.errors import DeprecatedModel, OfflineLabels
from mlxterp.results import AnalysisResult, CircuitResult, PatchingResult, WorkflowResult, markdown
from tests import guide
from tests.auto_interp.judges import FakeJudge, candidate, data_of
from tests.guide import BLOCKS, FEATURE, GUIDE, LAYER
from tests.messages_stub import MessagesStub
from tests.tiny_models import ByteTokenizer

CLEAN, CORRUPTED = "The Eiffel Tower is in", "The Colosseum is in"
LLM = "claude-sonnet-4-20250514"
BY_NAME = {block.name: block for block in BLOCKS}
NODE = re.compile(r"input|logits|L\d+\.(H\d+|KV\d+|mlp)")


# the blocks themselves


def test_every_line_of_code_in_the_guide_is_in_a_block():
    inside = {line for block in BLOCKS for line in range(block.first, block.last + 1)}
    lines = GUIDE.splitlines()
    code = [
        i
        for i, line in enumerate(lines, 1)
        if re.match(r"(from|import) mlxterp|print\(|\w+ = \w+\(|save_report", line)
    ]

    assert [lines[i - 1] for i in code if i not in inside] == []
    assert all(isinstance(ast.parse(block.source), ast.Module) for block in BLOCKS)
    assert [block.first for block in BLOCKS] == sorted(block.first for block in BLOCKS)


def test_what_the_guide_says_of_the_service_is_what_the_library_reads():
    import importlib.metadata

    from mlxterp.auto_interp.api import KEY

    (package,) = re.findall(r"^pip install (\S+)$", GUIDE, re.MULTILINE)
    (variable,) = re.findall(r"^export (\w+)=", GUIDE, re.MULTILINE)
    assert importlib.metadata.version(package)
    assert variable == KEY


def test_every_result_has_what_the_last_table_promises():
    promised = re.findall(r"^result\.(\w+)\(", GUIDE, re.MULTILINE)

    assert promised == ["summary", "to_json", "to_markdown", "plot", "top_components"]
    assert all(callable(getattr(AnalysisResult, name)) for name in promised)


# what must hold after each block


def plain_logits(model, text, *edits) -> np.ndarray:
    return np.array(model.logits(text, interventions=edits).astype(mx.float32))[0, -1].astype(np.float64)


def l2(a, b) -> float:
    return float(np.linalg.norm((a - b) - (a - b).mean()))


def kl(p_logits, q_logits) -> float:
    log_p, log_q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (p_logits, q_logits))
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def same_places(result) -> list[tuple[int, int]]:
    """(clean, corrupted) positions that the result says correspond."""
    stated = result.measured_on["alignment"]
    if stated["kind"] == "strict":
        return []
    return [(int(c), int(x)) for c, x in stated["clean_to_corrupted"]]


def after_behavior_localization(ran, model):
    result, dla = ran.names["result"], ran.names["dla"]
    assert isinstance(result, WorkflowResult)
    assert result.step_names[:4] == ("dla", "patch_mlp", "patch_attn", "patch_heads")
    left_out = any("direct_effects was left out" in each for each in result.cautions)
    assert result.step_names[4:] == (() if left_out else ("direct_effects",))
    clean, corrupted = plain_logits(model, CLEAN), plain_logits(model, CORRUPTED)
    distance = l2(corrupted, clean)
    assert result.measured_on["corrupted_metric"] == pytest.approx(distance, rel=1e-3)

    expected = clean[dla.target_token] - (0 if dla.foil_token is None else clean[dla.foil_token])
    assert dla.total == pytest.approx(expected, abs=2e-3 * max(1, abs(expected)))
    assert dla.target_token == int(clean.argmax())

    for step, component in (("mlp_patch", "mlp_out"), ("attn_patch", "attn_out")):
        patch = ran.names[step]
        assert isinstance(patch, PatchingResult)
        assert (patch.component, patch.effects.shape) == (component, (model.n_layers,))
        layer = int(np.abs(patch.effects).argmax())
        pairs = same_places(patch)
        point = f"L{layer}.{component}"
        source = model.trace(CLEAN, capture=point)[point]
        here = [x for _, x in pairs] or None
        value = source[:, mx.array([c for c, _ in pairs])] if pairs else source
        patched = plain_logits(model, CORRUPTED, replace(point, value, positions=here))
        assert patch.effects[layer] == pytest.approx(1 - l2(patched, clean) / distance, abs=5e-3)
        strongest = patch.top_components(1)[0]
        assert (strongest.layer, strongest.label) == (layer, point)

    assert result.narrative in ran.printed
    assert "Euclidean distance" in result.narrative
    assert result.top_components(1)[0].label in result.summary()
    for step in result.step_names:
        assert f"### {step}: " in ran.printed
    assert bool(same_places(result)) == ("so positions are matched by the 'auto' map" in ran.printed)


def after_circuit_discovery(ran, model):
    result, circuit = ran.names["result"], ran.names["circuit"]
    assert isinstance(circuit, CircuitResult)
    clean, corrupted = plain_logits(model, CLEAN), plain_logits(model, CORRUPTED)
    assert circuit.corrupted_metric == pytest.approx(kl(clean, corrupted), rel=5e-3)
    assert circuit.threshold == 0.01
    assert circuit.edges, "the guide's call finds a circuit"
    assert f"Circuit: {circuit.nodes}" in ran.printed
    assert all(NODE.fullmatch(node) for node in circuit.nodes)
    assert {end for e in circuit.edges for end in (e.sender, e.receiver)} == set(circuit.nodes)
    assert all(edge.effect >= 0.01 for edge in circuit.edges)
    assert "logits" in circuit.nodes
    judged = result.get_step("faithfulness")
    assert judged.faithfulness == pytest.approx(
        1 - circuit.circuit_metric / circuit.corrupted_metric, abs=1e-3
    )
    assert judged.faithfulness > max(judged.of("random")) + 0.05
    searched = circuit.measured_on.get("searched_edges", circuit.n_edges)
    assert (searched < circuit.n_edges) == ("were removed before the search" in result.narrative)


def after_feature_investigation(ran, model):
    result, active, ablation, sae = (ran.names[n] for n in ("result", "active", "ablation", "sae"))
    text = "The capital of France is"
    point = f"L{LAYER}.resid_post"
    acts = np.array(sae.encode(model.trace(text, capture=point)[point]))[0, 1:]
    assert active.n_active == int((acts > 0).any(axis=0).sum())
    np.testing.assert_allclose(
        active.maxima, acts[:, list(active.features)].max(axis=0), rtol=1e-3, atol=1e-4
    )

    assert ablation.metric == "kl"
    assert (ablation.effects >= 0).all()
    feature = ablation.features[int(ablation.effects.argmax())]
    stream = model.trace(text, capture=point)[point]
    changed = np.array(stream.astype(mx.float32))
    changed[0, 1:] -= acts[:, [feature]] * np.array(sae.W_dec)[feature][None]
    patched = plain_logits(model, text, replace(point, mx.array(changed)))
    assert ablation.effects.max() == pytest.approx(kl(plain_logits(model, text), patched), rel=2e-2, abs=1e-5)
    assert result.get_step("max_examples").features == active.features


def after_steps(ran, model):
    result, names = ran.names["result"], ran.names
    assert result.step_names == ("dla", "patch_mlp")
    alone = activation_patching(model, names["clean"], names["corrupted"], component="mlp", align="auto")
    np.testing.assert_allclose(result.get_step("patch_mlp").effects, alone.effects, atol=1e-5)


def after_scaffold(ran, model):
    path = Path(ran.names["path"])
    assert path.name == "my_investigation"
    assert f"Project created at: {ran.names['path']}" in ran.printed
    tree = re.findall(r"^# [├└]── (\S+)", GUIDE, re.MULTILINE)
    assert len(tree) == 6
    assert [name for name in tree if not (path / name).exists()] == []
    assert (path / "findings").is_dir()
    assert "How does this model recall factual associations?" in (path / "program.md").read_text()
    assert "mlx-community/Llama-3.2-1B-Instruct-4bit" in (path / "setup.py").read_text()


def after_programmatic(ran, model):
    names, entry, runner = ran.names, ran.names["entry"], ran.names["runner"]
    alone = activation_patching(model, names["clean"], names["corrupted"], component="mlp")
    logged = AnalysisResult.from_dict(entry.result["analysis"])
    # Not the same bits: the number of BLAS threads follows the load of the machine.
    assert (logged.title, logged.component, logged.metric) == (alone.title, alone.component, alone.metric)
    np.testing.assert_allclose(logged.effects, alone.effects, atol=1e-4)
    assert entry.informative == (abs(alone.top_components(1)[0].effect) > 0.05)
    assert entry.conclusion.startswith("Patching mlp_out by layer")
    assert (runner.n_experiments, runner.is_done) == (1, False)
    assert "Experiments: 1/50\nDone: False" in ran.printed
    assert len(Path("my_experiment/results.jsonl").read_text().splitlines()) == 1


def after_log(ran, model):
    (line,) = Path("results.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert written["result"] == {"layer_5_effect": 0.82, "layer_10_effect": 0.15}
    assert written["duration_seconds"] == 12.5
    entry = ran.names["entry"]
    assert f"[{entry.experiment_id}] Confirmed: layer 5 MLP has 82% recovery effect" in ran.printed


def after_registry(ran, model):
    assert ran.names["fn"] is ran.names["my_logit_diff_fn"]
    assert ran.printed.splitlines() == [
        "  logit_diff: Logit difference recovery",
        "  prob_correct: Probability of correct token",
    ]


def fires_where_it_says(label, model, sae):
    """The strongest example of a label, measured again: the text around the peak, through model and SAE."""
    strongest = max(label.evidence, key=lambda window: max(window.activations))
    point = f"L{LAYER}.resid_post"
    stream = model.trace("".join(strongest.tokens), capture=point)[point]
    return float(np.array(sae.encode(stream))[0, :, label.feature_id].max()) > 0


def after_label(ran, model):
    label, names = ran.names["label"], ran.names
    assert label.feature_id == FEATURE
    assert label.status == "ok"
    assert 0.75 < label.confidence <= 1
    assert label.evidence
    assert fires_where_it_says(label, model, names["sae"])
    assert f"Feature {FEATURE}: {label.label}" in ran.printed
    assert f"Evidence: {len(label.evidence)} examples" in ran.printed
    planted = names["planted"]
    assert planted.strip() in label.label or planted.strip() in label.description


def after_batch(ran, model):
    labels = ran.names["labels"]
    assert 1 <= len(labels) <= 20
    assert len({label.feature_id for label in labels}) == len(labels)
    mass = [label.density * label.mean_activation for label in labels]
    assert mass == sorted(mass, reverse=True)
    assert all(label.density <= 0.1 and 0 <= label.confidence <= 1 for label in labels)
    assert ran.printed.count("%)") >= len(labels)


def after_sensitivity(ran, model):
    label = ran.names["label"]
    assert f"Details: {label.sensitivity_details}" in ran.printed
    if label.method == "llm":
        # The guide gives no reader, and without one a label in words is not tested.
        assert label.sensitivity_passed is None
        assert "Not tested: the label is in words" in label.sensitivity_details
        return
    area, balanced, p = (
        float(re.search(pattern, label.sensitivity_details)[1])
        for pattern in (r"curve [\d.]+ \((\d\.\d+) to", r"balanced accuracy (\d\.\d+)", r"p = (\d\.\d+)")
    )
    assert label.sensitivity_passed is (area > 0.6 and balanced >= 0.75 and p < 0.01)
    assert label.sensitivity_passed, "a rule that was planted holds on other texts"
    assert "PASS" in ran.printed


def after_report(ran, model):
    report, names = ran.names["report"], ran.names
    assert report.startswith("# Complete Investigation")
    assert "# Factual Recall Circuit Analysis" in ran.printed
    assert "recalls the capital of France" in ran.printed
    for kind in ("patching_result", "dla_result", "circuit_result"):
        assert f"## {markdown.escape(names[kind].title)}" in report
    written = Path("report.md").read_text()
    assert written.startswith("# My Analysis")
    linked = re.findall(r"\]\((report_files/\S+\.png)\)", written)
    assert linked
    assert all(Path(figure).read_bytes()[:4] == b"\x89PNG" for figure in linked)


def after_html(ran, model):
    page = Path("report.html").read_text()
    assert "<h1>Investigation Report</h1>" in page
    assert page.count("<svg") >= 2
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page)


def after_workflow_report(ran, model):
    result = ran.names["result"]
    told, _, data = ran.printed.rpartition("\n{")
    assert AnalysisResult.from_json("{" + data) == result
    assert "## Behavior localization" in told
    assert all(f"### {step}" in told for step in result.step_names)


def texts_of(length: int, n: int, start: int) -> list[str]:
    """Pieces of prose, so many characters each."""
    pieces: list[str] = []
    for text in sample_texts():
        plain = re.sub(r"\s+", " ", text.encode("ascii", "ignore").decode())
        pieces += [plain[i : i + length] for i in range(0, min(len(plain), 2 * length) - length + 1, length)]
    return pieces[start : start + n]


def run_all(model, directory, monkeypatch, *, pair, length=100, n=60, service=None):
    """Every block in order, each looked at as soon as it has run."""
    monkeypatch.chdir(directory)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    texts, validation = texts_of(length, n, 0), texts_of(length, n, n)
    names = guide.filled_in(model, pair, texts, validation)
    names["planted"] = planted_token(model, names["sae"], texts)
    if service is not None:
        monkeypatch.setenv("MLXTERP_CACHE", str(directory / "cache"))
        monkeypatch.setenv("ANTHROPIC_API_KEY", service.key)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", service.url)
    for block in BLOCKS:
        if block.name == "label":  # the guide's model has reached its end of life, or nobody can be asked
            with pytest.warns(OfflineLabels if service is None else DeprecatedModel, match=LLM):
                ran = guide.run(block, names)
        else:
            ran = guide.run(block, names)
        globals()[f"after_{block.name}"](ran, model)
    return names


def planted_token(model, sae, texts) -> str:
    """The token on which feature 42 fires most often."""
    point, fired = f"L{LAYER}.resid_post", collections.Counter()
    for text in texts[:20]:
        acts = np.array(sae.encode(model.trace(text, capture=point)[point]))[0, :, FEATURE]
        tokens = model.to_str_tokens(text)
        fired.update(tokens[i] for i in np.flatnonzero(acts > 0) if i)
    return fired.most_common(1)[0][0]


def test_every_block_has_a_check():
    assert [name for name in BY_NAME if f"after_{name}" not in globals()] == []


@pytest.mark.usefixtures("pinned_threads")  # an analysis of the guide equals one made by hand, bit for bit
def test_the_guide_runs_as_written(tmp_path, monkeypatch):
    """On a random llama of eleven layers, with prompts of different lengths; labels are made offline."""
    sizes = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = InterpretableModel(guide.guide_module(1.0, **sizes), ByteTokenizer())

    run_all(model, tmp_path, monkeypatch, pair=PromptPair(CLEAN, "The Brooklyn Zoo is in"))


class JudgeOverHttp(FakeJudge):
    """The Messages API in front of a judge that labels by the token that is marked most often."""

    def __call__(self, request):
        question = types.SimpleNamespace(system=request.system, user=request.last_user)
        marked = re.findall(r"<<(.*?)>>", json.dumps(data_of(question), ensure_ascii=False))
        if marked:
            ((word, _),) = collections.Counter(m.strip() for m in marked).most_common(1)
            self.candidates = [candidate(word)]
        # The instructions are read from the service's cache, as they are there.
        return {"text": self._answer(question), "usage": {"cache_read_input_tokens": 1500}}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_guide_runs_as_written_on_smollm2_with_a_language_model(tmp_path, monkeypatch):
    model = InterpretableModel("smollm2-135m")
    judge = JudgeOverHttp()

    with MessagesStub({"lanes": [{"name": "all", "then": {"call": judge}}]}) as service:
        names = run_all(
            model,
            tmp_path,
            monkeypatch,
            pair=PromptPair(CLEAN, CORRUPTED),
            length=180,
            n=300,
            service=service,
        )

    asked = [request.body["model"] for request in service.requests]
    assert asked[0] == LLM
    assert names["labels"][0].method == "llm"
    heads = [c.label for c in names["result"].top_components(5)]
    assert "L23.H4" in heads, "found by patching in docs and benchmarks too"


@pytest.fixture(scope="module")
def four_bit_directory(tmp_path_factory) -> Path:
    """A directory as mlx-community's 4-bit Llama-3.2: quantised in groups of 64, tied, a tokenizer.json that
    begins each text with a special token."""
    from mlx_lm.utils import save_model

    folder = tmp_path_factory.mktemp("Llama-3.2-1B-Instruct-4bit")
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|begin_of_text|>", "<|eot_id|>", *characters]
    sizes = {
        "hidden_size": 64,
        "head_dim": 32,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(words),
    }
    module = guide.guide_module(0.1, damping=0.2, tied=True, **sizes)
    quantization = {"group_size": 64, "bits": 4}
    nn.quantize(module, **quantization)
    save_model(folder, module)
    config = {**vars(module.args), "model_type": "llama", "quantization": quantization}
    save_config({k: v for k, v in config.items() if v is not None}, config_path=folder / "config.json")
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|eot_id|>",
            }
        )
    )
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mlxterp.errors.SlowWeights")
@pytest.mark.parametrize("quantized", [False, True], ids=["by default", "as stored"])
def test_the_guide_runs_as_written_on_a_directory_of_the_guides_own_format(
    four_bit_directory, tmp_path, monkeypatch, quantized
):
    model = InterpretableModel(str(four_bit_directory), quantized=quantized)
    stored = any(path.endswith("scales") for path, _ in tree_flatten(model.model.parameters()))
    assert stored or not quantized  # by default the weights are float32 where there is no GPU
    assert model.to_tokens("a").tolist()[0][0] == 0  # the special token that begins a text

    run_all(model, tmp_path, monkeypatch, pair=PromptPair(CLEAN, "The Brooklyn Zoo is in"))
