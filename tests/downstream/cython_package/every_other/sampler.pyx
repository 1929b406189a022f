from libc.math cimport INFINITY
from libc.stdint cimport int32_t
from libcpp.vector cimport vector

from pyllm.core cimport Context, Sampler
from pyllm.includes cimport llama as lib


# A native sampler: no Python runs while it samples.
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


# Functions of llama.h on an object of pyllm.
def greedy(Context context not None, list tokens, int n):
    """Continue the tokens by `n` more, each the likeliest one (list of int)."""
    cdef vector[lib.llama_token] batch = tokens
    cdef lib.llama_context * ptr
    cdef const float * row
    cdef int32_t i, best, code
    found = []
    with context.raw_access():
        ptr = context.require()
        while len(found) < n:
            with nogil:
                code = lib.llama_decode(ptr, lib.llama_batch_get_one(batch.data(), <int32_t> batch.size()))
            if code:
                raise RuntimeError(f"llama_decode returned {code}")
            row = lib.llama_get_logits_ith(ptr, -1)
            best = 0
            for i in range(context.n_vocab):
                if row[i] > row[best]:
                    best = i
            found.append(best)
            batch.assign(1, best)
    return found
