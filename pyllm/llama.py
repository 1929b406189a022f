"""Llama: one model, one user. Text in, text out."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from pyllm import loading
from pyllm.chat.methods import ChatMethods
from pyllm.completion import asynchronous
from pyllm.completion.cache import HOST_BYTES, PromptCache
from pyllm.completion.session import CompletionSession
from pyllm.conversation.methods import ConversationMethods
from pyllm.core.context import Context
from pyllm.core.introspection import not_copied
from pyllm.core.model import Model
from pyllm.embedding.methods import EmbeddingMethods
from pyllm.errors import ClosedError, InvalidArgumentError, InvariantError, PyllmError
from pyllm.lora import Lora, LoraMethods
from pyllm.params import ContextParams, ModelParams, given, split_arguments
from pyllm.processors.base import LogitsProcessor
from pyllm.speculation.methods import SpeculationMethods
from pyllm.types import Chunk, Completion

if TYPE_CHECKING:
    from pyllm.conversation.record import Record
    from pyllm.core.adapter import LoraAdapter

Tokens = Sequence[int] | NDArray[np.integer[Any]]


class StreamOpenError(PyllmError, RuntimeError):
    """A Llama was used in the thread that has not finished its last stream."""


class Llama(ChatMethods, ConversationMethods, EmbeddingMethods, LoraMethods, SpeculationMethods):
    """A model with one context, for one user at a time.

    Threads may share a Llama: a call waits until the one before it is done, a stream counting as one call. A Llama is
    pickled by the path of its model and its arguments: unpickling loads the file again, with an empty KV cache.

    Args:
        model: The path of a GGUF file, or the alias of a known model ("smollm2"), or a reference like
            "owner/repo:Q4_K_M" or "https://…/x.gguf#sha256=…", which are downloaded when they are not in the cache
            (see :func:`pyllm.hub.resolve`); or a :class:`pyllm.core.model.Model`, which stays open when this is closed.
        n_ctx: Size of the context in tokens. None: the length the model was trained with, as far as memory allows: on
            devices llama.cpp's own fit, which chooses the layers for them too; on the host a quarter of what is free,
            at most 4 GiB, but 4096 tokens in any case. 0: the length the model was trained with.
        seed: Seed for every generation that names none. None: a new random one each time.
        cache_prompt: Whether calls reuse what the KV cache has in common with their prompt; see `cache_prompt` of
            :meth:`create_completion`.
        chat_template: A template for chats to use instead of the model's: Jinja source, a pathlib.Path, or "chatml".
        conversation_bytes: Memory of the host for what conversations have computed, where the context has no sequence
            for them.
        lora: LoRA adapters to use: a path, a pair of path and scale, a list of these, or a dict of path to scale; see
            :meth:`set_lora`.
        check_memory: Refuse a model or a context that does not fit into memory, before anything is allocated.
        draft: A smaller model with the same tokens, which guesses ahead: a name as that of `model`, or a Model, which
            stays open when this is closed.
        speculative: How to guess ahead: "ngram" looks for what the text had before, "draft" asks the draft model,
            "mtp" the layers that some models have for it; or a :class:`pyllm.speculation.SpeculationParams`. None: the
            draft model where there is one. The text stays the same; see `speculative` of :meth:`create_completion`.
        **params: Every argument of :class:`pyllm.core.model.Model` and :class:`pyllm.core.context.Context`.

    Raises:
        UnknownArgumentError: A keyword exists in neither; the message names the nearest one.
        UnknownModelError: The name is neither an alias nor a file.
        ModelLoadError: llama.cpp could not load the file; ``.log`` holds its own words.
        InsufficientMemoryError: It would not fit into memory; the message says what would.

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
        chat_template: str | os.PathLike[str] | None = None,
        lora: Lora | None = None,
        check_memory: bool = True,
        conversation_bytes: int = HOST_BYTES,
        draft: str | os.PathLike[str] | Model | None = None,
        speculative: Any = None,
        **params: Any,
    ) -> None:
        self._lock = threading.Lock()
        self._abort_lock = threading.Lock()
        self._stream_thread: int | None = None
        self._running: CompletionSession | None = None
        self._signalled = False
        self.seed = seed
        self.cache_prompt = cache_prompt
        self.chat_template = chat_template
        self._arguments: dict[str, Any] = {
            "n_ctx": n_ctx,
            "check_memory": check_memory,
            "conversation_bytes": conversation_bytes,
            "draft": draft,
            "speculative": speculative,
            **params,
        }
        of_model, of_context = split_arguments(params, "Llama()", ModelParams, ContextParams, owner=Llama)
        if not isinstance(model, Model):
            of_model = {**self._arguments_for(speculative), **of_model}
        self.model_params, self.context_params = ModelParams(**of_model), ContextParams(n_ctx=n_ctx, **of_context)
        self._owns_model = not isinstance(model, Model)
        self.model, fitted = loading.open_model(model, of_model, self.context_params, check=check_memory)
        try:
            self.context = Context(self.model, **given(fitted))
        except BaseException:
            if self._owns_model:
                self.model.close()
            raise
        self.vocab = self.model.vocab
        self._cache = PromptCache(self.context, conversation_bytes)
        self._conversations: dict[str, Record] = {}
        self._loras: dict[str, LoraAdapter] = {}
        try:
            if lora is not None:
                self.set_lora(lora)
            self._start_speculation(draft, speculative)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the context, and the model if it was loaded here. Closing twice is allowed."""
        self.context.close()
        self._close_loras()
        self._close_embedder()
        self._close_speculator()
        self._cache.close()
        if self._owns_model:
            self.model.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Llama {self.model!r}, {self.context!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.context.closed:
            raise ClosedError("a Llama that has been closed cannot be pickled")
        arguments = {
            **self._arguments,
            "seed": self.seed,
            "cache_prompt": self.cache_prompt,
            "chat_template": self.chat_template,
            "draft": _lasting(self._arguments["draft"]),
            "lora": {_lasting(path): scale for path, scale in self.lora.items()},
        }
        # It reports a load that is over.
        arguments.pop("progress_callback", None)
        return _load_again, (type(self), _lasting(self.model.path) if self._owns_model else self.model, arguments)

    __copy__ = __deepcopy__ = not_copied(
        "it has one KV cache; Llama(llm.model) is a second one on the same weights, without loading them again"
    )

    # ---- text and tokens

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Turn text into token ids; see :meth:`pyllm.core.vocab.Vocab.tokenize`."""
        return self.vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

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
                own logits; with `echo` those of the prompt too, unless it goes through an encoder. 0: of the token
                alone.
            n: How many texts. They share the prompt and are computed at once where the context has been made with
                ``n_seq_max`` of at least so many and has room, and else one after another; with processors and
                stopping criteria always one after another. Text i uses the seed ``seed + i``.
            best_of: Generate so many, and give the n with the largest mean log-probability.
            suffix: Text behind the gap: fill in what belongs between prompt and suffix, with the tokens that the
                model has for that. Control tokens do not count in either.
            spm_infill: With a suffix: put it before the prompt, for models that were trained to see it first, such as
                Codestral.
            logits_processor: A function ``f(ids, logits)``, or several: ids are all tokens so far, int32, shape
                (n,), the prompt included, read-only; logits float32, shape (n_vocab,), may be edited in place or
                returned anew. One that has a method reset() is reset at the start. See :mod:`pyllm.processors`.
            stopping_criteria: A function ``f(ids, logits)``, or several: the text ends when one returns something
                true. ids are all tokens so far, the newest included; logits the row it was chosen from, after
                processors.
            sampler: A sampler to use instead of those the other arguments describe.
            overflow: What happens when the context is too small. "error": a prompt that does not fit is an error,
                and a text ends with finish_reason "length" where the context is full. "shift": when it is full, the
                first `n_keep` tokens stay, half of the rest is forgotten, and the text goes on. "truncate_middle":
                of a prompt that does not fit with its answer, only the first `n_keep` tokens and the end are used.
            n_keep: How many tokens of the beginning stay. None: the one that begins a text, where the model has
                one; -1: the whole prompt.
            cache_prompt: Whether to reuse what the KV cache has in common with the prompt. None: as the Llama was
                made; and where that says None too, only for texts that are random anyway, without a seed.
            special: Write control tokens as text: True for all, or the ids of those to write.
            json_schema: The text is JSON that is valid by this schema: a dict, JSON, a pydantic model or TypeAdapter,
                and with pydantic installed any type it knows; see :mod:`pyllm.structured`. `parsed` of the result
                is the value.
            response_format: As in OpenAI's API: ``{"type": "json_object"}`` or ``{"type": "json_schema", …}``.
            regex: The whole text matches this regular expression of Python.
            choices: The text is one of these.
            speculative: How to guess ahead, as the argument of :class:`Llama`; False: not at all. None: as the Llama
                was made. Each token is chosen as without: what differs is the rounding of logits that are computed
                together, where two tokens are almost equally likely. Of several texts at once none is guessed ahead.
            num_beams: Search for the likeliest texts with so many beams, as transformers does, instead of sampling; 1:
                no beam search. The choices are the best `n` texts, the best first, with their ``score``. The context
                needs ``n_seq_max`` of at least `num_beams`. Processors that are functions of the ids, stopping
                criteria and stop strings work; a stream, samplers, grammars, log-probabilities and drafts do not.
            length_penalty: The score of a text is the sum of its log-probabilities, divided by its number of tokens to
                this power; None: 1.
            early_stopping: When a beam search ends, once it has `num_beams` texts: True: at once; False or None: when
                no beam would beat the worst of them with its present length; "never": when none would with any length.
            num_return_sequences: Another name of `n`, that of transformers; at most `num_beams` in a beam search.
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

        It gives what it has, with the finish_reason "abort"; an embedding that is running raises DecodeAborted.
        Nothing happens when no call is running.
        """
        with self._abort_lock:
            running = self._running
        if running is not None:
            running.abort()
        self._abort_embedding()

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

    def check_invariants(self) -> None:
        """Compare what is known of the KV cache with llama.cpp's memory, between two calls.

        A diagnostic for tests and bug reports: it waits for the call that is running, and changes nothing.

        Raises:
            InvariantError: They contradict each other, which is a defect of pyllm. ``.problems`` lists how.
            StreamOpenError: A stream is open in this thread.
        """
        self._acquire(None)
        try:
            problems = self._cache.problems()
        finally:
            self._release()
        if problems:
            raise InvariantError("; ".join(problems), problems=problems)

    def _refuse_open_stream(self) -> None:
        """Refuse to wait for a stream that nobody could go on reading."""
        if self._stream_thread == threading.get_ident():
            raise StreamOpenError(
                "a stream of this Llama is still open in this thread: read it to its end or close() it first, "
                "or use a second Llama on the same model"
            )

    def _acquire(self, session: CompletionSession | None) -> None:
        self._refuse_open_stream()
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
                self._abort_drafts()

    def _take_abort(self) -> None:
        """Let an abort that came between two decodes end nobody else's."""
        self.context.clear_abort()
        self._clear_abort_of_drafts()


def _lasting(name: Any) -> Any:
    """The path of a file so that it stays right in another folder; anything else as it is."""
    is_file = isinstance(name, (str, os.PathLike)) and os.path.exists(name)
    return os.path.abspath(name) if is_file else name


def _load_again(cls: type[Llama], model: str | Model, arguments: dict[str, Any]) -> Llama:
    return cls(model, **arguments)


__all__ = ["Llama", "LogitsProcessor", "StreamOpenError"]
