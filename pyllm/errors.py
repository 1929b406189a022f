"""Every exception that pyllm raises.

Each class is a :class:`PyllmError` and, beside it, the builtin exception that fits, so that
``except ValueError`` and ``except OSError`` keep working in code that has never heard of pyllm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class PyllmError(Exception):
    """The base of all pyllm errors.

    Attributes:
        code: The return code of the C function, or None where it has none.
        function: The name of the C function that failed, or None.
        log: The warnings and errors that llama.cpp logged during the failing call, oldest first.
            llama.cpp explains its failures only there.
        param: The argument that was wrong, with the path to the part of it, such as "messages[1].content"; None where
            it is no single one.
    """

    code: int | None
    function: str | None
    log: tuple[str, ...]
    param: str | None

    def __init__(
        self,
        *args: object,
        code: int | None = None,
        function: str | None = None,
        log: tuple[str, ...] = (),
        param: str | None = None,
    ) -> None:
        super().__init__(*args)
        self.param = param
        self.code = code
        self.function = function
        self.log = tuple(log)

    @property
    def message(self) -> str:
        """What went wrong, in one sentence: without llama.cpp's log, and of an OSError without its number."""
        text = getattr(self, "strerror", None) or (self.args[0] if self.args else "")
        return str(text) or type(self).__name__

    def __str__(self) -> str:
        # KeyError's own text shows quotes around the message.
        text = self.message if isinstance(self, KeyError) else super().__str__()
        if self.log:
            text += "\nllama.cpp said:\n" + "\n".join(f"  {line}" for line in self.log)
        return text


class StreamOpenError(PyllmError, RuntimeError):
    """A Llama was used in the thread that has not finished its last stream."""


class ClosedError(PyllmError, ValueError):
    """A method was called on an object that was closed, or whose model was."""


class ForkError(PyllmError, RuntimeError):
    """An object made in the parent process was used in a forked child."""


class ReentrantError(PyllmError, RuntimeError):
    """An object was used from a callback of a call that is using it."""


class BackendAssertError(PyllmError, RuntimeError):
    """An assertion inside llama.cpp or ggml failed. The call was unwound; the process goes on."""


class BackendError(PyllmError, RuntimeError):
    """A C++ exception came out of llama.cpp, or a backend could not be loaded."""


class BackendWarning(UserWarning):
    """A backend that was found or asked for is not in use; the text says why and what to do, and the CPU goes on."""


class OutOfMemoryError(PyllmError, MemoryError):
    """llama.cpp could not allocate memory."""


class InsufficientMemoryError(OutOfMemoryError):
    """A model would not fit into memory; nothing was allocated.

    Attributes:
        needed: Bytes that it needs.
        available: Bytes that can be used.
        n_ctx: The largest context with which it would fit, in tokens; None where none is small enough.
    """

    def __init__(
        self, *args: object, needed: int = 0, available: int = 0, n_ctx: int | None = None, **details: Any
    ) -> None:
        super().__init__(*args, **details)
        self.needed = needed
        self.available = available
        self.n_ctx = n_ctx


class GrammarError(PyllmError, ValueError):
    """A GBNF grammar could not be parsed."""


class ChatTemplateError(PyllmError, ValueError):
    """A chat template cannot be read, or refuses the messages that it was given.

    Attributes:
        line: The line of the template's source, from 1, or None where that is not known.
        column: The column in that line, from 1, or None.
    """

    line: int | None = None
    column: int | None = None


class ChatParseError(PyllmError, ValueError):
    """A model's answer is not what the format of its chat template allows.

    Attributes:
        text: The answer.
    """

    text: str = ""


class InvalidArgumentError(PyllmError, ValueError):
    """An argument has a value that llama.cpp cannot work with."""


