"""`LogitLensResult`: what each layer would say if it were the last. `mlxterp.causal` measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.views import Component, Floats, Show, Table, heatmap, numbered
from mlxterp.text import number

_READING = "Read from each layer's resid_post with the model's own final norm and unembedding."


@dataclass(frozen=True, eq=False, kw_only=True)
class LogitLensResult(AnalysisResult):
    """The next token as each layer's residual stream already says it, at some positions.

    Attributes:
        answer_probs, answer_logits, answer_ranks: [n_layers, n_positions], of `answer_token`; rank 1 is the
            first choice. The last layer's are the model's own.
        top_tokens: [n_layers][n_positions][k], the likeliest tokens, likeliest first.
        top_probs: [n_layers, n_positions, k], their probabilities.
        answer_token, answer_token_str: whose probability is followed.
        positions: where it was read, as indices into `tokens`.
        tokens: the prompt's tokens.
        lens: which lens read them: "logit lens", or "tuned lens" where translators stand before the norm.
    """

    kind: ClassVar[str] = "logit_lens"
    answer_probs: Floats
    answer_logits: Floats
    answer_ranks: Floats
    top_tokens: tuple[tuple[tuple[str, ...], ...], ...]
    top_probs: Floats
    answer_token: int
    answer_token_str: str
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    lens: str = "logit lens"

    def _check(self) -> None:
        shape = self.answer_probs.shape
        if len(shape) != 2 or shape[1] != len(self.positions):
            raise ResultError(
                f"answer_probs of shape {shape} for {len(self.positions)} positions; it is "
                "[n_layers, n_positions]."
            )
        self._require_shape(("answer_logits", "answer_ranks"), shape, f"answer_probs of shape {shape}")
        texts = {(len(self.top_tokens), len(row), len(cell)) for row in self.top_tokens for cell in row}
        if self.top_probs.shape[:2] != shape or texts != {self.top_probs.shape}:
            raise ResultError(
                f"top_probs of shape {self.top_probs.shape} and top_tokens of {sorted(texts)} for "
                f"answer_probs of {shape}; both are [n_layers, n_positions, k]."
            )

    @property
    def title(self) -> str:
        return f"{self.lens.capitalize()}: {self.answer_token_str!r}"

    def components(self) -> tuple[Component, ...]:
        """Each layer's residual stream at each position, with the answer's probability there."""
        several = len(self.positions) > 1
        return tuple(
            Component(
                f"L{layer} pos {pos} {self.tokens[pos]!r}" if several else f"L{layer}.resid_post",
                prob,
                name="resid_post",
                layer=layer,
                pos=pos,
            )
            for layer, probs in enumerate(self.answer_probs.tolist())
            for pos, prob in zip(self.positions, probs, strict=True)
        )

    def first_layer(self, position: int = -1) -> int | None:
        """The layer from which on the answer stays the first choice; None if it is not so at the end.

        Args:
            position: an index into `positions`.
        """
        # Tied tokens share rank 1, and only one of them is the choice.
        is_first = [
            rank[position] == 1 and said[position][0] == self.answer_token_str
            for rank, said in zip(self.answer_ranks, self.top_tokens, strict=True)
        ]
        if not is_first[-1]:
            return None
        others = [layer for layer, first in enumerate(is_first) if not first]
        return others[-1] + 1 if others else 0

    def summary(self) -> str:
        since = self.first_layer()
        last = f"at position {self.positions[-1]}, {self.tokens[self.positions[-1]]!r}"
        became = (
            f"It is the first choice {last} from the residual stream after layer {since} on."
            if since is not None
            else f"The model's own output {last} ranks it {number(self.answer_ranks[-1, -1])}; its first "
            f"choice is {self.top_tokens[-1][-1][0]!r}."
        )
        return self._with_limits(
            f"{self._headline()}.\n{became}\n"
            f"Its probability in the last layer is {number(self.answer_probs[-1, -1])}."
        )

    def shows(self) -> tuple[Show, ...]:
        answer, layers = repr(self.answer_token_str), numbered("L", len(self.answer_probs))
        drawn = heatmap(
            self.answer_probs.T,
            title=f"Probability of {answer} after each layer",
            rows=("position", tuple(f"{pos} {self.tokens[pos]!r}" for pos in self.positions)),
            columns=("layer", layers),
            unit="probability",
            reading=_READING,
            diverging=False,
        )
        rows = zip(
            layers,
            (" ".join(map(repr, row[-1])) for row in self.top_tokens),
            self.top_probs[:, -1, 0].tolist(),
            self.answer_probs[:, -1].tolist(),
            self.answer_ranks[:, -1].tolist(),
            self.answer_logits[:, -1].tolist(),
            strict=True,
        )
        of_answer = (f"of {answer}", f"rank of {answer}", f"logit of {answer}")
        table = Table(
            title=f"What each layer says at position {self.positions[-1]}",
            columns=("layer", "likeliest tokens", "probability of the first", *of_answer),
            rows=tuple(rows),
            caption=_READING,
        )
        return drawn, table
