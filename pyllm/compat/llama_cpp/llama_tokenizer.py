"""Tokenizers: that of the model, and one of transformers in its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyllm.extras import missing

if TYPE_CHECKING:
    from pyllm.compat.llama_cpp.llama import Llama


class BaseLlamaTokenizer(ABC):
    """Bytes to tokens and back."""

    @abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """The tokens of a text; with `special`, control tokens in it count."""

    @abstractmethod
    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The text of tokens; `prev_tokens` stand before them; with `special`, control tokens are written out."""


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer in the model's file.

    Args:
        llama: The model.
    """

    def __init__(self, llama: Llama) -> None:
        self._vocab = llama.core_model.vocab

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """See :class:`BaseLlamaTokenizer`."""
        return self._vocab.tokenize(text, add_special=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """See :class:`BaseLlamaTokenizer`."""
        before = [] if prev_tokens is None else list(prev_tokens)
        if not before:
            return self._vocab.detokenize_bytes(tokens, unparse_special=special)
        # Whether a text begins with a space depends on what stands before it.
        whole = self._vocab.detokenize_bytes([*before, *tokens], unparse_special=special)
        return whole[len(self._vocab.detokenize_bytes(before, unparse_special=special)) :]

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """The tokens of a text."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return self.detokenize(tokens).decode("utf-8", "ignore")

    @classmethod
    def from_ggml_file(cls, path: str) -> LlamaTokenizer:
        """The tokenizer of a file, of which nothing else is loaded."""
        from pyllm.compat.llama_cpp.llama import Llama

        return cls(Llama(path, vocab_only=True))


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of transformers.

    Args:
        hf_tokenizer: It.
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """See :class:`BaseLlamaTokenizer`."""
        ids: list[int] = self.hf_tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=special)
        return ids

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """See :class:`BaseLlamaTokenizer`."""
        before = [] if prev_tokens is None else list(prev_tokens)
        whole: str = self.hf_tokenizer.decode([*before, *tokens], skip_special_tokens=not special)
        if not before:
            return whole.encode()
        start: str = self.hf_tokenizer.decode(before, skip_special_tokens=not special)
        return whole.encode()[len(start.encode()) :]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> LlamaHFTokenizer:
        """A tokenizer by its name, with transformers' AutoTokenizer."""
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise missing("LlamaHFTokenizer needs transformers", "transformers") from error
        return cls(AutoTokenizer.from_pretrained(pretrained_model_name_or_path))


__all__ = ["BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"]