class PromptTooLongError(InvalidArgumentError):
    """A prompt has more tokens than the context holds.

    Attributes:
        n_tokens: Tokens of the prompt.
        n_ctx: Tokens of the context.
    """

    def __init__(self, *args: object, n_tokens: int = 0, n_ctx: int = 0, **details: Any) -> None:
        super().__init__(*args, **details)
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class TextTooLongError(InvalidArgumentError):
    """A text to embed or to rank has more tokens than the model can read at once.

    Attributes:
        index: Its place among the texts or documents, from 0; None: it is the query.
        n_tokens: Its tokens, with those that the model puts around it.
        limit: The most tokens that can be read at once.
    """

    def __init__(
        self, *args: object, index: int | None = None, n_tokens: int = 0, limit: int = 0, **details: Any
    ) -> None:
        super().__init__(*args, **details)
        self.index = index
        self.n_tokens = n_tokens
        self.limit = limit


class UnknownArgumentError(PyllmError, TypeError):
    """A keyword argument has a name that does not exist."""


class ModelLoadError(PyllmError, OSError):
    """A model file could not be loaded."""

    def __str__(self) -> str:
        return PyllmError.__str__(self)


class ModelNotFoundError(ModelLoadError, FileNotFoundError):
    """The model file does not exist."""


class UnknownModelError(PyllmError, LookupError):
    """The name is neither a file nor the alias of a known model."""


class VocabularyMismatchError(PyllmError, ValueError):
    """A draft model has other tokens than the model it is to draft for."""


class ContextError(PyllmError, RuntimeError):
    """A context could not be created."""


class InvalidBatchError(PyllmError, ValueError):
    """A batch cannot be decoded as it stands: ids, positions or sizes are out of range."""


class DecodeError(PyllmError, RuntimeError):
    """llama_decode or llama_encode failed."""


class NoKVSlotError(DecodeError):
    """The KV cache has no room for the batch. The memory is as it was before the call."""


class DecodeAborted(DecodeError):
    """A decode was aborted. The micro-batches that were done stay in the memory."""


class NoActivationError(PyllmError, KeyError):
    """The model's graph has no such tensor, or it was not captured."""


class StaleLogitsError(PyllmError, RuntimeError):
    """Logits or embeddings were read after a newer decode had replaced them."""


class StaleLogitsWarning(UserWarning):
    """Arrays on the outputs of several earlier decodes are alive, and all of them show the newest rows."""


class NoOutputError(PyllmError, LookupError):
    """The last decode gave no output at that index."""


class StateError(PyllmError, ValueError):
    """A saved state is damaged or does not fit the context; or it could not be saved."""


class InvariantError(PyllmError, AssertionError):
    """The bookkeeping of the KV cache contradicts llama.cpp's memory, or itself: a defect of pyllm; please report it.

    Attributes:
        problems: Each contradiction, as a sentence.
    """

    def __init__(self, *args: object, problems: Iterable[str] = (), **details: Any) -> None:
        super().__init__(*args, **details)
        self.problems = tuple(problems)


class AdapterError(PyllmError, ValueError):
    """A LoRA adapter or a control vector cannot be loaded, or does not fit the model."""


class QuantizeError(PyllmError, RuntimeError):
    """A model file could not be quantized."""


class SamplerError(PyllmError, RuntimeError):
    """A sampler cannot be used as asked, for example a chain that never selects a token."""


class TokenizeError(PyllmError, ValueError):
    """Text could not be tokenized, or tokens could not be turned into text."""


class EmbeddingError(PyllmError, ValueError):
    """A vector cannot be given as asked: it is not finite, or is zero and has no direction."""


class GGUFError(PyllmError, ValueError):
    """A GGUF file is malformed, or a value does not fit the format."""


class DownloadError(PyllmError, OSError):
    """A file could not be downloaded."""

    def __str__(self) -> str:
        return PyllmError.__str__(self)


class ChecksumError(DownloadError):
    """A downloaded file is not the one that was asked for."""


class MissingDependencyError(PyllmError, ImportError):
    """An optional package is needed for this and is not installed."""


__all__ = [name for name, value in list(globals().items()) if isinstance(value, type) and issubclass(value, PyllmError)]
