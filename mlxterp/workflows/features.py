"""`feature_investigation`: which features of an SAE fire on a text, which of them matter, and what they are.

Lives here: the steps, their order, the sentences made from their results. Does not live here: the analyses
(`mlxterp.sae`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlxterp.causal.prompts.encoding import Prompt, prompt_text, require_model, str_tokens
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Positions
from mlxterp.errors import SAEError, SweepError
from mlxterp.results import (
    ActiveFeaturesResult,
    FeatureEffectsResult,
    FeatureExamplesResult,
    FeatureLabelsResult,
    Step,
    WorkflowResult,
)
from mlxterp.results.feature_effects import LEVEL
from mlxterp.results.features import poor_fit
from mlxterp.sae.analysis.activity import active_features
from mlxterp.sae.analysis.effects import CONTROLS, feature_effects
from mlxterp.sae.analysis.examples import feature_examples
from mlxterp.sae.analysis.interventions import checked_features
from mlxterp.sae.analysis.runs import Runs, prepare
from mlxterp.sae.analysis.texts import Given
from mlxterp.sae.feature_store.build import build_store, same_texts
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE
from mlxterp.text import number, percent
from mlxterp.workflows.narratives import MEANINGS
from mlxterp.workflows.progress import ProgressOption, ProgressReporter
from mlxterp.workflows.question import MetricLike, chosen_steps, metric_choice, require_top_k

if TYPE_CHECKING:
    from mlxterp.llm import Completer

NAME = "feature_investigation"
STEPS = ("active_features", "ablation", "max_examples", "labels")
DEFAULT = STEPS[:3]
_NEED_TEXTS = ("max_examples", "labels")
NAMED = 5
"""Features that a sentence names."""


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
    progress: ProgressOption = None,
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
    require_model(model)
    require_top_k(top_k)
    chosen, cautions = _steps(steps, dataset)
    if layer is not None and layer != sae.layer:
        raise SAEError(
            f"layer={layer}, but this SAE was trained on {sae.hook_point}, layer {sae.layer}. Features mean "
            f"nothing elsewhere: leave layer out, or pass an SAE of layer {layer}."
        )
    wanted = None if features is None else checked_features(sae, features)
    choice = metric_choice(metric, metric_kwargs, answer, foil)
    reporter = ProgressReporter(NAME, progress, verbose=verbose)
    reporter.report(chosen[0], "running the text")
    runs = prepare(model, text, choice.metric, positions=positions, answer=choice.answer, foil=choice.foil)
    active = active_features(model, sae, text, top_k=top_k, positions=positions)
    looked_at = list(active.features) if wanted is None else wanted
    done: list[Step] = []
    if "active_features" in chosen:
        done.append(Step("active_features", active, _fires(active), tuple(_limits_of_fit(active))))
        reporter.counter("active_features", "features")(active.n_active, active.n_active)
    if "ablation" in chosen:
        effects = feature_effects(
            model,
            sae,
            text,
            features=wanted,
            top_k=top_k,
            metric=choice.metric,
            answer=choice.answer,
            foil=choice.foil,
            controls=controls,
            positions=positions,
            seed=seed,
            progress=reporter.counter("ablation", "ablations"),
        )
        looked_at = list(effects.features)
        done.append(Step("ablation", effects, _matters(effects), tuple(_limits_of_effects(effects))))
    if dataset is not None and any(step in chosen for step in _NEED_TEXTS):
        corpus = _Corpus(model, sae, _store(model, sae, dataset, reporter), reporter)
        reporter.ran["passes over the dataset"] = corpus.store.forwards
        if "max_examples" in chosen:
            done.append(corpus.examples(looked_at))
        if "labels" in chosen:
            done.append(corpus.labels(looked_at, llm, seed))
    facts = {"steps": list(chosen), "top_k": top_k, "seed": seed, "ran": reporter.ran}
    return WorkflowResult(
        name=NAME,
        question=_question(model, sae, runs),
        steps=tuple(done),
        conclusion=_conclusion(done),
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
    model: InterpretableModel,
    sae: SAE,
    dataset: Sequence[Prompt] | FeatureStore,
    reporter: ProgressReporter,
) -> FeatureStore:
    if isinstance(dataset, FeatureStore):
        same_texts(dataset, sae)
        return dataset
    return build_store(model, sae, dataset, progress=lambda words: reporter.report("dataset", words))


@dataclass(frozen=True)
class _Corpus:
    """Where features fire in the dataset: no model is run for it."""

    model: InterpretableModel
    sae: SAE
    store: FeatureStore
    reporter: ProgressReporter

    def examples(self, features: Sequence[int]) -> Step:
        found = feature_examples(self.store, features)
        self.reporter.counter("max_examples", "features")(len(features), len(features))
        return Step("max_examples", found, _fire_on(found))

    def labels(self, features: Sequence[int], llm: Literal["auto"] | Completer | None, seed: int) -> Step:
        from mlxterp.auto_interp.api import auto_label_features, labels_result

        labels = auto_label_features(
            self.model,
            self.sae,
            store=self.store,
            feature_ids=features,
            llm=llm,
            seed=seed,
            progress=lambda words: self.reporter.report("labels", words),
        )
        result = labels_result(labels)
        return Step("labels", result, _labelled(result))


def _question(model: InterpretableModel, sae: SAE, runs: Runs) -> str:
    """What is asked, of which model and SAE, on what, and how it is measured."""
    n = len(runs.texts.examples)
    text = prompt_text(model, runs.texts.examples[0].clean)
    said = str_tokens(model, [int(runs.said[0])])[0]
    prob = number(float(runs.said_probs[0]), 2)
    on = f"{text!r}, which {model.name} continues with {said!r} (probability {prob})"
    on = on if n == 1 else f"{n} texts; in the first, {on}"
    return (
        f"Which features of the SAE at {sae.hook_point} fire, and which of them matter to what comes next? "
        f"On {on}. Measured by {runs.metric.name}: {MEANINGS.get(runs.metric.name, runs.metric.direction)}."
    )


def _fires(result: ActiveFeaturesResult) -> str:
    """What fires, where, and how much of the activation that is."""
    counting = result.measured_on.get("positions")
    where = f"at the {result.n_counted} positions that count ({counting})"
    if not result.features:
        return f"No feature fires {where}."
    strongest = ", ".join(
        f"f{f} ({number(a)} at {token!r})"
        for f, a, token in zip(result.features[:NAMED], result.maxima.tolist(), result.at_token, strict=False)
    )
    fit = "" if result.fvu is None else f" The features leave out {percent(result.fvu)} of the variance here."
    return (
        f"{result.n_active:,} of {result.d_sae:,} features fire {where}, {number(result.l0)} at a position. "
        f"Those that write most: {strongest}.{fit}"
    )


def _limits_of_fit(result: ActiveFeaturesResult) -> Iterator[str]:
    """A caution where the SAE leaves much out, and where it sees what it was not trained on."""
    yield from poor_fit(result)
    if sinks := result.measured_on.get("norm_outliers"):
        yield (
            f"At {sinks} of the counted positions the activation is more than ten times as long as the "
            "median: attention sinks, which SAEs are trained without. What fires there is no evidence; "
            "positions= leaves them out."
        )


def _matters(result: FeatureEffectsResult) -> str:
    """Which features do more than random ones of their size; no other is named as important."""
    n, metric = len(result.features), result.metric
    if not n:
        return "No feature fires at a counted position, so there was nothing to ablate."
    if result.all_zero:
        return result.summary().splitlines()[1]
    how = "ablated one at a time with the error kept"
    band, beyond = result.band, result.beyond_controls()
    if band is None:
        return f"{n} features were {how}, and not compared with random ones, so none is called important."
    reach = f"central 95 % of all: {number(band[0])} to {number(band[1])}"
    if not beyond:
        return (
            f"None of {n} features, {how}, changes {metric} more than random features of its size do "
            f"({reach})."
        )
    named = ", ".join(f"f{f} ({number(result.effect(f))})" for f in beyond[:NAMED])
    more = f" and {len(beyond) - NAMED} more" if len(beyond) > NAMED else ""
    verb = "changes" if len(beyond) == 1 else "change"
    return (
        f"{len(beyond)} of {n} features, {how}, {verb} {metric} more than random features of its size do "
        f"(p ≤ {LEVEL:g}; {reach}): {named}{more}."
    )


def _limits_of_effects(result: FeatureEffectsResult) -> Iterator[str]:
    """What limits the ablations: few controls, many tests, one text, intervals that hold 0."""
    tested = int(np.isfinite(result.p_values).sum())
    counts = np.isfinite(result.controls).sum(axis=1)
    if tested and (1 + counts.min()) * LEVEL < 1:
        yield (
            f"Some features were compared with only {int(counts.min())} random ones: too few to say that one "
            f"does more (p ≤ {LEVEL:g} takes 19)."
        )
    if result.inactive_controls:
        yield "Random features that do not fire here are among the controls: too few others do."
    beyond = result.beyond_controls()
    if beyond and tested >= 10:
        yield f"Of {tested} features about {number(LEVEL * tested)} would pass by chance."
    for f in beyond[:NAMED]:
        ci = result.find(f"f{f}").ci
        if ci is not None and ci[0] <= 0 <= ci[1]:
            yield f"The interval of f{f}, {number(ci[0])} to {number(ci[1])}, holds 0."
    if result.per_example is None and result.features:
        yield "One text was looked at: there is no interval, and nothing shows that this holds on others."


def _fire_on(result: FeatureExamplesResult) -> str:
    """What each feature fires on in the corpus."""
    size = f"{result.n_tokens:,} tokens of {result.n_documents:,} texts"
    parts = [_fires_on(result, f) for f in result.features[:NAMED]]
    more = f" (the first {NAMED} of {len(result.features)} features)" if len(result.features) > NAMED else ""
    return f"In {size}: {'; '.join(parts)}{more}." if parts else f"In {size} no feature was looked for."


def _fires_on(result: FeatureExamplesResult, feature: int) -> str:
    own = result.of(feature)
    if not own:
        return f"f{feature} does not fire"
    density = 100 * float(result.densities[result.features.index(feature)])
    tokens = dict.fromkeys(each.tokens[each.peak] for each in own)
    shown = ", ".join(repr(token) for token in list(tokens)[:3])
    return f"f{feature} fires at {number(density, 2)} % of the tokens, most strongly at {shown}"


def _labelled(result: FeatureLabelsResult) -> str:
    """Which features have a label, and how sure it is."""
    named = [f"f{label['feature_id']} {_label(label)}" for label in result.named[:NAMED]]
    if not named:
        return f"None of {len(result.labels)} features has a label that holds on held-out text."
    return f"{len(result.named)} of {len(result.labels)} features have a label: {'; '.join(named)}."


def _label(label: Mapping[str, Any]) -> str:
    return f"{label['label']!r} (confidence {percent(label['confidence'])})"


def _conclusion(steps: Sequence[Step]) -> str:
    """What all steps say together: the features that passed their controls, and what they fire on."""
    effects = next((s.result for s in steps if isinstance(s.result, FeatureEffectsResult)), None)
    if effects is None:
        return ""
    beyond = effects.beyond_controls()
    if not beyond:
        return f"No feature is shown to matter to {effects.metric} here."
    named = [f"f{f} ({number(effects.effect(f))})" for f in beyond[:NAMED]]
    parts = [f"Beyond random features of their size, by change of {effects.metric}: {', '.join(named)}."]
    for result in (step.result for step in steps):
        if isinstance(result, FeatureExamplesResult):
            parts.append(f"{'; '.join(_fires_on(result, f) for f in beyond[:NAMED])}.")
        if isinstance(result, FeatureLabelsResult):
            known = {label["feature_id"]: label for label in result.named}
            parts += [f"f{f} is labelled {_label(known[f])}." for f in beyond[:NAMED] if f in known]
    return " ".join(parts)
