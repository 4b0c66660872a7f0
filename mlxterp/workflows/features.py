"""`feature_investigation`: which features of an SAE fire on a text, which of them matter, and what they are.

Lives here: the steps and their order. Does not live here: the analyses (`mlxterp.sae`), the words
(`telling_features.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mlxterp.causal.prompts.encoding import Prompt
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Positions
from mlxterp.errors import SAEError, SweepError
from mlxterp.results import Step, WorkflowResult
from mlxterp.sae.analysis.activity import active_features
from mlxterp.sae.analysis.effects import CONTROLS, feature_effects
from mlxterp.sae.analysis.examples import feature_examples
from mlxterp.sae.analysis.interventions import checked_features
from mlxterp.sae.analysis.runs import prepare
from mlxterp.sae.analysis.texts import Given
from mlxterp.sae.feature_store.build import build_store, same_texts
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE
from mlxterp.workflows import telling_features as telling
from mlxterp.workflows.progress import progress_of
from mlxterp.workflows.request import (
    MetricLike,
    Progress,
    ProgressReporter,
    chosen_steps,
    top,
    with_arguments,
)

if TYPE_CHECKING:
    from mlxterp.llm import Completer

NAME = "feature_investigation"
STEPS = ("active_features", "ablation", "max_examples", "labels")
DEFAULT = STEPS[:3]
_NEED_TEXTS = ("max_examples", "labels")


def feature_investigation(
    model: InterpretableModel,
    sae: SAE,
    text: Given,
    *,
    layer: int | None = None,
    dataset: Sequence[Prompt] | FeatureStore | None = None,
    features: Sequence[int] | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    steps: Sequence[str] | None = None,
    metric: MetricLike = None,
    metric_kwargs: Mapping[str, Any] | None = None,
    top_k: int = 10,
    controls: int = CONTROLS,
    positions: Positions = None,
    llm: Literal["auto"] | Completer | None = None,
    seed: int = 0,
    verbose: bool = False,
    progress: Progress | None = None,
) -> WorkflowResult:
    """Which features fire on a text, what ablating each does, and what they fire on elsewhere.

        active_features  the `top_k` features that write most on the text
        ablation         each of them taken out, the error kept, beside random features of the same size
        max_examples     where in `dataset` they fire most; by default only if there is one
        labels           what they stand for, by `auto_label_features` on `dataset`; not by default

    Args:
        text: a text or token ids, several, or PromptPairs (`feature_effects` says what these change).
        layer: the SAE's own; another one is refused, so that no SAE is used where it was not trained.
        dataset: texts, read in one pass for all features; or the store of such a pass (`build_store`).
        features: which to look at; by default the `top_k` that write most on the text.
        steps: some of the names above.
        metric, answer, foil: as for `feature_effects`: "kl" from the unchanged run without an answer.
        metric_kwargs: further arguments of a function given as metric; of a named one, answer and foil.
        controls: random features that each ablated one is compared with.
        positions: which count; by default all but the first.
        llm: who writes the labels: None for executable rules, else as for `auto_label_features`.
        seed: of the random features, of intervals, and of the labels' split of the dataset.
        verbose: say on stderr how far it is. progress: called with StepProgress instead.

    Costs a few forwards of the text, features × (1 + controls) rows from the SAE's layer on, and one pass
    over the dataset, as deep as the SAE.

    Returns:
        a WorkflowResult. Its narrative calls a feature important only if its effect is beyond its controls.

    Raises:
        SweepError: an unknown step, listing them; one that needs a dataset, asked for without.
        StoreError: a dataset without texts, or a store of another SAE.
        SAEError: another layer than the SAE's, a feature that does not exist, an SAE of another width.
        MetricError: an unknown metric, or arguments it lacks.
    """
    chosen, cautions = _steps(steps, dataset)
    if layer is not None and layer != sae.layer:
        raise SAEError(
            f"layer={layer}, but this SAE was trained on {sae.hook_point}, layer {sae.layer}. Features mean "
            f"nothing elsewhere: leave layer out, or pass an SAE of layer {layer}."
        )
    wanted = None if features is None else checked_features(sae, features)
    own_metric, targets = with_arguments(metric, metric_kwargs, {"answer": answer, "foil": foil})
    right, wrong = targets["answer"], targets["foil"]
    teller = ProgressReporter(NAME, progress_of(progress, verbose=verbose))
    teller.says(chosen[0], "running the text")
    runs = prepare(model, text, own_metric, positions=positions, answer=right, foil=wrong)
    active = active_features(model, sae, text, top_k=top(top_k), positions=positions)
    looked_at = list(active.features) if wanted is None else wanted
    done: list[Step] = []
    if "active_features" in chosen:
        done.append(Step("active_features", active, telling.fires(active), telling.limits_of_fit(active)))
        teller.counting("active_features", "features")(active.n_active, active.n_active)
    if "ablation" in chosen:
        effects = feature_effects(
            model,
            sae,
            text,
            features=wanted,
            top_k=top_k,
            metric=own_metric,
            answer=right,
            foil=wrong,
            controls=controls,
            positions=positions,
            seed=seed,
            progress=teller.counting("ablation", "ablations"),
        )
        looked_at = list(effects.features)
        done.append(Step("ablation", effects, telling.matters(effects), telling.limits(effects)))
    if dataset is not None and any(step in chosen for step in _NEED_TEXTS):
        store = _store(model, sae, dataset, teller)
        teller.ran["passes over the dataset"] = store.forwards
        done += _elsewhere(model, sae, store, looked_at, chosen, teller, llm, seed)
    facts = {"steps": list(chosen), "top_k": top_k, "seed": seed, "ran": teller.ran}
    return WorkflowResult(
        name=NAME,
        question=telling.question(model, sae, runs),
        steps=tuple(done),
        conclusion=telling.conclusion(done),
        cautions=cautions,
        components_from=("ablation",) if "ablation" in chosen else (),
        measured_on=runs.measured_on(model, sae) | facts,
    )


def _steps(steps: Sequence[str] | None, dataset: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The steps to run, and what to say of those that were left out."""
    chosen = chosen_steps(NAME, steps, STEPS, DEFAULT)
    without = [step for step in chosen if step in _NEED_TEXTS and dataset is None]
    if not without:
        return chosen, ()
    if steps is not None:
        raise SweepError(
            f"{NAME} was asked for {without[0]!r} and given no texts to look in. Pass dataset=, a list of "
            "texts or a FeatureStore, or leave the step out."
        )
    left = tuple(step for step in chosen if step not in without)
    return left, (
        "max_examples was left out: no dataset was given, so what the features fire on elsewhere is not "
        "known. Pass dataset=, a list of texts.",
    )


