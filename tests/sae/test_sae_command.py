"""`python -m mlxterp.sae train`: from a model and files of text to an SAE that can be loaded."""

from __future__ import annotations

import json

import pytest

from mlxterp.datasets import sample_texts
from mlxterp.errors import TooLittleData
from mlxterp.sae import load_sae
from mlxterp.sae.__main__ import main, read_texts, split

WORDS = ("apple", "bird", "book", "bread", "bridge", "cat", "chair", "cloud")


@pytest.mark.filterwarnings("ignore::mlxterp.errors.UnderTrained")
def test_the_command_leaves_an_sae_of_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLXTERP_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts.txt"
    lines = [" ".join(WORDS[(i * j + j) % 8] for j in range(40)) for i in range(120)]
    texts.write_text("\n\n".join(lines))
    out = tmp_path / "sae"
    asked = [
        "train",
        "--model",
        "toy-induction",
        "--at",
        "L0.resid_post",
        "--texts",
        str(texts),
        "--out",
        str(out),
    ]

    code = main(
        [*asked, "--d-sae", "64", "--k", "4", "--learning-rate", "3e-3", "--epochs", "4", "--variant", "topk"]
    )

    sae = load_sae(out)
    assert code == 0
    assert (sae.model, sae.hook_point, sae.d_sae) == ("toy-induction", "L0.resid_post", 64)
    assert sae.metadata["training"]["tokens"] == 114 * 39 * 4
    assert "FVU" in capsys.readouterr().out


def test_too_little_text_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLXTERP_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts.txt"
    texts.write_text("apple bird\n\nbook cat")

    code = main(
        [
            "train",
            "--model",
            "toy-induction",
            "--at",
            "L0.resid_post",
            "--texts",
            str(texts),
            "--out",
            str(tmp_path / "x"),
        ]
    )

    assert code == 1
    assert "TooLittleData" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_texts_are_read_by_lines_of_json_or_by_paragraphs(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps({"text": "one\n\ntwo"}) + "\n" + json.dumps("three") + "\n")
    plain = tmp_path / "b.txt"
    plain.write_text("four\nfive\n\n\nsix\n")
    empty = tmp_path / "c.txt"
    empty.write_text("\n")

    assert read_texts([lines, plain]) == ["one\n\ntwo", "three", "four\nfive", "six"]
    with pytest.raises(TooLittleData, match="No document"):
        read_texts([empty])


def test_held_out_documents_are_never_trained_on():
    train, held = split(sample_texts())

    assert not set(train) & set(held)
    assert len(train) + len(held) == len(sample_texts())
    assert split(sample_texts()) == (train, held)
