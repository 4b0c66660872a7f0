"""Conversations: chat templates, the position of each turn among the tokens, patching by turn.

Also contains generations as results. See `core/generate.py` for generating and
`causal/patching/activation_patching.py` for patching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mlxterp.causal.patching.activation_patching import activation_patching
from mlxterp.causal.patching.sites import Direction
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import facts_of, require_model, str_tokens
from mlxterp.causal.prompts.pair import PromptPair, prepare
from mlxterp.core.generate import Generation
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import TextTokens
from mlxterp.errors import PromptPairError, TokenError
from mlxterp.metrics import Metric, MetricFunction
from mlxterp.models.tokenizer import GgufTokenizer
from mlxterp.results import GenerationResult, TurnPatchingResult

Message: TypeAlias = Mapping[str, str]
"""`{"role": "user", "content": "Where is the Louvre?"}`."""


@dataclass(frozen=True)
class Turn:
    """One message's content in the token sequence.

    Attributes:
        role: "system", "user", "assistant" …
        start, stop: the first token that holds any of the content, and one past the last.
        text: the content as the prompt holds it.
    """

    role: str
    start: int
    stop: int
    text: str

    @property
    def positions(self) -> tuple[int, ...]:
        """For `positions=` of an analysis or an intervention."""
        return tuple(range(self.start, self.stop))


def chat(
    model: InterpretableModel,
    messages: Sequence[Message],
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
) -> tuple[int, ...]:
    """Token ids of a conversation, for anything that takes a prompt: `model.generate(chat(model, messages))`.

    Args:
        messages: each with "role" and "content".
        template: a chat template in Jinja, as tokenizers hold them; by default the tokenizer's own. It sees
            `messages`, `add_generation_prompt`, `bos_token` and `eos_token`.
        add_generation_prompt: end with the header of an assistant message.

    Raises:
        TokenError: a message without role or content; a tokenizer without a template, and none given.
    """
    text = _render(model, _check_messages(messages), template, answer=add_generation_prompt)
    return tuple(TextTokens(model.tokenizer).encode(text, special=False))


def turns(
    model: InterpretableModel,
    messages: Sequence[Message],
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
) -> tuple[Turn, ...]:
    """The position of each message's content among the tokens of `chat` with the same arguments.

    Text that the template adds (role names, its own system prompt) belongs to no turn. A token that
    holds the end of one and the beginning of another belongs to both.

    Raises:
        TokenError: as `chat`; or the template changes contents beyond trimming them, or the tokens do not
            decode to the text, so that no position is known.
    """
    given = _check_messages(messages)
    text = _render(model, given, template, answer=add_generation_prompt)
    # A private-use character cannot be in a template, so the text between the marks is the template's own.
    marks = [f"\ue000{i}\ue001" for i in range(len(given))]
    marked = [{**message, "content": mark} for message, mark in zip(given, marks, strict=True)]
    frame = _render(model, marked, template, answer=add_generation_prompt)
    found: list[tuple[int, str]] = []
    place, rest = 0, frame
    for message, mark in zip(given, marks, strict=True):
        before, there, rest = rest.partition(mark)
        content = message["content"]
        place += len(before)
        here = next((c for c in (content, content.strip()) if text.startswith(c, place)), None)
        if not there or here is None or text[place - len(before) : place] != before:
            raise _unknown_position(model, content)
        found.append((place, here))
        place += len(here)
    if text[place:] != rest:
        raise _unknown_position(model, given[-1]["content"])
    tokens = TextTokens(model.tokenizer)
    ids = tokens.encode(text, special=False)
    if tokens.decode(ids) != text:
        raise TokenError(
            f"{model.name}: the tokens of this conversation do not decode to its text, so the positions "
            "of its turns are not known. Give positions yourself."
        )
    return tuple(
        _locate_turn(tokens, ids, text, message["role"], (start, start + len(content)))
        for message, (start, content) in zip(given, found, strict=True)
    )


def turn_patching(
    model: InterpretableModel,
    clean: Sequence[Message],
    corrupted: Sequence[Message],
    *,
    component: str = "resid_pre",
    metric: str | MetricFunction | Metric | None = None,
    answer: str | int | None = None,
    foil: str | int | None = None,
    direction: Direction = "denoising",
    align: Align = "strict",
    template: str | None = None,
    layers: Sequence[int] | None = None,
) -> TurnPatchingResult:
    """The effect of patching each turn: `component` at all tokens of the turn's content together, by layer.

    Args:
        clean, corrupted: two conversations of the same roles. The turns are those of the patched one: the
            corrupted one, or with direction="noising" the clean one.
        template: see `chat`. The rest as in `activation_patching`.

    Costs both runs once, and a row per layer and turn that differs or follows a difference.

    Returns:
        effects [n_layers, n_turns].

    Raises:
        PromptPairError: the two conversations have different roles. And what `activation_patching` and
            `turns` raise.
    """
    require_model(model)
    roles = [[message.get("role") for message in messages] for messages in (clean, corrupted)]
    if roles[0] != roles[1]:
        raise PromptPairError(
            f"the turns of clean are {roles[0]}, those of corrupted {roles[1]}, so they don't correspond. "
            "Give two conversations of the same roles."
        )
    located = turns(model, corrupted if direction == "denoising" else clean, template=template)
    pair = PromptPair(
        chat(model, clean, template=template), chat(model, corrupted, template=template), answer, foil
    )
    prepared = prepare(model, pair, metric, align=align)
    each = [
        activation_patching(
            model,
            prepared,
            component=component,
            by="layer",
            direction=direction,
            layers=layers,
            positions=turn.positions,
        )
        for turn in located
    ]
    first = each[0]
    return TurnPatchingResult(
        effects=np.stack([result.effects for result in each], axis=1),
        roles=tuple(turn.role for turn in located),
        texts=tuple(turn.text for turn in located),
        spans=tuple((turn.start, turn.stop) for turn in located),
        layers=first.indices_of("layer"),
        component=first.component,
        direction=direction,
        metric=first.metric,
        clean_metric=first.clean_metric,
        corrupted_metric=first.corrupted_metric,
        measured_on=first.measured_on,
    )


def generation_result(model: InterpretableModel, generation: Generation, **settings: Any) -> GenerationResult:
    """A generation of `model.generate` as a result: for reports, plots and JSON.

    Args:
        settings: the generation settings (temperature, seed …), recorded in the result.
    """
    return GenerationResult(
        prompt="".join(str_tokens(model, generation.prompt_tokens)),
        text=generation.text,
        prompt_tokens=generation.prompt_tokens,
        tokens=generation.tokens,
        token_texts=tuple(str_tokens(model, generation.tokens)) if generation.tokens else (),
        logprobs=np.array(generation.logprobs, dtype=np.float64),
        stopped=generation.stopped,
        measured_on=facts_of(model) | ({"settings": settings} if settings else {}),
    )


def _check_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    if not messages:
        raise TokenError("the conversation has no messages. Give at least one, with 'role' and 'content'.")
    for message in messages:
        if not (isinstance(message.get("role"), str) and isinstance(message.get("content"), str)):
            raise TokenError(
                f"a message is {dict(message)!r}. Each has a 'role' and a 'content', both of them text."
            )
    return [dict(message) for message in messages]


def _render(
    model: InterpretableModel, messages: Sequence[Message], template: str | None, *, answer: bool
) -> str:
    tokenizer: Any = model.tokenizer
    if template is not None:
        return _render_template(tokenizer, messages, template, answer=answer)
    if getattr(tokenizer, "chat_template", None) is None:  # transformers' and ours have it, perhaps as None
        raise TokenError(
            f"{model.name}'s tokenizer has no chat template, so how it was trained on conversations is not "
            "known. Give one with template=, or write the prompt as plain text."
        )
    if isinstance(tokenizer, GgufTokenizer):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=answer)
    rendered = tokenizer.apply_chat_template(list(messages), add_generation_prompt=answer, tokenize=False)
    return str(rendered)


def _render_template(tokenizer: Any, messages: Sequence[Message], template: str, *, answer: bool) -> str:
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    special = {name: _special_token_text(tokenizer, name) for name in ("bos_token", "eos_token")}
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=answer, **special
        )
    except TemplateError as problem:
        raise TokenError(f"this chat template cannot be rendered: {problem}. Correct template=.") from problem


def _special_token_text(tokenizer: Any, name: str) -> str:
    """A special token's text: transformers' tokenizers hold the text, ours the id; "" if there is none."""
    text = getattr(tokenizer, name, None)
    if isinstance(text, str):
        return text
    token = getattr(tokenizer, f"{name}_id", None)
    return "" if token is None else str(tokenizer.decode([token]))


def _unknown_position(model: InterpretableModel, content: str) -> TokenError:
    return TokenError(
        f"{model.name}: the chat template changes {content[:60]!r} beyond trimming it, so its position "
        "among the tokens is not known. Give positions yourself."
    )


def _locate_turn(tokens: TextTokens, ids: Sequence[int], text: str, role: str, span: tuple[int, int]) -> Turn:
    """The turn whose content is this span of characters; a character may span several tokens."""
    start, stop = span
    if start == stop:
        empty = _find_smallest(len(ids), lambda n: len(tokens.decode(ids[:n])) >= start)
        return Turn(role, empty, empty, "")
    first = _find_smallest(len(ids), lambda n: len(tokens.decode(ids[:n])) > start) - 1
    last = _find_smallest(len(ids), lambda n: tokens.decode(ids[:n])[:stop] == text[:stop])
    return Turn(role, first, last, text[start:stop])


def _find_smallest(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest number up to `most` for which `holds` is true; `holds` must be monotone."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
