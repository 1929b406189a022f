"""Completions by their old names, and the cache that they begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pyllm.compat.llama_cpp.calls import call_arguments, completion_dict
from pyllm.compat.llama_cpp.evaluation import Evaluation
from pyllm.compat.llama_cpp.llama_cache import BaseLlamaCache, common_prefix
from pyllm.compat.llama_cpp.llama_grammar import LlamaGrammar


class Completions(Evaluation):
    """The part of :class:`Llama` that continues prompts."""

    model_path: str
    cache: BaseLlamaCache | None
    tokenize: Callable[..., list[int]]
    _has_own_tokenizer: bool

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Keep what completions compute, and begin with what has been computed already; None: no more."""
        self.cache = cache

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: Any = None,
        logits_processor: Any = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
        **more: Any,
    ) -> Any:
        """Continue a prompt. Calling the Llama is the same.

        Args:
            max_tokens: Tokens at most; None, 0 and less: until the text or the context ends.
            model: What the result calls the model; None: its path.
            **more: Every other argument of :meth:`pyllm.Llama.create_completion`.

        The other arguments are those of :meth:`pyllm.Llama.create_completion`.

        Returns:
            A dict in the shape of OpenAI's API; with `stream` an iterator of such dicts.

        Raises:
            InvalidArgumentError: The prompt is longer than the context, or an argument is out of range.
            UnknownArgumentError: There is no such argument.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "more")}
        arguments = call_arguments(given, {"repeat_last_n": self.last_n_tokens_size, **more})
        for name in ("suffix", "logprobs", "echo"):
            if given[name] is not None:
                arguments.setdefault(name, given[name])
        text: Any = prompt
        if isinstance(prompt, str) and self._has_own_tokenizer:
            text = self.tokenize(prompt.encode(), add_bos=True, special=True)
        elif not isinstance(prompt, (str, bytes)):
            text = list(prompt)
        name = self.model_path if model is None else model
        self._recall(text)
        if stream:
            return self._streamed(self.llm.stream(text, **arguments), name)
        result = self.llm.create_completion(text, **arguments)
        self._done()
        return completion_dict(result, name)

    __call__ = create_completion

    def _streamed(self, chunks: Iterator[Any], name: str) -> Iterator[dict[str, Any]]:
        try:
            for chunk in chunks:
                shaped = completion_dict(chunk, name)
                shaped.pop("usage", None)  # chunks have none there
                yield shaped
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
            self._done()

    def _recall(self, prompt: Any) -> None:
        """Begin with a state of the cache if it has more of the prompt than the context."""
        if self.cache is None:
            return
        ids = self.llm.tokenize(prompt) if isinstance(prompt, (str, bytes)) else prompt
        wanted = np.asarray(ids, np.int64)
        try:
            state = self.cache[tuple(wanted.tolist())]
        except KeyError:
            return
        self._follow()
        if common_prefix(wanted, state.input_ids) > common_prefix(wanted, self._tokens):
            self.load_state(state)

    def _done(self) -> None:
        """Take over what a completion has computed."""
        if self.llm.context.closed:
            return
        with self._guard:
            self._follow()
            if self.cache is not None and len(self._tokens):
                self.cache[tuple(self._tokens.tolist())] = self.save_state()


__all__ = ["Completions"]
