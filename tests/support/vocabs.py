"""Small vocabularies for the tiny models: real tokenizers of llama.cpp's four kinds in a few hundred tokens.

The two for text generation ("spm", "bpe") hold every byte, so any text survives tokenize and detokenize.
They also hold what trips careless code: a token of 48 spaces, control tokens, a token that is half a character.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field

import numpy as np

from pyllm.core.gguf import GGUFWriter

# llama_token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = "\u2581"

_COMMON = (
    "the and of to in is it you that he was for on are with as his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could"
)

WORDS = _COMMON.split()
LETTERS = string.ascii_letters + string.digits + string.punctuation
ACCENTED = "éüñçøßλжあ語🙂"

# Names from which llama.cpp learns what a token is for.
CONTROLS = ("<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@dataclass
class Vocab:
    """Tokens in the order of their ids, and the keys of the tokenizer.

    Attributes:
        model: What llama.cpp calls the kind of tokenizer.
        tokens, scores, types: One per token.
        keys: Further metadata, below ``tokenizer.ggml.``.
        unreadable: Normal tokens that no text should be made of.
    """

    model: str
    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    keys: dict[str, object] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    _known: set[str] = field(default_factory=set)

    def add(self, token: str, type: int = NORMAL, score: float = 0.0) -> None:
        """Append a token; one that is there already is skipped."""
        if token not in self._known:
            self._known.add(token)
            self.tokens.append(token)
            self.types.append(type)
            self.scores.append(score)

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def readable(self) -> np.ndarray:
        """Which tokens are whole characters of text: not bytes, not control tokens, not padding."""
        hidden = [token in self.unreadable for token in self.tokens]
        return (np.array(self.types) == NORMAL) & ~np.array(hidden)

    def pad(self, size: int) -> None:
        if size < self.size:
            raise ValueError(f"vocab_size is {size}, but the vocabulary has {self.size} tokens")
        for i in range(self.size, size):
            self.add(f"<pad{i}>", NORMAL, -1000.0)
            self.unreadable.add(f"<pad{i}>")

    def add_to(self, writer: GGUFWriter) -> None:
        """Add the tokenizer to a file."""
        writer.add("tokenizer.ggml.model", self.model)
        writer.add("tokenizer.ggml.tokens", self.tokens)
        writer.add("tokenizer.ggml.scores", self.scores, "float32")
        writer.add("tokenizer.ggml.token_type", self.types, "int32")
        for key, value in self.keys.items():
            writer.add(f"tokenizer.ggml.{key}", value)


def make(kind: str, size: int | None = None) -> Vocab:
    """Make a vocabulary of one of the kinds "spm", "bpe", "wpm", "ugm", padded to `size` tokens."""
    vocab = {"spm": _spm, "bpe": _bpe, "wpm": _wpm, "ugm": _ugm}[kind]()
    if size is not None:
        vocab.pad(size)
    return vocab


def _prefixes(text: str) -> list[str]:
    return [text[:end] for end in range(2, len(text) + 1)]


def _spm() -> Vocab:
    vocab = Vocab("llama")
    vocab.add("<unk>", UNKNOWN)
    vocab.add("<s>", CONTROL)
    vocab.add("</s>", CONTROL)
    for byte in range(256):
        vocab.add(f"<0x{byte:02X}>", BYTE)
    for control in CONTROLS:
        vocab.add(control, CONTROL)
    vocab.add("<tool>", USER_DEFINED)
    # SPM joins pairs of neighbours whose union is a token, the highest score first: a word can be reached only
    # if each of its prefixes is a token.
    pieces = [SPACE, *LETTERS, *ACCENTED]
    pieces += [SPACE * count for count in (2, 4, 8, 16, 32, 48)]
    for word in WORDS[:40]:
        pieces += _prefixes(SPACE + word)
    for rank, piece in enumerate(pieces):
        vocab.add(piece, NORMAL, -float(rank))
    vocab.keys = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": True,
        # Else detokenize(tokenize(text)) begins with a space that text did not have.
        "add_space_prefix": False,
    }
    return vocab


def _bpe() -> Vocab:
    # The byte alphabet of GPT-2: printable Latin-1 characters stand for themselves, the others are moved up.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(moved)}
    space = alphabet[ord(" ")]

    vocab = Vocab("gpt2")
    for byte in range(256):
        vocab.add(alphabet[byte])
        # Control characters, and bytes above 127: parts of characters.
        if not 32 <= byte < 127:
            vocab.unreadable.add(alphabet[byte])
    merges: dict[str, None] = {}
    for count in (2, 4, 8, 16, 32):
        merges[f"{space * (count // 2)} {space * (count // 2)}"] = None
    merges[f"{space * 32} {space * 16}"] = None
    for word in WORDS[:40]:
        text = space + word
        for end in range(2, len(text) + 1):
            merges[f"{text[: end - 1]} {text[end - 1]}"] = None
    for merge in merges:
        vocab.add(merge.replace(" ", ""))
    for control in ("<|endoftext|>", *CONTROLS):
        vocab.add(control, CONTROL)
    vocab.add("<tool>", USER_DEFINED)
    end = vocab.tokens.index("<|endoftext|>")
    vocab.keys = {"pre": "gpt-2", "merges": list(merges), "bos_token_id": end, "eos_token_id": end}
    return vocab


def _wpm() -> Vocab:
    # As in GGUF files of BERT: the start of a word carries the mark, not the middle.
    vocab = Vocab("bert")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    for token in special:
        vocab.add(token, UNKNOWN if token == "[UNK]" else CONTROL)
    for letter in LETTERS.lower():
        vocab.add(SPACE + letter)
        vocab.add(letter)
    for word in WORDS:
        vocab.add(SPACE + word)
    pad, unk, cls, sep, mask = (vocab.tokens.index(token) for token in special)
    vocab.keys = {
        "token_type_count": 2,
        "padding_token_id": pad,
        "unknown_token_id": unk,
        "bos_token_id": cls,
        "cls_token_id": cls,
        "seperator_token_id": sep,
        "mask_token_id": mask,
    }
    return vocab


def _ugm() -> Vocab:
    vocab = Vocab("t5")
    vocab.add("<pad>", CONTROL)
    vocab.add("</s>", CONTROL)
    vocab.add("<unk>", UNKNOWN)
    for rank, piece in enumerate([*(SPACE + word for word in WORDS), SPACE, *LETTERS]):
        vocab.add(piece, NORMAL, -2.0 - rank / 50)
    vocab.keys = {
        "padding_token_id": 0,
        "eos_token_id": 1,
        "unknown_token_id": 2,
        "add_bos_token": False,
        "add_eos_token": True,
    }
    return vocab
