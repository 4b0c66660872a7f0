"""The judge's process: sealed bytes in, one JSON result out, the same every time; refusals by kind."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from mlxterp.autointerpret import Hypothesis, InterventionClaim
from mlxterp.remeasure import measure
from mlxterp.remeasure.job import ERROR_KINDS, JobError, import_instrument, read_job, run_job
from mlxterp.worlds import toy_induction

SETUP = """
print("setup.py speaks")
from mlxterp.autointerpret import MetricRegistry
from mlxterp.metrics import logit_diff
from mlxterp.worlds import toy_induction

world = toy_induction(4)
model, dataset = world.model, list(world.pairs)
candidates = world.candidates
metrics = MetricRegistry()
metrics.register("logit_diff", logit_diff)

def confirm_pairs(n, seed):
    return list(toy_induction(n, seed).pairs)
"""


def _claim(site=("L1.H1",), **more):
    return Hypothesis(
        **{
            "id": "H1",
            "claim": "It copies.",
            "site": list(site),
            "intervention": InterventionClaim("patch"),
            "metric": "logit_diff",
            "direction": "increase",
            "sesoi": 0.1,
            "forecast": {"supported": 0.5, "refuted": 0.2, "ruled_out": 0.3},
            "rivals": ["Any head does."],
            "falsified_if": "below 0.1",
            **more,
        }
    ).to_dict()


@pytest.fixture
def job(tmp_path):
    """Makes a job about a setup.py of this text."""

    def make(setup=SETUP, **changes):
        path = tmp_path / "sealed.py"
        path.write_text(setup)
        given = {
            "setup": str(path),
            "sha256": hashlib.sha256(setup.encode()).hexdigest(),
            "claims": [_claim()],
            "pairs": {"dataset": [0, 2]},
            "measure": ["claim"],
            "metric": "logit_diff",
            **changes,
        }
        return json.dumps(given)

    return make


def _run(text, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "mlxterp.remeasure"],
        input=text,
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for each in results:
        assert each.pop("process")["peak_mb"] > 1
    return done.returncode, results[0] if len(results) == 1 else results, done.stderr


def test_two_processes_give_the_same_bits_and_nothing_else_on_standard_output(job, tmp_path):
    (tmp_path / "metrics_of_mine.py").write_text("raise SystemExit('the project was imported')")
    text = job(measure=["gate", "claim", "placebos", "replay"], twin_seed=0, seed=4)

    runs = [_run(text, tmp_path) for _ in range(2)]

    assert [code for code, _, _ in runs] == [0, 0]
    assert runs[0][1] == runs[1][1]
    assert "setup.py speaks" in runs[0][2]
    (claim,) = runs[0][1]["claims"]
    assert claim["replay"]["sha256"] == claim["measurement"]["sha256"]
    assert len(claim["placebos"]["sets"]) == 7
    assert runs[0][1]["gate"]["pairs"]["answer_rank"] == [1, 1]
    assert runs[0][1]["twin_gate"]["pairs"]["clean"] != runs[0][1]["gate"]["pairs"]["clean"]


def test_the_first_and_the_tenth_job_of_a_process_have_the_bits_of_a_fresh_one(job, tmp_path):
    drawing = SETUP.replace("toy_induction(n, seed)", "toy_induction(n, int(np.random.randint(99)))")
    setup = "import numpy as np\n" + drawing
    fresh = {"pairs": {"confirm": {"n": 8, "seed": 3, "clusters": [0, 8]}}}
    asked = job(SETUP, measure=["claim", "placebos"], seed=7, **fresh)
    others = [
        job(SETUP, claims=[_claim(site)], measure=["gate", "claim", "placebos"], twin_seed=0, seed=i)
        for i, site in enumerate([("L1.H0",), ("L0.H2",), ("L0.H2", "L1.H1"), ("L1.H3",)])
    ]

    code, results, _ = _run("\n".join([asked, *others, *others, asked]), tmp_path)
    _, alone, _ = _run(asked, tmp_path)

    assert (code, len(results)) == (0, 10)
    assert results[0] == results[9] == alone
    with pytest.raises(JobError, match="gave other pairs the second time"):
        run_job(read_job(job(setup, **fresh)))


def test_a_process_ends_with_the_first_job_that_fails_and_measures_one_setup_only(job, tmp_path):
    fine, other = job(), job().replace("logit_diff", "bleu")

    code, results, _ = _run("\n".join([fine, other, fine]), tmp_path)

    assert code == 1
    assert len(results) == 2
    assert results[1]["error"]["kind"] == "bad_claim"
    instrument = import_instrument(read_job(fine))
    with pytest.raises(JobError, match="Start another process"):
        run_job(read_job(job(SETUP + "# another\n")), instrument)


def test_setup_finds_no_job_on_standard_input(job, tmp_path):
    code, result, _ = _run(job("import sys\nassert sys.stdin.read() == ''\n" + SETUP), tmp_path)

    assert code == 0
    assert result["claims"]


def test_a_process_measures_what_the_library_measures(job, tmp_path):
    _, result, _ = _run(job(), tmp_path)

    world = toy_induction(4)
    pairs = [world.pairs[0], world.pairs[2]]
    expected = measure(world.model, _claim(), pairs, "logit_diff")
    assert result["claims"][0]["measurement"]["patched"] == expected.patched.tolist()
    assert [pair["clean"] for pair in result["pairs"]] == [pair.clean for pair in pairs]
    assert result["pairs"][0]["cluster"] == "repetition 0"


def test_a_project_file_that_setup_imports_is_not_found(job, tmp_path):
    (tmp_path / "helper_of_mine.py").write_text("x = 1")

    code, result, _ = _run(job(SETUP + "\nimport helper_of_mine\n"), tmp_path)

    assert code == 1
    assert result["error"]["kind"] == "setup_failed"
    assert "helper_of_mine" in result["error"]["message"]


def test_fresh_and_held_out_pairs_are_measured_like_those_of_the_dataset(job):
    fresh = run_job(read_job(job(pairs={"confirm": {"n": 3, "seed": 9}})))
    items = [{k: v for k, v in pair.items() if v is not None} for pair in fresh["pairs"]]
    items[1]["slice"] = "long"

    held_out = run_job(read_job(job(pairs={"heldout": items})))

    assert len(items) == 3
    assert held_out["claims"] == fresh["claims"]
    assert [pair.pop("slice") for pair in held_out["pairs"]] == [None, "long", None]
    assert held_out["pairs"] == [{k: v for k, v in pair.items() if k != "slice"} for pair in fresh["pairs"]]


def test_a_set_a_comparison_and_a_role_bring_their_own_numbers(job):
    claims = [
        _claim(["L0.H2", "L1.H1"]),
        _claim(more_than="other heads of the layer"),
        _claim(role="induction head", intervention=None, metric=""),
    ]

    together, more, role = run_job(read_job(job(claims=claims)))["claims"]

    assert np.shape(together["drop_one"]["patched"]) == (2, 2)
    assert np.shape(more["other_heads"]["patched"]) == (3, 2)
    assert role["measurement"] is None
    assert np.shape(role["role"]["masses"]) == (24, 1)


def test_a_result_is_strict_json_with_numbers_that_are_not_finite_as_texts(job):
    poisoned = SETUP.replace(
        'metrics.register("logit_diff", logit_diff)',
        'metrics.register("logit_diff", lambda logits: logits[:, 0] * float("nan"))',
    )

    result = run_job(read_job(job(poisoned, measure=["claim", "placebos"])))

    json.dumps(result, allow_nan=False)
    assert result["claims"][0]["measurement"]["patched"] == ["NaN", "NaN"]
    assert result["claims"][0]["placebos"]["patched"][0] == ["NaN", "NaN"]


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"sha256": "0" * 64}, "setup_changed", "Nothing was run"),
        ({"setup": "raise ValueError('no weights')"}, "setup_failed", "ValueError: no weights"),
        ({"setup": "raise SystemExit(3)"}, "setup_failed", "SystemExit"),
        ({"setup": "model = 'smollm2'"}, "setup_failed", "Define an InterpretableModel"),
        (
            {
                "setup": SETUP.replace("def confirm_pairs", "def other"),
                "pairs": {"confirm": {"n": 1, "seed": 1}},
            },
            "setup_failed",
            "no `confirm_pairs",
        ),
        ({"claims": [_claim(metric="bleu")]}, "bad_claim", "no metric 'bleu'"),
        ({"claims": [_claim() | {"sesoi": 0.12}]}, "bad_claim", "Write one of 0.05"),
        ({"claims": [3]}, "bad_claim", "a claim is 3"),
        ({"claims": [_claim(["L7.H1"])]}, "bad_claim", "layers 0 to 1"),
        ({"pairs": {"dataset": [99]}}, "bad_job", "setup.dataset has 4 pairs"),
        ({"pairs": {"heldout": [{"clean": "a"}]}}, "bad_job", "Give clean and corrupted"),
        ({"pairs": {"confirm": {"n": 3}}}, "bad_job", "pairs.confirm is"),
        (
            {
                "setup": SETUP.replace("return list(toy_induction(n, seed).pairs)", "raise KeyError(n)"),
                "pairs": {"confirm": {"n": 1, "seed": 1}},
            },
            "cannot_measure",
            "KeyError: 1",
        ),
        ({"pairs": {}}, "bad_job", "Name one of: dataset, confirm, heldout"),
        ({"measure": ["everything"]}, "bad_job", "List some of: gate, claim"),
        ({"measure": ["claim"], "claims": []}, "bad_job", "there is no claim"),
        ({"seed": -1}, "bad_job", "a whole number, 0 or more"),
        ({"hurry": 1}, "bad_job", "unknown fields"),
    ],
)
def test_a_job_that_cannot_be_done_says_why_by_kind(job, changes, kind, says):
    assert kind in ERROR_KINDS
    with pytest.raises(JobError) as refused:
        run_job(read_job(job(**changes)))

    assert refused.value.kind == kind
    assert says in str(refused.value)


def test_what_is_no_json_is_refused_as_a_job(tmp_path):
    code, result, _ = _run("{", tmp_path)

    assert code == 1
    assert result["error"]["kind"] == "bad_job"
