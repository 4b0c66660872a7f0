"""A tokenizer read from the metadata of a GGUF file, and its directory form that other tools read too.

Byte-level BPE only (`tokenizer.ggml.model` = "gpt2"). What a text is split into before the merges is a name
in the file; the names known here are those of `PRE_TOKENIZERS`, and another one is refused rather than
guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlxterp.errors import TokenError, UnsupportedArchitecture

CONTROL, USER_DEFINED = 3, 4  # token types of the GGUF format that are never split


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": _byte_level,
    # SmolLM: every digit is a token of its own.
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()]),
}


class GgufTokenizer:
    """Text to token ids and back."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        eos_token_id: int | None = None,
        bos_token_id: int | None = None,
        add_bos: bool = False,
        chat_template: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id = bos_token_id
        self.add_bos = add_bos
        self.chat_template = chat_template

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; `add_special_tokens` puts the beginning-of-sequence token first if the model has one."""
        ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if add_special_tokens and self.add_bos and self.bos_token_id is not None:
            return [self.bos_token_id, *ids]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these tokens, special ones written out."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def id_to_token(self, token_id: int) -> str:
        """The vocabulary's own spelling, with Ġ for a leading space."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            raise TokenError(f"There is no token {token_id}: ids run from 0 to {self.vocab_size - 1}.")
        return str(token)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the text this model was trained on.

        Raises:
            TokenError: the model has no chat template.
        """
        if self.chat_template is None:
            raise TokenError("This model has no chat template. Write the prompt as plain text.")
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
            self.chat_template
        )
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt)

    def save(self, directory: Path) -> None:
        """`tokenizer.json` and `tokenizer_config.json`, as `transformers` and mlx-lm read them."""
        self._tokenizer.save(str(directory / "tokenizer.json"))
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.add_bos,
            "clean_up_tokenization_spaces": False,
        }
        for name, token_id in (("eos_token", self.eos_token_id), ("bos_token", self.bos_token_id)):
            if token_id is not None:
                config[name] = self.id_to_token(token_id)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")

    @staticmethod
    def read(directory: Path) -> GgufTokenizer:
        """What `save` wrote."""
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        return GgufTokenizer(
            tokenizer,
            eos_token_id=tokenizer.token_to_id(config["eos_token"]) if "eos_token" in config else None,
            bos_token_id=tokenizer.token_to_id(config["bos_token"]) if "bos_token" in config else None,
            add_bos=config["add_bos_token"],
            chat_template=config.get("chat_template"),
        )


def from_metadata(metadata: Mapping[str, Any]) -> GgufTokenizer:
    """The tokenizer that the metadata of a GGUF file describes.

    Raises:
        UnsupportedArchitecture: it is of another kind than byte-level BPE, or splits text in an unknown way.
    """
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or split not in PRE_TOKENIZERS:
        raise UnsupportedArchitecture(
            f"The file's tokenizer is {kind!r} with pre-tokenizer {split!r}; read here are 'gpt2' with "
            f"{', '.join(map(repr, PRE_TOKENIZERS))}. "
            "Load the model from a directory in mlx-lm's format instead."
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    types = [int(kind) for kind in metadata["tokenizer.ggml.token_type"].tolist()]
    whole = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in whole])
    whole = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
    return GgufTokenizer(
        tokenizer,
        eos_token_id=_number(metadata, "tokenizer.ggml.eos_token_id"),
        bos_token_id=_number(metadata, "tokenizer.ggml.bos_token_id"),
        add_bos=bool(_number(metadata, "tokenizer.ggml.add_bos_token")),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _number(metadata: Mapping[str, Any], key: str) -> int | None:
    return int(metadata[key].item()) if key in metadata else None
