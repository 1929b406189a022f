"""Token by token: what has been computed, the logits, one choice, and all of it again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm.compat.llama_cpp.calls import sampling_arguments
from pyllm.compat.llama_cpp.state import LlamaState
from pyllm.core.batch import Batch
from pyllm.errors import ClosedError, InvalidArgumentError, PyllmError

if TYPE_CHECKING:
    import pyllm
    from pyllm.compat.llama_cpp.llama_speculative import LlamaDraftModel
    from pyllm.core.sampler import Chain


class Evaluation:
    """The part of :class:`Llama` that computes tokens without making text of them."""

    llm: pyllm.Llama
    draft_model: LlamaDraftModel | None
    last_n_tokens_size: int
    _logits_all: bool
    _seed: int | None

    def _start_evaluation(self) -> None:
        self._guard = threading.RLock()
        self._tokens: NDArray[np.int32] = np.empty(0, np.int32)
        self._rows: list[NDArray[np.float32]] = []  # with logits_all the row of each token
        self._row: NDArray[np.float32] | None = None  # the row of the last token
        self._chain: tuple[Any, Chain] | None = None
        self._sampled: int | None = None

    # ---- what there is

    @property
    def n_tokens(self) -> int:
        """How many tokens have been computed. Set it to a smaller number to go back."""
        return len(self._tokens)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        if not 0 <= n <= len(self._tokens):
            raise InvalidArgumentError(f"n_tokens can be set to at most {len(self._tokens)}, not {n}")
        if n < len(self._tokens):
            self._tokens = self._tokens[:n]
            del self._rows[n:]
            self._row = self._rows[-1] if self._rows else None
            self._chain = None

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """The tokens that have been computed, int32, shape (n_tokens,)."""
        return self._tokens.copy()

    @property
    def _input_ids(self) -> NDArray[np.int32]:
        return self._tokens.copy()

    @property
    def scores(self) -> NDArray[np.float32]:
        """Logits, float32: with ``logits_all`` shape (n_tokens, n_vocab), else (1, n_vocab): those of the last token.

        Only what has been computed by :meth:`eval` is there.
        """
        if self._logits_all and self._rows:
            return np.stack(self._rows)
        if self._row is None:
            return np.empty((0, len(self.llm.vocab)), np.float32)
        return self._row[None].copy()

    @property
    def _scores(self) -> NDArray[np.float32]:
        return self.scores

    @property
    def eval_tokens(self) -> deque[int]:
        """The tokens that have been computed."""
        return deque(self._tokens.tolist())

    @property
    def eval_logits(self) -> deque[list[float]]:
        """The rows of :attr:`scores` as lists."""
        return deque(self.scores.tolist())

    # ---- computing

    def reset(self) -> None:
        """Begin anew. What is in the KV cache is still reused as far as it fits."""
        with self._guard:
            self._tokens = np.empty(0, np.int32)
            self._rows, self._row = [], None
            self._chain = None

    def eval(self, tokens: Sequence[int]) -> None:
        """Compute tokens behind those there are.

        Raises:
            InvalidArgumentError: A token does not exist, or the context has no room for them.
        """
        with self._guard:
            new = self.llm.vocab.as_token_array(list(tokens))
            self._compute(np.concatenate([self._tokens, new]), all_rows=self._logits_all)

    def _compute(self, ids: NDArray[np.int32], *, all_rows: bool) -> None:
        """Bring exactly these tokens into the KV cache, with the logits of the last one, or of all."""
        n_ctx = self.llm.context.n_ctx_seq
        if len(ids) > n_ctx:
            raise InvalidArgumentError(f"there are {len(ids)} tokens and the context holds n_ctx={n_ctx}")
        if len(ids) == 0:
            raise InvalidArgumentError("there is no token to compute")
        llm, context = self.llm, self.llm.context
        llm._calls.acquire(None)
        try:
            cache = llm._cache
            if all_rows and len(self._rows) < len(self._tokens):
                cache.forget()  # what others computed has left no rows
            n = cache.reuse(ids)
            if all_rows and n > len(self._rows):
                cache.forget()
                n = cache.reuse(ids)
            del self._rows[n:]
            while n < len(ids):
                end = min(n + context.n_batch, len(ids))
                outputs = "all" if all_rows else "last" if end == len(ids) else "none"
                context.decode(Batch.from_arrays(ids[n:end], pos=np.arange(n, end, dtype=np.int32), outputs=outputs))
                if all_rows:
                    self._rows += list(np.array(context.logits))
                n = end
            cache.remember(ids)
            self._tokens = ids
            self._row = self._rows[-1] if all_rows else np.array(context.logits[-1])
        finally:
            llm._calls.release()

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        grammar: Any = None,
        idx: int | None = None,
    ) -> int:
        """Choose the token after those that have been computed.

        Args:
            idx: The token to choose after, of those that the last :meth:`eval` computed with ``logits_all``.

        The other arguments are those of :meth:`create_completion`.

        Raises:
            InvalidArgumentError: Nothing has been computed.
        """
        given = _of_sampling(locals())
        with self._guard:
            row = self._row_of(idx)
            processors = [] if logits_processor is None else [logits_processor]
            return self._choose(self._chain_for(given), row, processors, self._tokens)

    def _row_of(self, idx: int | None) -> NDArray[np.float32]:
        if self.llm.context.closed:
            raise ClosedError("the Llama is closed")
        if self._row is None:
            if not len(self._tokens):
                raise InvalidArgumentError("nothing has been computed: call eval() first")
            self._compute(self._tokens, all_rows=self._logits_all)
        if idx is None:
            assert self._row is not None
            return self._row
        if not self._rows:
            raise InvalidArgumentError("idx needs logits_all=True: only the logits of the last token are kept")
        if not -len(self._rows) <= idx < len(self._rows):
            raise InvalidArgumentError(f"idx must be less than {len(self._rows)}, not {idx}")
        return self._rows[idx]

    def _chain_for(self, given: dict[str, Any]) -> Chain:
        """The samplers for these arguments: the same ones as long as they are asked for, so that chance goes on."""
        from pyllm.core.sampler import Chain
        from pyllm.core.samplers import Grammar
        from pyllm.params import SamplingParams
        from pyllm.sampling import accept_prompt, build_chain, new_seed

        key = tuple((name, str(value) if name == "grammar" else value) for name, value in sorted(given.items()))
        if self._chain is not None and self._chain[0] == key:
            return self._chain[1]
        arguments = sampling_arguments(given)
        grammar = arguments.pop("grammar", None)
        params = SamplingParams(repeat_last_n=self.last_n_tokens_size, **arguments)
        chain = build_chain(params, self.llm.vocab, new_seed() if self._seed is None else self._seed)
        if grammar is not None:
            whole = Chain(Grammar(self.llm.vocab, grammar))
            while len(chain):
                whole.add(chain.remove(0))
            chain = whole
        accept_prompt(chain, self._tokens)
        self._chain = (key, chain)
        return chain

    def _choose(self, chain: Chain, row: NDArray[np.float32], processors: list[Any], ids: NDArray[np.int32]) -> int:
        from pyllm.processors.base import process

        if processors:
            row = row.copy()
            process(processors, ids, row)
        token = chain.apply(row)[3]
        if token is None:
            raise PyllmError("the samplers chose no token")
        chain.accept(token)
        return token

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        grammar: Any = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Token after token, without an end but for stopping criteria and the size of the context.

        What is sent to the generator is computed behind the last token, before the next is chosen.

        Args:
            tokens: The tokens to begin with.
            reset: Whether they are all; else they come behind what has been computed.
            stopping_criteria: Functions of all tokens, the newest included, and of the row it was chosen from.

        The other arguments are those of :meth:`create_completion`.
        """
        given = _of_sampling(locals())
        processors = [] if logits_processor is None else [logits_processor]
        with self._guard:
            if reset:
                self.reset()
            ids = np.concatenate([self._tokens, self.llm.vocab.as_token_array(list(tokens))])
            self._compute(ids, all_rows=self._logits_all)
            self._chain = None
            chain = self._chain_for(given)
        while True:
            with self._guard:
                rows = self._guesses(ids)
            for guess, row in rows:
                token = self._choose(chain, row, processors, ids)
                ids = np.append(ids, np.int32(token))
                sent = yield token
                if stopping_criteria is not None and stopping_criteria(ids, row):
                    return
                if sent:
                    more = self.llm.vocab.as_token_array(list(sent))
                    for extra in more.tolist():
                        chain.accept(extra)
                    ids = np.concatenate([ids, more])
                    break
                if token != guess:
                    break
            with self._guard:
                if len(ids) > self.llm.context.n_ctx_seq:
                    return
                self._compute(ids, all_rows=self._logits_all)

    def _guesses(self, ids: NDArray[np.int32]) -> list[tuple[int | None, NDArray[np.float32]]]:
        """Rows to choose from, each with the token that is right if the next row is to count."""
        row = self._row_of(None)
        if self.draft_model is None or self._logits_all:
            return [(None, row)]
        room = min(self.llm.context.n_ctx_seq - len(ids), self.llm.context.n_batch)
        draft = np.asarray(self.draft_model(ids), np.int32)[: max(0, room)]
        if not len(draft):
            return [(None, row)]
        self.llm.vocab.as_token_array(draft)
        llm, context = self.llm, self.llm.context
        llm._calls.acquire(None)
        try:
            n = llm._cache.reuse(np.concatenate([ids, draft]))
            if n != len(ids):
                return [(None, row)]
            positions = np.arange(n, n + len(draft), dtype=np.int32)
            context.decode(Batch.from_arrays(draft, pos=positions, outputs="all"))
            rows = list(np.array(context.logits))
            llm._cache.remember(np.concatenate([ids, draft]))
        finally:
            llm._calls.release()
        return list(zip([*draft.tolist(), None], [row, *rows], strict=True))

    # ---- states

    def save_state(self) -> LlamaState:
        """What has been computed: the KV cache of these tokens, and the last row of logits."""
        with self._guard:
            llm = self.llm
            if llm.context.closed:
                raise ClosedError("the Llama is closed")
            self._follow()
            llm._calls.acquire(None)
            try:
                text = llm._cache.find(None)
                data = b"" if text is None else llm._cache.state_of(text)
                tokens = np.empty(0, np.int32) if text is None else text.tokens
            finally:
                llm._calls.release()
            n_vocab = len(llm.vocab)
            scores = self.scores if len(self._tokens) == len(tokens) else np.empty((0, n_vocab), np.float32)
            return LlamaState(tokens, scores, len(tokens), data, len(data), -1 if self._seed is None else self._seed)

    def load_state(self, state: LlamaState) -> None:
        """Go on from there.

        Raises:
            StateError: It is another model's, or does not fit the context.
        """
        with self._guard:
            llm = self.llm
            if state.n_tokens:
                llm._calls.acquire(None)
                try:
                    llm._cache.adopt(None, state.input_ids, state.llama_state)
                finally:
                    llm._calls.release()
            self.reset()
            self._tokens = state.input_ids.copy()
            if len(state.scores):
                self._row = state.scores[-1].copy()
                if self._logits_all and len(state.scores) == state.n_tokens:
                    self._rows = list(state.scores.copy())
            if state.seed >= 0:
                self._seed = state.seed

    def _follow(self) -> None:
        """Take over what completions have computed since."""
        text = self.llm._cache.find(None)
        tokens = np.empty(0, np.int32) if text is None else text.tokens
        if not np.array_equal(tokens, self._tokens):
            self.reset()
            self._tokens = tokens.copy()

    @staticmethod
    def logits_to_logprobs(logits: Any, axis: int = -1) -> NDArray[np.float32]:
        """Log-probabilities of logits: log-softmax along an axis, float32."""
        values = np.asarray(logits, np.float32)
        if values.size == 0:
            return values.copy()
        shifted = values - np.max(values, axis=axis, keepdims=True)
        result: NDArray[np.float32] = shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
        return result

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens two lists begin with in common."""
        from pyllm.compat.llama_cpp.llama_cache import common_prefix

        return common_prefix(np.asarray(a, np.int64), np.asarray(b, np.int64))


def _of_sampling(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a method's arguments that choose a token, by the names of create_completion."""
    names = (
        "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "tfs_z",
        "mirostat_mode", "mirostat_eta", "mirostat_tau", "penalize_nl", "grammar",
    )  # fmt: skip
    return {"temperature": arguments["temp"], **{name: arguments[name] for name in names}}


__all__ = ["Evaluation"]
