"""Scorer: probabilities of tokens in many texts, computed in batches that share their beginnings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError
from pyllm.eval.contexts import Scorable, Text, is_text, model_of, scoring_context, tokens_of
from pyllm.eval.rows import Logits, RowWorkers
from pyllm.eval.tree import Group, Line, common_prefix, groups, ordered, rebuilt
from pyllm.eval.types import Score, TokenLogprobs

DEFAULT_N_BATCH = 512
DEFAULT_N_SEQ = 64
_LONGEST_BY_DEFAULT = 4096

# Given: rows of logits, and for each wanted probability its row, the line it belongs to, and its token's index there.
Consumer = Callable[[Logits, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], None]


class Scorer:
    """A context that is kept for scoring, for several calls of :meth:`score` and :meth:`logprobs`.

    Not to be used by two threads at once, nor a Context that was given to it by others meanwhile.

    Args:
        llm: A Llama or a Model, for which a context is made, or a Context (best with ``kv_unified=True`` and several
            sequences: otherwise nothing is shared). Only a Context brings adapters and control vectors along.
        n_ctx: Most tokens of one text. None: the length the model was trained with, at most 4096. Of a Context,
            its own size.
        n_batch: How many tokens to compute at once, about.
        n_seq_max: Most texts at once.
        **context_arguments: Other arguments of :class:`pyllm.core.context.Context`, e.g. ``n_threads=4``.

    Raises:
        InvalidArgumentError: The model is an encoder, or has no probabilities of a next token for another reason.

    Example:
        >>> with Scorer(llm) as scorer:
        ...     scorer.score(["The capital of France is"] * 2, [" Paris", " Rome"])
    """

    def __init__(
        self,
        llm: Scorable,
        *,
        n_ctx: int | None = None,
        n_batch: int = DEFAULT_N_BATCH,
        n_seq_max: int = DEFAULT_N_SEQ,
        **context_arguments: Any,
    ) -> None:
        self.model = model_of(llm)
        self.vocab = self.model.vocab
        if n_ctx is None:
            longest = llm.n_ctx_seq if isinstance(llm, Context) else _LONGEST_BY_DEFAULT
            n_ctx = min(self.model.n_ctx_train or longest, longest)
        for name, value in (("n_ctx", n_ctx), ("n_batch", n_batch), ("n_seq_max", n_seq_max)):
            if value < 1:
                raise InvalidArgumentError(f"{name} must be at least 1, not {value}")
        # Room for a long text and others beside it; not more than the model knows, which llama.cpp would warn of.
        n_cells = min(n_ctx + n_batch, max(n_ctx, self.model.n_ctx_train))
        self._close = ExitStack()  # so that close() works after an error here
        with ExitStack() as stack:
            self.context = stack.enter_context(
                scoring_context(
                    llm, n_cells, context_arguments,
                    n_batch=n_batch, n_seq_max=n_seq_max, kv_unified=True, swa_full=True,
                )
            )  # fmt: skip
            self._rows = stack.enter_context(RowWorkers(self.context.n_threads_batch))
            self._close = stack.pop_all()
        self.n_ctx = min(n_ctx, self.context.n_ctx_seq)
        self.n_batch = min(n_batch, self.context.n_batch)
        # In a cache of separate parts, and in a recurrent state, a token belongs to one sequence.
        self._shares = self.context.n_ctx_seq == self.context.n_ctx and not self.model.is_recurrent
        # What the memory holds from the last group, as sequence `_source`.
        self._source = 0
        self._fresh = True

    def close(self) -> None:
        """Free the context, if it was made here. Closing twice is allowed."""
        self._close.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---- what is asked for

    def logprobs(
        self, texts: Iterable[Text], *, top_k: int = 0, overlap: int | None = None, parse_special: bool = True
    ) -> list[TokenLogprobs]:
        """The probability of every token of each text; see :func:`pyllm.eval.logprobs`."""
        if not 0 <= top_k <= self.context.n_vocab:
            raise InvalidArgumentError(f"top_k must be from 0 to n_vocab={self.context.n_vocab}, not {top_k}")
        all_tokens = [tokens_of(self.vocab, text, parse_special=parse_special) for text in texts]
        results = [TokenLogprobs.empty(tokens, top_k, self.vocab) for tokens in all_tokens]
        lines: list[Line] = []
        places: list[tuple[TokenLogprobs, int]] = []  # of each line: the result, and where in it the line begins
        for result in results:
            for start, line in self._windows(result.tokens, overlap, len(lines)):
                lines.append(line)
                places.append((result, start))

        def consume(
            logits: Logits, rows: NDArray[np.int64], owners: NDArray[np.int64], targets: NDArray[np.int64]
        ) -> None:
            sums, entropy = self._rows.logsumexp(logits), self._rows.entropy(logits)
            top = self._rows.top_k(logits, top_k) if top_k else None
            predicted = np.empty(len(rows), np.int32)
            for owner in np.unique(owners):
                mine = owners == owner
                predicted[mine] = lines[owner].tokens[targets[mine]]
            values = logits[rows, predicted] - sums[rows]
            ranks = self._rows.ranks(logits, rows, predicted)
            for owner in np.unique(owners):
                mine = owners == owner
                result, start = places[owner]
                at = start + targets[mine]
                result.logprobs[at], result.ranks[at] = values[mine], ranks[mine]
                result.entropy[at] = entropy[rows[mine]]
                if top is not None:
                    result.top_tokens[at], result.top_logprobs[at] = top[0][rows[mine]], top[1][rows[mine]]

        self._run(lines, consume)
        return results

    def score(
        self, prompts: Text | Sequence[Text], continuations: Sequence[Text], *, parse_special: bool = True
    ) -> list[Score]:
        """The probability of continuations; see :func:`pyllm.eval.score`."""
        return self.score_tokens(pairs(self.vocab, prompts, continuations, parse_special=parse_special))

    def score_tokens(self, sequences: Sequence[tuple[NDArray[np.int32], int]]) -> list[Score]:
        """As :meth:`score`, for tokens.

        Args:
            sequences: All tokens of prompt and continuation, int32, shape (n,), and how many of them are prompt.

        Raises:
            InvalidArgumentError: A sequence is longer than the context, or nothing stands before what is scored.
        """
        lines = []
        for i, (tokens, first) in enumerate(sequences):
            if first == len(tokens):
                continue
            if not 1 <= first <= len(tokens):
                raise InvalidArgumentError(
                    f"sequence {i}: the first token to score is {first} of {len(tokens)}; the first token of a text "
                    "has no probability, and this model puts no token of its own before it"
                )
            if len(tokens) - 1 > self.n_ctx:
                raise InvalidArgumentError(
                    f"prompt and continuation {i} have {len(tokens)} tokens, and n_ctx={self.n_ctx} allows "
                    f"{self.n_ctx + 1}; shorten the prompt, or use a larger n_ctx"
                )
            lines.append(Line(i, tokens, first))
        logprobs = [np.zeros(len(tokens) - first, np.float32) for tokens, first in sequences]
        greedy = [np.ones(len(tokens) - first, np.bool_) for tokens, first in sequences]

        def consume(
            logits: Logits, rows: NDArray[np.int64], owners: NDArray[np.int64], targets: NDArray[np.int64]
        ) -> None:
            sums, best = self._rows.logsumexp(logits), self._rows.argmax(logits)
            for owner in np.unique(owners):
                mine = owners == owner
                line, at = lines[owner], rows[mine]
                predicted, where = line.tokens[targets[mine]], targets[mine] - line.first
                logprobs[line.index][where] = logits[at, predicted] - sums[at]
                greedy[line.index][where] = best[at] == predicted

        self._run(lines, consume)
        return [
            Score(float(values.sum(dtype=np.float64)), bool(best.all()), len(values), values)
            for values, best in zip(logprobs, greedy, strict=True)
        ]

    # ---- how it is computed

    def _windows(self, tokens: NDArray[np.int32], overlap: int | None, index: int) -> Iterable[tuple[int, Line]]:
        """A text in pieces that fit: where each begins, and the piece; every token but the first is scored once."""
        context = max(1, self.n_ctx // 2) if overlap is None else overlap
        if not 1 <= context <= self.n_ctx:
            raise InvalidArgumentError(f"overlap must be from 1 to n_ctx={self.n_ctx}, not {context}")
        done = 1
        while done < len(tokens):
            start = 0 if done == 1 else done - context
            piece = tokens[start : start + self.n_ctx + 1]
            if start and self.vocab.add_bos and self.vocab.bos is not None:
                piece = piece.copy()
                piece[0] = self.vocab.bos
            yield start, Line(index, piece, done - start)
            index, done = index + 1, start + len(piece)

    def _run(self, lines: Sequence[Line], consume: Consumer) -> None:
        # `owners` that a consumer sees are positions in `lines`.
        numbers = {id(line): i for i, line in enumerate(lines)}
        context = self.context
        self._fresh = True
        n_cells = context.n_ctx if self._shares else context.n_ctx_seq * context.n_seq_max
        parts = groups(
            ordered(lines), n_seq=context.n_seq_max, n_cells=n_cells, n_batch=self.n_batch, share=self._shares
        )
        for group in parts:
            ready = group if self._prepare(group) else rebuilt(group, self._shares)
            owners = np.array([numbers[id(member)] for member in ready.members], np.int64)
            self._compute(ready, owners, consume)

    def _prepare(self, group: Group) -> bool:
        """Bring the memory to the state from which a group goes on; False when it had to be emptied instead."""
        memory, kept, source = self.context.memory, group.kept, self._source
        n = len(group.members)
        self._source = n - 1
        if self._fresh or kept == 0:
            memory.clear(data=False)
            self._fresh = False
            return kept == 0
        # A sliding window may have dropped the beginning, and a recurrent state cannot go back.
        if memory.pos_min(source) != 0 or not memory.rm(source, kept):
            memory.clear(data=False)
            return False
        for i in range(self.context.n_seq_max):
            if i != source:
                memory.rm(i)
        for i in range(n):
            if i != source:
                memory.cp(source, i)
        if source >= n:
            memory.rm(source)
        return True

    def _compute(self, group: Group, owners: NDArray[np.int64], consume: Consumer) -> None:
        order = np.argsort(group.nodes, kind="stable")
        nodes, members, targets = group.nodes[order], group.owners[order], group.targets[order]
        for a in range(0, len(group.tokens), self.context.n_batch):
            part = slice(a, a + self.context.n_batch)
            self.context.decode(
                Batch.from_arrays(
                    group.tokens[part], pos=group.pos[part], seq_ids=group.seq_ids[part], outputs=group.outputs[part]
                )
            )
            first, last = np.searchsorted(nodes, (a, a + self.context.n_batch))
            if first == last:
                continue
            row_of = np.cumsum(group.outputs[part]) - 1
            rows = row_of[nodes[first:last] - a]
            # No variable may keep the array: the next decode may have to move the memory below it.
            consume(np.asarray(self.context.logits), rows, owners[members[first:last]], targets[first:last])


def pairs(
    vocab: Vocab, prompts: Text | Sequence[Text], continuations: Sequence[Text], *, parse_special: bool = True
) -> list[tuple[NDArray[np.int32], int]]:
    """Tokens of each prompt with its continuation, and how many of them count as prompt.

    Texts are joined and then turned into tokens, as the model would see them. What counts as prompt are the tokens
    with which the prompt alone begins too: a token that reaches over the border belongs to the continuation.

    Raises:
        InvalidArgumentError: There are not as many prompts as continuations, or one is text and the other is tokens.
    """
    if isinstance(continuations, (str, bytes)):
        raise InvalidArgumentError("continuations must be several: put a single one into a list")
    befores: Any = [prompts] * len(continuations) if is_text(prompts) else prompts
    if len(befores) != len(continuations):
        raise InvalidArgumentError(f"{len(befores)} prompts do not go with {len(continuations)} continuations")
    result = []
    for i, (prompt, continuation) in enumerate(zip(befores, continuations, strict=True)):
        if isinstance(prompt, (str, bytes)) and isinstance(continuation, (str, bytes)):
            joined = _bytes(prompt) + _bytes(continuation)
            alone = tokens_of(vocab, prompt, parse_special=parse_special)
            whole = tokens_of(vocab, joined, parse_special=parse_special) if continuation else alone
            # Some models put a token behind every text: behind the prompt alone it is none of the prompt's.
            result.append((whole, common_prefix(alone, whole)))
        elif isinstance(prompt, (str, bytes)) or isinstance(continuation, (str, bytes)):
            raise InvalidArgumentError(f"prompt and continuation {i} must both be text, or both be tokens")
        else:
            before, after = vocab.as_token_array(prompt), vocab.as_token_array(continuation)
            result.append((np.concatenate((before, after)), len(before)))
    return result


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
