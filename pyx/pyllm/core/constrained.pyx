"""`Constrained`: a grammar that is asked about the chosen token first, and about the whole vocabulary only then."""

import weakref

cimport cython
from libc.stdint cimport int32_t, uintptr_t
from libcpp cimport bool

from pyllm import errors
from pyllm.core.sampler cimport Chain, Sampler
from pyllm.core.vocab cimport Vocab
from pyllm.includes cimport llama as lib

from pyllm.core.gbnf import check
from pyllm.core.samplers import Grammar
from pyllm.core.introspection import not_pickled, signature


# What a grammar sees of the tokens, by model.
cdef object _tables = weakref.WeakKeyDictionary()


cdef class TokenTable:
    """What a grammar sees of each token of a vocabulary; made once for a model."""

    __reduce__ = not_pickled("it is made from a vocabulary; pickle the vocabulary")


cdef TokenTable _table(Vocab vocab):
    cdef TokenTable made
    cdef const lib.llama_vocab * ptr
    found = _tables.get(vocab.model)
    if found is not None:
        return found
    made = TokenTable.__new__(TokenTable)
    ptr = vocab.use()
    try:
        with nogil:
            made.c = make_token_table(ptr)
    finally:
        vocab.model.done()
    _tables[vocab.model] = made
    return made


@cython.no_gc_clear
cdef class Constrained(Sampler):
    """Samplers whose choice must follow a grammar.

    The samplers choose first, as if there were no grammar. A choice that fits stands; only one that does not is made
    again among the tokens that fit. It is how llama.cpp's own programs sample, and next to nothing where the model
    keeps to the form by itself. Without samplers that cut off candidates (top-k, top-p, …) the tokens have the
    probabilities that they have among those that fit.

    Args:
        vocab: The tokenizer of the model.
        grammar: A :class:`pyllm.core.samplers.Grammar`, or another sampler that makes the logits of what it forbids
            minus infinity and leaves the others; it is taken over.
        samplers: The chain, which is taken over; it ends with a sampler that selects.
        control_tokens: Whether control tokens may stand for the text that is their name. False keeps them out, and
            tokens that would make invalid UTF-8. None: False where the grammar is not lazy and names no tokens.

    Raises:
        SamplerError: One of them belongs to a chain already, or to another model.

    When no token fits, sampling raises GrammarError: the vocabulary lacks what the grammar asks for.
    """

    __signature__ = signature

    def __init__(self, Vocab vocab not None, Sampler grammar not None, Chain samplers not None, *, control_tokens=None):
        cdef TokenTable table = _table(vocab)
        cdef bool text_only = False
        cdef bool by_first_byte = False
        if isinstance(grammar, Grammar):
            rules = check(grammar.params["grammar"], grammar.params["root"])
            is_lazy = "trigger_patterns" in grammar.params or "trigger_tokens" in grammar.params
            if control_tokens is None:
                control_tokens = is_lazy or rules.names_tokens
            # Before its trigger a lazy grammar has no say, and the text that came before is not known to it.
            text_only = not control_tokens and not is_lazy
            # A token that is named is allowed by its id, and llama.cpp refuses the first bytes of too many characters
            # where a wide one is excluded.
            by_first_byte = not rules.names_tokens and not rules.excludes_wide
        grammar.acquire()
        try:
            samplers.acquire()
            try:
                grammar.require()
                samplers.require()
                for sampler in (grammar, samplers):
                    if (<Sampler> sampler).chain is not None:
                        raise errors.SamplerError(f"{sampler!r} belongs to a chain already; give a .clone() of it")
                if any([model is not vocab.model for model in [grammar.model, *samplers.used_models()]]):
                    raise errors.SamplerError("grammar and samplers were made for another model than the vocabulary's")
                kinds = []
                for i in range(lib.llama_sampler_chain_n(samplers.ptr)):
                    kinds.append(samplers.kinds.get(<uintptr_t> lib.llama_sampler_chain_get(samplers.ptr, i)))
                self.own(
                    make_constrained(grammar.ptr, samplers.ptr, table.c, text_only, by_first_byte),
                    "llama_sampler_init",
                    {"grammar": (type(grammar), grammar.params), "samplers": tuple(kinds)},
                    vocab.model,
                )
                grammar.chain = self
                samplers.chain = self
                self.grammar_ = weakref.ref(grammar)
                self.samplers_ = weakref.ref(samplers)
            finally:
                samplers.release()
        finally:
            grammar.release()

    cdef constrained * body(self) except NULL:
        return <constrained *> self.require().ctx

    cdef int forget(self) except -1:
        for reference in (self.grammar_, self.samplers_):
            member = None if reference is None else reference()
            if member is not None:
                (<Sampler> member).forget()
        return Sampler.forget(self)

    @property
    def grammar(self):
        """The grammar (Sampler). It belongs to this sampler."""
        cdef Sampler found = None if self.grammar_ is None else self.grammar_()
        if found is None:
            cls, params = self.params["grammar"]
            found = cls.__new__(cls)
            found.params = params
            found.model = self.model
            found.ptr = self.body().grammar
            found.chain = self
            self.grammar_ = weakref.ref(found)
        return found

    @property
    def samplers(self):
        """The samplers (Chain). They belong to this sampler."""
        cdef Chain found = None if self.samplers_ is None else self.samplers_()
        cdef int32_t i
        if found is None:
            found = Chain.__new__(Chain)
            found.ptr = self.body().chain
            found.members = weakref.WeakValueDictionary()
            found.models = [self.model]
            found.kinds = {}
            for i, kind in enumerate(self.params["samplers"]):
                if kind is not None:
                    found.kinds[<uintptr_t> lib.llama_sampler_chain_get(found.ptr, i)] = kind
            found.chain = self
            self.samplers_ = weakref.ref(found)
        return found

    @property
    def n_chosen(self):
        """How many tokens were chosen (int)."""
        return self.body().n_chosen

    @property
    def n_rejected(self):
        """How many choices did not fit the grammar, and were made again (int)."""
        return self.body().n_rejected

    def __repr__(self):
        if self.ptr == NULL:
            return "Constrained(closed)"
        return f"Constrained({self.grammar!r}, {self.samplers!r})"
