"""A tokenizer read from the metadata of a GGUF file, and its directory form that other tools read too.

Two kinds (`tokenizer.ggml.model`): byte-level BPE ("gpt2") and SentencePiece's BPE ("llama"). What byte-level
BPE splits a text into before the merges is a name in the file; the names known here are those of
`PRE_TOKENIZERS`, and another one is refused rather than guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mlxterp.errors import TokenError, UnsupportedArchitecture

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6  # token types of the GGUF format
_SPACE = "▁"  # how SentencePiece writes a space
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _words(digits: str) -> pre_tokenizers.PreTokenizer:
    """Words with what stands before them, numbers of so many digits, punctuation, white space."""
    split = pre_tokenizers.Split(Regex(_WORDS.format(digits=digits)), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": _byte_level,
    "llama-bpe": lambda: _words("{1,3}"),  # Llama 3
    "smaug-bpe": lambda: _words("{1,3}"),  # SmolLM3
    "qwen2": lambda: _words(""),  # Qwen 2 and 3
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
        UnsupportedArchitecture: it is of another kind, or splits text in an unknown way.
    """
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind == "llama":
        tokenizer = _sentencepiece(metadata)
    elif kind == "gpt2" and split in PRE_TOKENIZERS:
        tokenizer = _byte_level_bpe(metadata, split)
    else:
        raise UnsupportedArchitecture(
            f"The file's tokenizer is {kind!r} with pre-tokenizer {split!r}; read here are 'llama', and "
            f"'gpt2' with {', '.join(map(repr, PRE_TOKENIZERS))}. "
            "Load the model from a directory in mlx-lm's format instead."
        )
    # What a file leaves out is what llama.cpp takes: SentencePiece models begin a text with their BOS.
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or split == "llama-bpe")
    return GgufTokenizer(
        tokenizer,
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        add_bos=bool(add_bos),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _byte_level_bpe(metadata: Mapping[str, Any], split: str) -> Tokenizer:
    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    # Llama 3 takes a word that is a token whole, also where the merges would not make it.
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=split == "llama-bpe"
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    _add_whole_tokens(tokenizer, metadata, normalized=False)
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    """SentencePiece's BPE: of two neighbours that make a piece, those of the highest score are joined first.

    A merge has the rank of its piece. Spaces are written as a character of their own; characters without a
    piece become their UTF-8 bytes.
    """
    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    scores, types = metadata["tokenizer.ggml.scores"], metadata["tokenizer.ggml.token_type"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    parts = {token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, USER_DEFINED)}
    by_score = sorted((i for i, kind in enumerate(types) if kind == NORMAL), key=lambda i: (-scores[i], i))
    merges = [
        (piece[:cut], piece[cut:])
        for piece in (tokens[i] for i in by_score)
        for cut in range(1, len(piece))
        if piece[:cut] in parts and piece[cut:] in parts
    ]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=BYTE in types,
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    undo = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    if prefix:  # in front of the text and of what follows a whole token, as llama.cpp has it
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        undo.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(undo)
    # A prefix would be put in front of the tokens looked for, too.
    _add_whole_tokens(tokenizer, metadata, normalized=not prefix)
    return tokenizer


def _add_whole_tokens(tokenizer: Tokenizer, metadata: Mapping[str, Any], *, normalized: bool) -> None:
    """Tokens that are never split: control tokens, and those that the model's makers defined.

    `normalized`: the latter are looked for after spaces are written as they are in the vocabulary.
    """
    kinds = list(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    control = [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == CONTROL]
    defined = [AddedToken(token, normalized=normalized) for token, kind in kinds if kind == USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(defined)