def _store(
    model: InterpretableModel, sae: SAE, dataset: Sequence[Prompt] | FeatureStore, teller: ProgressReporter
) -> FeatureStore:
    if isinstance(dataset, FeatureStore):
        same_texts(dataset, sae)
        return dataset
    return build_store(model, sae, dataset, progress=lambda words: teller.says("dataset", words))


def _elsewhere(
    model: InterpretableModel,
    sae: SAE,
    store: FeatureStore,
    features: Sequence[int],
    steps: Sequence[str],
    teller: ProgressReporter,
    llm: Literal["auto"] | Completer | None,
    seed: int,
) -> list[Step]:
    """What the features do in the corpus: no model is run for it."""
    done: list[Step] = []
    if "max_examples" in steps:
        examples = feature_examples(store, features)
        teller.counting("max_examples", "features")(len(features), len(features))
        done.append(Step("max_examples", examples, telling.found(examples)))
    if "labels" in steps:
        from mlxterp.auto_interp.api import auto_label_features, labels_result

        labels = auto_label_features(
            model,
            sae,
            store=store,
            feature_ids=features,
            llm=llm,
            seed=seed,
            progress=lambda words: teller.says("labels", words),
        )
        result = labels_result(labels)
        done.append(Step("labels", result, telling.labelled(result)))
    return done
