"""Llama: one model, one user. Text in, text out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.core.model import Model
from pyllm.core.sampler import Sampler
from pyllm.errors import InvalidArgumentError, NoKVSlotError, PyllmError
from pyllm.params import (
    ContextParams,
    ModelParams,
    SamplingParams,
    field_names,
    given,
    split_arguments,
    unknown_argument,
)
from pyllm.processors.base import LogitsProcessor, as_processors, process, reset
from pyllm.sampling import build_chain, new_seed
from pyllm.types import Chunk, Completion, FinishReason, Timings, Usage

Tokens = Sequence[int] | NDArray[np.integer[Any]]

DEFAULT_N_CTX = 4096
_CALL_ARGUMENTS = ("max_tokens", "stop", "logits_processor", "sampler")


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
        **params: Any,
    ) -> None:
        self._lock = threading.Lock()
        self._stream_thread: int | None = None
        self.seed = seed
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

    def close(self) -> None:
        """Free the context, and the model if it was loaded here. Closing twice is allowed."""
        self.context.close()
        if self._owns_model:
            self.model.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

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

    def __call__(self, prompt: str | bytes | Tokens, **arguments: Any) -> Completion:
        """Continue a prompt.

        Args:
            prompt: Text, in which control tokens such as ``<|im_start|>`` count, or token ids.
            max_tokens: Stop after so many; None goes on until the model ends the text or the context is full.
            stop: A stop string, or several; the text ends before the first one that appears.
            logits_processor: A function ``f(ids, logits)``, or several: ids are all tokens so far, int32, shape
                (n,), the prompt included, read-only; logits float32, shape (n_vocab,), may be edited in place or
                returned anew. One that has a method reset() is reset at the start. See :mod:`pyllm.processors`.
            sampler: A sampler to use instead of those the other arguments describe.
            **arguments: Every field of :class:`pyllm.params.SamplingParams`: temperature, top_k, seed, …

        Returns:
            Completion: The text and all about it.

        Raises:
            InvalidArgumentError: The prompt is longer than the context, or an argument is out of range.
            UnknownArgumentError: There is no such argument.
            KeyboardInterrupt: Ctrl-C.
        """
        with _Request(self, prompt, arguments) as request:
            return request.finish()

    def stream(self, prompt: str | bytes | Tokens, **arguments: Any) -> Iterator[Chunk]:
        """As :meth:`__call__`, piece by piece.

        Returns:
            Iterator[Chunk]: Text as soon as it is final; the last chunk holds finish_reason and the completion.
        """
        request = _Request(self, prompt, arguments)

        def chunks() -> Iterator[Chunk]:
            with request:
                yield from request.chunks()

        return chunks()

    def generate(self, prompt: str | bytes | Tokens, **arguments: Any) -> Iterator[int]:
        """As :meth:`__call__`, token id by token id."""
        request = _Request(self, prompt, arguments)

        def tokens() -> Iterator[int]:
            with request:
                yield from request.tokens()

        return tokens()

    def _acquire(self) -> None:
        if self._stream_thread == threading.get_ident():
            raise StreamOpenError(
                "a stream of this Llama is still open in this thread: read it to its end or close() it first, "
                "or use a second Llama on the same model"
            )
        self._lock.acquire()
        self._stream_thread = threading.get_ident()

    def _release(self) -> None:
        self._stream_thread = None
        self._lock.release()


class _Request:
    """One generation: its arguments, checked when it is made, and its state while it runs."""

    def __init__(self, llama: Llama, prompt: str | bytes | Tokens, arguments: dict[str, Any]) -> None:
        self.llama = llama
        arguments = dict(arguments)
        self.max_tokens: int | None = arguments.pop("max_tokens", None)
        stop: str | Iterable[str] = arguments.pop("stop", None) or ()
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        sampler: Sampler | None = arguments.pop("sampler", None)
        self.processors = as_processors(arguments.pop("logits_processor", None))
        known = field_names(SamplingParams)
        for name in arguments:
            if name not in known:
                raise unknown_argument(name, [*known, *_CALL_ARGUMENTS], "a call of Llama")
        if sampler is not None and arguments:
            raise InvalidArgumentError(
                f"a sampler was given, which would leave {', '.join(sorted(arguments))} without effect; "
                "put such samplers into its chain instead"
            )
        params = SamplingParams(**arguments)
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InvalidArgumentError(f"max_tokens must be at least 0, or None for no limit, not {self.max_tokens}")

        seed = params.seed if params.seed is not None else llama.seed
        self.seed = new_seed() if seed is None else seed
        self.ids = (
            llama.vocab.tokenize(prompt, add_special=True, parse_special=True)
            if isinstance(prompt, (str, bytes))
            else llama.vocab.as_tokens(prompt)
        )
        n_ctx = llama.context.n_ctx_seq
        if len(self.ids) == 0:
            raise InvalidArgumentError("the prompt is empty, and this model has no token to begin a text with")
        if len(self.ids) > n_ctx:
            raise InvalidArgumentError(
                f"the prompt has {len(self.ids)} tokens and the context holds n_ctx={n_ctx}; "
                "shorten it, or make the Llama with a larger n_ctx"
            )
        self.room = n_ctx - len(self.ids)
        self.sampler = build_chain(params, llama.vocab, self.seed) if sampler is None else sampler
        self.penalises = sampler is None and params.penalises
        self.text: list[str] = []
        self.prompt_ms = self.generation_ms = 0.0

    def __enter__(self) -> _Request:
        self.llama._acquire()
        try:
            started = time.perf_counter()
            reset(self.processors)
            self._prefill()
            self.prompt_ms = 1000 * (time.perf_counter() - started)
        except BaseException:
            self.llama._release()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.llama._release()

    def _prefill(self) -> None:
        context, model = self.llama.context, self.llama.model
        context.memory.clear(data=False)
        self.generation = Generation(context, self.sampler, stop=self.stop)
        if not model.has_encoder:
            self.generation.prefill(self.ids, accept=self.penalises)
            return
        # Encoder-decoder: the prompt goes through the encoder, the answer begins with a token of its own.
        context.encode(Batch.from_arrays(self.ids, outputs="all"))
        start = model.decoder_start_token
        if start is None:
            start = self.llama.vocab.bos
        if start is None:
            raise InvalidArgumentError("this model does not say with which token its answers begin")
        self.generation.prefill([start])
        self.room = context.n_ctx_seq - 1

    @property
    def limit(self) -> int:
        """Tokens that can be generated: the last one need not be decoded."""
        return self.room + 1 if self.max_tokens is None else min(self.max_tokens, self.room + 1)

    def finish(self) -> Completion:
        """Generate all of it; without a processor in one go, and no Python runs in between."""
        if self.processors:
            for _ in self.tokens():
                pass
        else:
            started = time.perf_counter()
            try:
                self.generation.run(self.limit)
            except NoKVSlotError:
                pass  # the context is full: the text ends here, by length
            self.generation_ms += 1000 * (time.perf_counter() - started)
        self.text.append(self.generation.stream.take(all=True))
        return self._completion()

    def tokens(self) -> Iterator[int]:
        """One token id after the other."""
        ids = np.empty(len(self.ids) + self.limit, np.int32) if self.processors else self.ids
        ids[: len(self.ids)] = self.ids
        filled = len(self.ids)
        while self.generation.n_generated < self.limit and self.generation.finish_reason is None:
            started = time.perf_counter()
            if self.processors and not self._process(ids, filled):
                return
            token = self._step()
            self.generation_ms += 1000 * (time.perf_counter() - started)
            if token is None:
                return
            if self.processors:
                ids[filled] = token
                filled += 1
            yield token

    def chunks(self) -> Iterator[Chunk]:
        """Pieces of text as they become final, then the last chunk."""
        since: list[int] = []
        for token in self.tokens():
            since.append(token)
            text = self.generation.stream.take()
            if text:
                self.text.append(text)
                yield Chunk(text, tuple(since))
                since = []
        rest = self.generation.stream.take(all=True)
        self.text.append(rest)
        completion = self._completion()
        yield Chunk(rest, tuple(since), completion.finish_reason, completion)

    def _step(self) -> int | None:
        try:
            return self.generation.step()
        except NoKVSlotError:
            return None

    def _process(self, ids: NDArray[np.int32], n: int) -> bool:
        """Let the processors edit the logits after the first n ids; False when the context is full."""
        try:
            self.generation.decode_next()
        except NoKVSlotError:
            return False
        so_far = ids[:n]
        so_far.flags.writeable = False
        process(self.processors, so_far, self.llama.context.logits[-1])
        return True

    def _completion(self) -> Completion:
        generated = self.generation.tokens
        stopped = self.generation.stream.stopped
        reason: FinishReason = "stop" if self.generation.finish_reason == "stop" else "length"
        return Completion(
            text="".join(self.text),
            tokens=tuple(generated.tolist()),
            finish_reason=reason,
            usage=Usage(len(self.ids), len(generated)),
            seed=self.seed,
            stop=str(stopped) if stopped is not None else None,
            timings=Timings(self.prompt_ms, self.generation_ms, len(generated)),
        )


__all__ = ["Llama", "LogitsProcessor", "StreamOpenError"]
