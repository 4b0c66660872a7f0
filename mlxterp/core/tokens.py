"""Text to tokens and back, for whichever tokenizer a model comes with; padding with a mask.

A tokenizer is anything with `encode(text)` and `decode(ids)`: mlx-lm's wrapper, `transformers`, `tokenizers`,
or our own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.errors import TokenError

Tokens = np.ndarray[Any, np.dtype[np.int64]]
Prompt = str | Sequence[int] | np.ndarray[Any, Any] | mx.array
REPLACEMENT = "�"  # what a decoder gives for bytes that are no whole character


class TextTokens:
    """One reading of a model's tokenizer."""

    def __init__(self, tokenizer: Any, *, prepend_bos: bool | str | None = None) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = _eos_ids(tokenizer)
        self._plain = {"add_special_tokens": False} if _takes_special_tokens(tokenizer) else {}
        self._chosen = prepend_bos
        bos = getattr(tokenizer, "bos_token_id", None)
        self.bos_id: int | None = None if bos is None else int(bos)
        if isinstance(prepend_bos, str):
            self.bos_id = self.single(prepend_bos)
        if prepend_bos is True and self.bos_id is None:
            raise TokenError(
                "prepend_bos=True: this tokenizer names no token for the beginning of a sequence "
                "(bos_token_id). Give the text of the token to begin with, as in prepend_bos='<s>'."
            )

    @cached_property
    def prepend_bos(self) -> bool:
        """Whether texts begin with `bos_id`: as chosen, else as the tokenizer itself has it."""
        if self._chosen is not None:
            return bool(self._chosen)
        return self.bos_id is not None and self._begins_by_itself

    @cached_property
    def _begins_by_itself(self) -> bool:
        """Whether the tokenizer puts its BOS token in front of a text."""
        bos = getattr(self.tokenizer, "bos_token_id", None)
        return bos is not None and self._ids("")[:1] == [int(bos)]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`, with those a tokenizer adds by itself (beginning of sequence) if `special`.

        One BOS token is in front, or none, as `prepend_bos` says; if the text has it written out, that is it.
        """
        if not special:
            return self._ids(text, special=False)
        ids = self._ids(text)
        if self.bos_id is None:
            return ids
        if self._begins_by_itself:
            ids = ids[1:]
        written = next((i for i, token in enumerate(ids) if token != self.bos_id), len(ids))
        return [self.bos_id] * max(0, int(self.prepend_bos) - written) + ids

    def _ids(self, text: str, *, special: bool = True) -> list[int]:
        given = self._encoder()(text, **({} if special else self._plain))
        # `tokenizers` returns an Encoding, everything else the ids themselves.
        return [int(i) for i in (given if isinstance(given, Sequence) else given.ids)]

    @cached_property
    def _adds_a_space(self) -> bool:
        """Whether "x" alone is the token that " x" is inside a text, as in SentencePiece models."""
        try:
            return self._ids("a a", special=False) == 2 * self._ids("a", special=False)
        except TokenError:  # a vocabulary of words only
            return False

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these tokens, special ones left out if the tokenizer leaves them out."""
        if self.tokenizer is None:
            raise _no_tokenizer()
        return str(self.tokenizer.decode([int(i) for i in ids]))

    def split(self, ids: Sequence[int]) -> list[str]:
        """Each token's own text, leading spaces kept, so that they join to the text."""
        pieces: list[str] = []
        for i, token in enumerate(ids):
            alone = self._shown(token)
            if i and alone and not alone.startswith(" "):
                # Sentencepiece decoders drop the space that begins a text, so a token is read behind its
                # neighbour.
                before = self.decode([ids[i - 1]])
                both = self.decode([ids[i - 1], token])
                grown = both[len(before) :] if both.startswith(before) else ""
                alone = grown if grown and REPLACEMENT not in grown else alone
            pieces.append(alone)
        return pieces

    def _shown(self, token: int) -> str:
        return self.decode([token]) or f"<{token}>"

    def single(self, text: str) -> int:
        """The one token that `text` is.

        Raises:
            TokenError: it is none or several; the message shows the split.
        """
        ids = self.encode(text, special=False)
        if len(ids) != 1 and self._adds_a_space and text[:1] == " ":
            # The space is the one that the tokenizer adds itself: ' Paris' is ▁Paris, not a second space.
            ids = self.encode(text[1:], special=False)
        if len(ids) == 1:
            return ids[0]
        split = "|".join(self.split(ids))
        raise TokenError(
            f"{text!r} is {len(ids)} tokens, not one: {split!r} (ids {ids}). "
            f"Choose a text that is one token; {self._advice(text)}"
        )

    def _advice(self, text: str) -> str:
        if self._adds_a_space:
            return (
                "a leading space changes nothing: this tokenizer puts one in front of every text, so 'Paris' "
                "and ' Paris' are the same token."
            )
        other = self.other_form(text)
        if other is not None:
            return f"{other!r} is one."
        return "a leading space usually matters, as in ' Paris'."

    def other_form(self, text: str) -> str | None:
        """`text` without its leading space, or with one, if that is one token and not what `text` is."""
        if not text.strip() or self._adds_a_space:
            return None
        other = text[1:] if text[0] == " " else f" {text}"
        ids = self.encode(other, special=False)
        return other if len(ids) == 1 and ids != self.encode(text, special=False) else None

    def _encoder(self) -> Any:
        if self.tokenizer is None:
            raise _no_tokenizer()
        return self.tokenizer.encode


def _no_tokenizer() -> TokenError:
    return TokenError(
        "This model was given without a tokenizer, so it has no text. "
        "Pass token ids, or InterpretableModel(module, tokenizer)."
    )


def _takes_special_tokens(tokenizer: Any) -> bool:
    if tokenizer is None:
        return False
    try:
        parameters = inspect.signature(tokenizer.encode).parameters
    except ValueError:  # compiled methods without a signature
        return True
    return "add_special_tokens" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _eos_ids(tokenizer: Any) -> frozenset[int]:
    several = getattr(tokenizer, "eos_token_ids", None)
    one = getattr(tokenizer, "eos_token_id", None)
    return frozenset(several or ()) | (frozenset() if one is None else frozenset([one]))


@dataclass(frozen=True)
class Padded:
    """Rows of unequal length, padded on the right; causal attention never looks there."""

    tokens: Tokens  # [batch, pos]
    lengths: tuple[int, ...]

    @property
    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[batch, pos], True at a row's own tokens."""
        return np.arange(self.tokens.shape[1])[None] < np.array(self.lengths)[:, None]

    @property
    def last(self) -> Tokens:
        """[batch], each row's last own position."""
        return np.array(self.lengths, dtype=np.int64) - 1


def as_rows(ids: Any) -> Tokens:
    """Token ids as [batch, pos]: one row, or rows of one length.

    Raises:
        TokenError: no tokens, or something else than whole numbers.
    """
    array = np.array(ids)
    if not array.size:
        raise TokenError("There are no tokens: an empty text or an empty list. Give at least one token.")
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
        raise TokenError(
            "Token ids are whole numbers, one row or rows of one length; "
            f"given: {array.dtype} of shape {array.shape}."
        )
    return np.atleast_2d(array).astype(np.int64)


def pad(rows: Iterable[Any], pad_id: int = 0) -> Padded:
    """Rows of any length as one batch; the padding's token is never attended to from a row's own tokens."""
    flat = [row for given in rows for row in as_rows(given)]
    if not flat:
        raise TokenError("There is no prompt in the list. Give at least one.")
    lengths = tuple(len(row) for row in flat)
    tokens = np.full((len(flat), max(lengths)), pad_id, dtype=np.int64)
    for i, row in enumerate(flat):
        tokens[i, : len(row)] = row
    return Padded(tokens, lengths)
