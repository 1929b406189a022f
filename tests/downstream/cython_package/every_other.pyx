"""A package of somebody else: a sampler in C that allows tokens of one parity, and a greedy loop over llama.h."""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t

from pyllm.core cimport Batch, Context, Model, Sampler, Vocab
from pyllm.includes cimport llama as lib


# ---- a native sampler: no Python runs while it samples

cdef const char * name(const lib.llama_sampler * sampler) noexcept nogil:
    return b"every-other"


cdef void apply(lib.llama_sampler * sampler, lib.llama_token_data_array * candidates) noexcept nogil:
    cdef size_t i
    cdef int32_t parity = <int32_t> <size_t> sampler.ctx
    for i in range(candidates.size):
        if candidates.data[i].id % 2 != parity:
            candidates.data[i].logit = -INFINITY


cdef lib.llama_sampler * clone(const lib.llama_sampler * sampler) noexcept nogil:
    return lib.llama_sampler_init(sampler.iface, sampler.ctx)


cdef lib.llama_sampler_i interface
interface.name = name
interface.accept = NULL
interface.apply = apply
interface.reset = NULL
interface.clone = clone
interface.free = NULL
interface.backend_init = NULL
interface.backend_accept = NULL
interface.backend_apply = NULL
interface.backend_set_input = NULL


class EveryOther(Sampler):
    """Allow tokens with an even (0) or odd (1) id only."""

    def __init__(self, int parity):
        cdef lib.llama_sampler * sampler = lib.llama_sampler_init(
            &interface, <lib.llama_sampler_context_t> <size_t> parity
        )
        (<Sampler?> self).own(sampler, "llama_sampler_init", {"parity": parity})


# ---- functions of llama.h on pyllm's objects

def count_special(Model model not None):
    """The number of control tokens: one C call for each token, and no Python."""
    cdef const lib.llama_vocab * vocab = (<Vocab> model.vocab).require()
    cdef int32_t token
    cdef int32_t n = 0
    for token in range(lib.llama_vocab_n_tokens(vocab)):
        n += lib.llama_vocab_is_control(vocab, token)
    return n


def greedy(Context context not None, tokens, int n):
    """Generate `n` tokens with llama_decode itself, under the context's lock."""
    cdef lib.llama_context * ptr
    cdef const float * row
    cdef int32_t i, token, best
    cdef int32_t code
    found = []
    context.decode(Batch.from_arrays(tokens))
    context.acquire()
    try:
        ptr = context.require()
        for _ in range(n):
            row = lib.llama_get_logits_ith(ptr, -1)
            best = 0
            for i in range(context.n_vocab):
                if row[i] > row[best]:
                    best = i
            found.append(best)
            token = best
            with nogil:
                code = lib.llama_decode(ptr, lib.llama_batch_get_one(&token, 1))
            if code:
                raise RuntimeError(f"llama_decode returned {code}")
    finally:
        context.release()
    return found


def assertion(Context context not None):
    """What llama.cpp throws, or asserts, is a Python exception here too."""
    lib.llama_vocab_get_text((<Vocab> context.model.vocab).require(), 1 << 30)
