"""Llama: one model, one user. Text in, text out."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from pyllm.completion import asynchronous
from pyllm.completion.cache import PromptCache
from pyllm.completion.session import CompletionSession
from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.errors import InvalidArgumentError, PyllmError
from pyllm.params import ContextParams, ModelParams, given, split_arguments
from pyllm.processors.base import LogitsProcessor
from pyllm.types import Chunk, Completion

Tokens = Sequence[int] | NDArray[np.integer[Any]]

DEFAULT_N_CTX = 4096


class StreamOpenError(PyllmError, RuntimeError):
    """A Llama was used in the thread that has not finished its last stream."""


class Llama:
    """A model with one context, for one user at a time.

    Threads may share a Llama: a call waits until the one before it is done, a stream counting as one call.

    Args:
        model: The alias of a known model ("smollm2"), which is downloaded when it is not in the cache, or the path
            of a GGUF file, or a :class:`pyllm.core.model.Model`, which stays open when this is closed.
        n_ctx: Size of the context in tokens. None: the length the model was trained with, at most 4096.
        seed: Seed for every generation that names none. None: a new random one each time.
        cache_prompt: Whether calls reuse what the KV cache has in common with their prompt; see `cache_prompt` of
            :meth:`create_completion`.
        **params: Every argument of :class:`pyllm.core.model.Model` and :class:`pyllm.core.context.Context`.

    Raises:
        UnknownArgumentError: A keyword exists in neither; the message names the nearest one.
        UnknownModelError: The name is neither an alias nor a file.
        ModelLoadError: llama.cpp could not load the file; ``.log`` holds its own words.

    Example:
        >>> llm = Llama("smollm2")
        >>> for chunk in llm.stream("Once upon a time", max_tokens=32):
        ...     print(chunk.text, end="", flush=True)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model = "smollm2",
        *,
        n_ctx: int | None = None,
        seed: int | None = None,
        cache_prompt: bool | None = None,
        **params: Any,
    ) -> None:
        self._lock = threading.Lock()
        self._abort_lock = threading.Lock()
        self._stream_thread: int | None = None
        self._running: CompletionSession | None = None
        self._signalled = False
        self.seed = seed
        self.cache_prompt = cache_prompt
        of_model, of_context = split_arguments(params, "Llama()", ModelParams, ContextParams)
        self.model_params, self.context_params = ModelParams(**of_model), ContextParams(n_ctx=n_ctx, **of_context)
        self._owns_model = not isinstance(model, Model)
        if isinstance(model, Model):
            if of_model:
                raise InvalidArgumentError(f"the model is loaded already; {', '.join(of_model)} would do nothing")
            self.model = model
        else:
            from pyllm import hub  # only here: a model that is loaded already needs none of it

            self.model = Model(hub.resolve(model), **given(self.model_params))
        if n_ctx is None:
            n_ctx = min(self.model.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
        try:
            self.context = Context(self.model, **{**given(self.context_params), "n_ctx": n_ctx})
        except BaseException:
            if self._owns_model:
                self.model.close()
            raise
        self.vocab = self.model.vocab
        self._cache = PromptCache(self.context)

    def close(self) -> None:
        """Free the context, and the model if it was loaded here. Closing twice is allowed."""
        self.context.close()
        if self._owns_model:
            self.model.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.close()
        except BufferError:
            # As of a Context: an exception that passes through is not hidden behind the view in its traceback.
            if not any(exc_info):
                raise

    def __repr__(self) -> str:
        return f"<Llama {self.model!r}, {self.context!r}>"

    # ---- text and tokens

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Turn text into token ids; see :meth:`pyllm.core.vocab.Vocab.tokenize`."""
        ids: list[int] = self.vocab.tokenize(text, add_special=add_special, parse_special=parse_special).tolist()
        return ids

    def detokenize(self, tokens: Tokens, *, special: bool = True) -> str:
        """Turn token ids into text; see :meth:`pyllm.core.vocab.Vocab.detokenize`."""
        return self.vocab.detokenize(tokens, unparse_special=special)

    # ---- generation

    @overload
    def create_completion(
        self, prompt: str | bytes | Tokens, *, stream: Literal[False] = False, **arguments: Any
    ) -> Completion: ...

    @overload
    def create_completion(
        self, prompt: str | bytes | Tokens, *, stream: Literal[True], **arguments: Any
    ) -> Iterator[Chunk]: ...

    def create_completion(
        self, prompt: str | bytes | Tokens, *, stream: bool = False, **arguments: Any
    ) -> Completion | Iterator[Chunk]:
        """Continue a prompt. Calling the Llama is the same.

        The same seed gives the same text again, with the same arguments, the same build and the same number of
        threads, unless ``cache_prompt=True`` or several texts are made at once: then batches may have other shapes,
        whose sums round differently, and a close choice can fall the other way.

        Args:
            prompt: Text, in which control tokens such as ``<|im_start|>`` count, or token ids.
            stream: Give an iterator of chunks instead, as :meth:`stream` does.
            max_tokens: Stop after so many; None or -1 goes on until the model ends the text or the context is full.
            stop: A stop string, or several; the text ends before the first one that appears.
            echo: Put the prompt before the text.
            logprobs: Report the log-probability of each token and of so many of the likeliest ones, by the model's
                own logits; with `echo` those of the prompt too. 0: of the token alone.
            n: How many texts. They share the prompt and are computed at once where the context has been made with
                ``n_seq_max`` of at least so many and has room, and else one after another; with processors and
                stopping criteria always one after another. Text i uses the seed ``seed + i``.
            best_of: Generate so many, and give the n with the largest mean log-probability.
            suffix: Text behind the gap: fill in what belongs between prompt and suffix, with the tokens that the
                model has for that. Control tokens do not count in either.
            logits_processor: A function ``f(ids, logits)``, or several: ids are all tokens so far, int32, shape
                (n,), the prompt included, read-only; logits float32, shape (n_vocab,), may be edited in place or
                returned anew. One that has a method reset() is reset at the start. See :mod:`pyllm.processors`.
            stopping_criteria: A function ``f(ids, logits)``, or several: the text ends when one returns something
                true. ids are all tokens so far, the newest included; logits the row it was chosen from, after
                processors.
            sampler: A sampler to use instead of those the other arguments describe.
            cache_prompt: Whether to reuse what the KV cache has in common with the prompt. None: as the Llama was
                made; and where that says None too, only for texts that are random anyway, without a seed.
            **arguments: Every field of :class:`pyllm.params.SamplingParams`: temperature, top_k, seed, …

        Returns:
            Completion: The texts and all about them; with ``stream=True`` an iterator of chunks.

        Raises:
            InvalidArgumentError: The prompt is longer than the context, an argument is out of range, or the model
                has no tokens for filling in.
            UnknownArgumentError: There is no such argument.
            KeyboardInterrupt: Ctrl-C.
        """
        if stream:
            return self.stream(prompt, **arguments)
        with CompletionSession(self, prompt, arguments) as session:
            return session.finish()

    __call__ = create_completion

    def stream(self, prompt: str | bytes | Tokens, **arguments: Any) -> Iterator[Chunk]:
        """As :meth:`create_completion`, piece by piece.

        Returns:
            Iterator[Chunk]: Text as soon as it is final; the last chunk holds finish_reason and the completion.
        """
        session = CompletionSession(self, prompt, arguments, streamed=True)

        def chunks() -> Iterator[Chunk]:
            with session:
                yield from session.chunks()

        return chunks()

    def generate(self, prompt: str | bytes | Tokens, **arguments: Any) -> Iterator[int]:
        """As :meth:`create_completion`, token id by token id of one text."""
        session = CompletionSession(self, prompt, arguments, streamed=True)
        if session.request.n > 1:
            raise InvalidArgumentError(f"token ids are those of one text: n must be 1, not {session.request.n}")

        def tokens() -> Iterator[int]:
            with session:
                yield from session.tokens()

        return tokens()

    async def acomplete(self, prompt: str | bytes | Tokens, **arguments: Any) -> Completion:
        """As :meth:`create_completion`, for asyncio. It runs in a thread; a cancelled task aborts it within a step."""
        return await asynchronous.complete(CompletionSession(self, prompt, arguments))

    def astream(self, prompt: str | bytes | Tokens, **arguments: Any) -> AsyncIterator[Chunk]:
        """As :meth:`stream`, for ``async for``. It runs in a thread; a cancelled task aborts it within a step."""
        return asynchronous.stream(CompletionSession(self, prompt, arguments, streamed=True))

    def abort(self) -> None:
        """End the call that is running, in another thread or as an open stream, while it computes its prompt too.

        It gives what it has, with the finish_reason "abort". Nothing happens when no call is running.
        """
        with self._abort_lock:
            running = self._running
        if running is not None:
            running.abort()

    def reset(self) -> None:
        """Reuse nothing of the KV cache in the next call.

        Decodes of your own on :attr:`context` and changes of its adapters are noticed; only what changes the memory or
        the weights in other ways is not.
        """
        self._acquire(None)
        try:
            self._cache.forget()
        finally:
            self._release()

    def _acquire(self, session: CompletionSession | None) -> None:
        if self._stream_thread == threading.get_ident():
            raise StreamOpenError(
                "a stream of this Llama is still open in this thread: read it to its end or close() it first, "
                "or use a second Llama on the same model"
            )
        self._lock.acquire()
        self._stream_thread = threading.get_ident()
        with self._abort_lock:
            self._running = session
            self._signalled = False

    def _release(self) -> None:
        with self._abort_lock:
            self._running = None
            signalled = self._signalled
        try:
            if signalled and not self.context.closed:
                self._take_abort()
        finally:
            self._stream_thread = None
            self._lock.release()

    def _abort(self, session: CompletionSession) -> None:
        with self._abort_lock:
            session.aborted = True
            if self._running is session:
                self._signalled = True
                self.context.abort()

    def _take_abort(self) -> None:
        """Let an abort that came between two decodes end nobody else's: a decode of one token takes it."""
        self._cache.forget()
        memory = self.context.memory
        memory.clear(data=False)
        with contextlib.suppress(PyllmError):
            self.context.decode(Batch.from_arrays([0], outputs="none"))
        memory.clear(data=False)


__all__ = ["Llama", "LogitsProcessor", "StreamOpenError"]
