"""Keyword arguments of a context, turned into ``llama_context_params``.

The struct starts as ``llama_context_default_params()`` and only what the caller gave is changed.
"""

import operator

from libc.stdint cimport uint32_t

from pyllm import enums, errors
from pyllm.core.arguments cimport number
from pyllm.core.model cimport Model
from pyllm.cpus import usable_cpus
from pyllm.includes cimport ggml
from pyllm.includes cimport llama as lib

from pyllm.core import backend as _backend
from pyllm.core.introspection import not_pickled, signature

# What llama.cpp keeps for each token of a KV cache beside keys and values: position, shift, set of sequences.
cdef enum:
    BYTES_OF_CELL = 40

cdef double MAX_FLOAT = 3.4e38


cdef class ContextArguments:
    """The parameters of a context, checked."""

    __reduce__ = not_pickled("make it again from its arguments")
    __signature__ = signature

    def __cinit__(self):
        self.c = lib.llama_context_default_params()

    def __init__(
        self, *, n_ctx, n_batch, n_ubatch, n_seq_max, n_rs_seq, n_outputs_max, n_outputs_max_per_seq, n_threads,
        n_threads_batch, ctx_type, rope_scaling_type, pooling_type, attention_type, flash_attn_type, rope_freq_base,
        rope_freq_scale, yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow, yarn_orig_ctx, type_k,
        type_v, embeddings, offload_kqv, no_perf, op_offload, swa_full, kv_unified,
    ):
        cdef lib.llama_context_params * c = &self.c
        self._set_sizes(
            n_ctx, n_batch, n_ubatch, n_seq_max, n_rs_seq, n_outputs_max, n_outputs_max_per_seq, yarn_orig_ctx
        )
        threads = usable_cpus() if n_threads is None else _count(n_threads, "n_threads", 1)
        c.n_threads = threads
        c.n_threads_batch = threads if n_threads_batch is None else _count(n_threads_batch, "n_threads_batch", 1)
        for n, name in ((c.n_threads, "n_threads"), (c.n_threads_batch, "n_threads_batch")):
            if n > ggml.GGML_MAX_N_THREADS:
                raise errors.InvalidArgumentError(f"{name} must be at most {ggml.GGML_MAX_N_THREADS}, not {n}")

        if ctx_type is not None:
            c.ctx_type = <lib.llama_context_type> <int> enums.coerce(enums.ContextType, ctx_type, "ctx_type")
        if rope_scaling_type is not None:
            c.rope_scaling_type = <lib.llama_rope_scaling_type> <int> enums.coerce(
                enums.RopeScalingType, rope_scaling_type, "rope_scaling_type"
            )
        if pooling_type is not None:
            c.pooling_type = <lib.llama_pooling_type> <int> enums.coerce(
                enums.PoolingType, pooling_type, "pooling_type"
            )
        if attention_type is not None:
            c.attention_type = <lib.llama_attention_type> <int> enums.coerce(
                enums.AttentionType, attention_type, "attention_type"
            )
        if flash_attn_type is not None:
            c.flash_attn_type = <lib.llama_flash_attn_type> <int> enums.coerce(
                enums.FlashAttnType, flash_attn_type, "flash_attn_type"
            )
        if rope_freq_base is not None:
            c.rope_freq_base = number(rope_freq_base, "rope_freq_base", -MAX_FLOAT, MAX_FLOAT)
        if rope_freq_scale is not None:
            c.rope_freq_scale = number(rope_freq_scale, "rope_freq_scale", -MAX_FLOAT, MAX_FLOAT)
        if yarn_ext_factor is not None:
            c.yarn_ext_factor = number(yarn_ext_factor, "yarn_ext_factor", -MAX_FLOAT, MAX_FLOAT)
        if yarn_attn_factor is not None:
            c.yarn_attn_factor = number(yarn_attn_factor, "yarn_attn_factor", -MAX_FLOAT, MAX_FLOAT)
        if yarn_beta_fast is not None:
            c.yarn_beta_fast = number(yarn_beta_fast, "yarn_beta_fast", -MAX_FLOAT, MAX_FLOAT)
        if yarn_beta_slow is not None:
            c.yarn_beta_slow = number(yarn_beta_slow, "yarn_beta_slow", -MAX_FLOAT, MAX_FLOAT)
        if type_k is not None:
            c.type_k = cache_type(type_k, "type_k")
        if type_v is not None:
            c.type_v = cache_type(type_v, "type_v")
        if embeddings is not None:
            c.embeddings = embeddings
        if offload_kqv is not None:
            c.offload_kqv = offload_kqv
        if no_perf is not None:
            c.no_perf = no_perf
        if op_offload is not None:
            c.op_offload = op_offload
        if swa_full is not None:
            c.swa_full = swa_full
        if kv_unified is not None:
            c.kv_unified = kv_unified

    cdef int _set_sizes(
        self, n_ctx, n_batch, n_ubatch, n_seq_max, n_rs_seq, n_outputs_max, n_outputs_max_per_seq, yarn_orig_ctx
    ) except -1:
        cdef lib.llama_context_params * c = &self.c
        if n_ctx is not None:
            c.n_ctx = _count(n_ctx, "n_ctx", 0)
            _check_cells(c.n_ctx)
        if n_batch is not None:
            c.n_batch = _count(n_batch, "n_batch", 1)
        if n_ubatch is not None:
            c.n_ubatch = _count(n_ubatch, "n_ubatch", 1)
        if n_seq_max is not None:
            c.n_seq_max = _count(n_seq_max, "n_seq_max", 1)
        if n_rs_seq is not None:
            c.n_rs_seq = _count(n_rs_seq, "n_rs_seq", 0)
        if n_outputs_max is not None:
            c.n_outputs_max = _count(n_outputs_max, "n_outputs_max", 0)
        if n_outputs_max_per_seq is not None:
            c.n_outputs_max_per_seq = _count(n_outputs_max_per_seq, "n_outputs_max_per_seq", 0)
        if yarn_orig_ctx is not None:
            c.yarn_orig_ctx = _count(yarn_orig_ctx, "yarn_orig_ctx", 0)
        if c.n_seq_max > lib.llama_max_parallel_sequences():
            raise errors.InvalidArgumentError(
                f"n_seq_max must be at most {lib.llama_max_parallel_sequences()}, not {c.n_seq_max}"
            )
        return 0

    cdef int check_pooling(self, Model model) except -1:
        """Refuse sizes with which llama.cpp asserts: it plans its graph with as many tokens of each sequence."""
        cdef lib.llama_context_params * c = &self.c
        cdef uint32_t n_ctx, n
        if not c.embeddings or c.n_seq_max < 2 or model.has_encoder:
            return 0
        architecture = model.meta("general.architecture")
        pooling = <int> c.pooling_type
        if pooling == lib.LLAMA_POOLING_TYPE_UNSPECIFIED:
            pooling = int(model.meta(f"{architecture}.pooling_type") or 0)
        if pooling != lib.LLAMA_POOLING_TYPE_MEAN or model.meta(f"{architecture}.attention.causal") == "false":
            return 0
        n_ctx = c.n_ctx or model.n_ctx_train
        n = min(n_ctx, c.n_batch, c.n_ubatch or c.n_batch)
        if n % c.n_seq_max:
            raise errors.InvalidArgumentError(
                f"with pooling_type='mean' n_ubatch must be a multiple of n_seq_max={c.n_seq_max}, not {n}: "
                f"give n_ubatch={max(n // c.n_seq_max, 1) * c.n_seq_max} and an n_batch that is no smaller"
            )
        if 0 < c.n_outputs_max < n:
            raise errors.InvalidArgumentError(
                f"with pooling_type='mean' every token is an output: n_outputs_max must be at least n_ubatch={n}, "
                f"not {c.n_outputs_max}, or 0"
            )
        return 0


