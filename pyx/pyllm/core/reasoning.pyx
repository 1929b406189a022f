"""A limit on how long a model thinks, and grammars that hold only what it says afterwards.

Wraps ``common_reasoning_budget_init`` of llama.cpp's library for its own programs.
"""

from libc.stdint cimport INT32_MAX, int32_t
from libcpp cimport bool
from libcpp.vector cimport vector

from pyllm import errors
from pyllm.core import common as _  # no-cython-lint: it silences the log of llama-common
from pyllm.core.arguments cimport int32
from pyllm.core.sampler cimport Sampler
from pyllm.core.vocab cimport Vocab
from pyllm.includes cimport llama as lib
from pyllm.includes._translate cimport translate

from pyllm.core.samplers import Grammar


cdef extern from "reasoning.hpp" namespace "pyllm" nogil:
    lib.llama_sampler * make_reasoning(
        const lib.llama_vocab * vocab, const vector[int32_t] & start, const vector[vector[int32_t]] & ends,
        const vector[int32_t] & forced, int32_t budget, const vector[int32_t] & beginning,
        const lib.llama_sampler * grammar, bool waits, bool replays
    ) except +translate
    int reasoning_state(const lib.llama_sampler * self)
    bool reasoning_force(lib.llama_sampler * self)


class Reasoning(Sampler):
    """Watch the reasoning block of an answer: end it when it has become too long, keep a grammar away from it.

    It stands first in a chain, or in the place of the grammar.

    Args:
        vocab: The tokenizer of the model.
        start: Tokens that open a block.
        ends: Sequences of tokens, each of which closes it.
        budget: Tokens that a block may have; None for any number. 0 closes it at once.
        forced: Tokens that are forced then; None for the first of `ends`.
        beginning: Tokens with which the prompt begins the answer: a template may have opened the block already.
        grammar: A :class:`pyllm.core.samplers.Grammar` to hold the answer to; it is cloned, as it is now.
        waits: Whether the grammar holds only outside of the block.
        replays: Whether the grammar sees the tokens that closed the block, because they may trigger it.

    Raises:
        InvalidArgumentError: `start` or `ends` is empty, or an id is not in the vocabulary.
    """

    def __init__(
        self, Vocab vocab not None, start, ends, *, budget=None, forced=None, beginning=(), grammar=None,
        bint waits=True, bint replays=False,
    ):
        cdef const lib.llama_vocab * c_vocab
        cdef const lib.llama_sampler * c_grammar = NULL
        cdef lib.llama_sampler * ptr
        cdef vector[vector[int32_t]] c_ends
        cdef Sampler root = None
        cdef vector[int32_t] c_start = _tokens(vocab, start)
        cdef vector[int32_t] c_forced
        cdef vector[int32_t] c_beginning = _tokens(vocab, beginning)
        cdef int32_t c_budget = INT32_MAX if budget is None else int32(budget, "budget")
        for end in ends:
            c_ends.push_back(_tokens(vocab, end))
        if c_start.empty() or c_ends.empty() or any([len(end) == 0 for end in ends]):
            raise errors.InvalidArgumentError("start and each of ends must be at least one token")
        if c_budget < 0:
            raise errors.InvalidArgumentError(f"budget must be at least 0, or None for no limit, not {budget}")
        c_forced = c_ends[0] if forced is None else _tokens(vocab, forced)
        if c_forced.empty():
            raise errors.InvalidArgumentError("forced must be at least one token")
        if grammar is not None and not isinstance(grammar, Grammar):
            raise errors.InvalidArgumentError(f"grammar must be a Grammar of pyllm.core.samplers, not {grammar!r}")
        c_vocab = vocab.require()
        if grammar is not None:
            root = (<Sampler> grammar).begin()
            c_grammar = (<Sampler> grammar).ptr
        try:
            ptr = make_reasoning(c_vocab, c_start, c_ends, c_forced, c_budget, c_beginning, c_grammar, waits, replays)
        finally:
            if root is not None:
                (<Sampler> grammar).finish(root)
        (<Sampler?> self).own(
            ptr, "common_reasoning_budget_init", {"budget": budget, "grammar": grammar}, vocab.model
        )

    @property
    def state(self):
        """"idle" before a block, "counting" in it, "waiting" and "forcing" when its budget is used up, "done" (str).

        Wraps ``common_reasoning_budget_get_state``.
        """
        cdef int state = reasoning_state((<Sampler?> self).require())
        return ("idle", "counting", "forcing", "waiting", "done")[state]

    def force(self):
        """End the block now.

        Returns:
            bool: False where there is no block that is open.

        Wraps ``common_reasoning_budget_force``.
        """
        cdef bool done
        cdef Sampler root = (<Sampler?> self).begin()
        try:
            done = reasoning_force((<Sampler?> self).ptr)
        finally:
            (<Sampler?> self).finish(root)
        return done


cdef vector[int32_t] _tokens(Vocab vocab, tokens) except *:
    cdef vector[int32_t] result
    for token in tokens:
        vocab.check_token(int32(token, "a token"))
        result.push_back(token)
    return result