cdef int _check_cells(uint32_t n_ctx) except -1:
    """Refuse sizes for which the mere list of cells fills the machine, before llama.cpp tries."""
    if n_ctx <= 1 << 24:
        return 0
    memory = max([device.memory_total for device in _backend.devices()])
    if <long long> n_ctx * BYTES_OF_CELL > memory:
        raise errors.InvalidArgumentError(
            f"n_ctx={n_ctx} needs more memory than the {memory >> 30} GiB of this machine, however small the model"
        )
    return 0


cdef long long _count(value, str name, long long least) except -1:
    integer = operator.index(value)
    if not least <= integer <= 0x7FFFFFFF:
        raise errors.InvalidArgumentError(f"{name} must be from {least} to 2147483647, not {value}")
    return integer


# The types that llama.cpp's own programs accept for a cache; with others ggml fails while it computes.
cdef dict CACHE_TYPES = {
    "f32": <int> ggml.GGML_TYPE_F32,
    "f16": <int> ggml.GGML_TYPE_F16,
    "bf16": <int> ggml.GGML_TYPE_BF16,
    "q8_0": <int> ggml.GGML_TYPE_Q8_0,
    "q5_1": <int> ggml.GGML_TYPE_Q5_1,
    "q5_0": <int> ggml.GGML_TYPE_Q5_0,
    "q4_1": <int> ggml.GGML_TYPE_Q4_1,
    "q4_0": <int> ggml.GGML_TYPE_Q4_0,
    "iq4_nl": <int> ggml.GGML_TYPE_IQ4_NL,
}


cdef ggml.ggml_type cache_type(value, str name) except *:
    """The type of a cache, from its name or number."""
    for known, number in CACHE_TYPES.items():
        if value == number if isinstance(value, int) else str(value).lower() == known:
            return <ggml.ggml_type> <int> number
    raise errors.InvalidArgumentError(f"{name}={value!r} is not one of {', '.join(CACHE_TYPES)}")
