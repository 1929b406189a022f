"""A model at work: the KV cache and the output buffer (wraps ``llama_context``)."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int8_t, int32_t, int64_t, uintptr_t
from libc.string cimport memcpy
from libcpp cimport bool

import warnings

import numpy as np

from pyllm import enums, errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core cimport error, guard, log, rpc
from pyllm.core.arguments cimport int32, pointer
from pyllm.core.adapter cimport apply_adapters, apply_control_vector, remove_adapter
from pyllm.core.batch cimport Batch
from pyllm.core.batch_ext cimport BatchExt, process_batch
from pyllm.core.context_params cimport ContextArguments
from pyllm.core.hold cimport make_hold
from pyllm.core.memory cimport Memory
from pyllm.core.model cimport Model
from pyllm.core.outputs cimport (
    EMBEDDINGS, LOGITS, copy_outputs, expire_outputs, make_room, read_ith, read_outputs, read_pooled
)
from pyllm.core.sampled cimport attach_sampler, wrap_sampled
from pyllm.core.state cimport State
from pyllm.core.tap cimport tap
from pyllm.core.view cimport OutputMemory
from pyllm.includes cimport ggml
from pyllm.includes cimport llama as lib
from pyllm.includes.ggml_backend cimport ggml_backend_buffer_t


cdef extern from "outputs.hpp" namespace "pyllm" nogil:
    size_t output_buffer_size(lib.llama_context * context)
    bool has_nextn(lib.llama_context * context)
    bool has_nextn_of_all(lib.llama_context * context)
    int32_t output_count(lib.llama_context * context)
    void read_params(lib.llama_context * context, lib.llama_context_params & params)
    ggml_backend_buffer_t take_output_buffer(lib.llama_context * context) except +
    void keep_outputs(lib.llama_context * context, const int8_t * wanted, int32_t n_tokens) except +

cdef extern from "pooling.hpp" namespace "pyllm" nogil:
    int32_t first_split(const lib.llama_batch & batch, int32_t n_ubatch, bool unified, bool recurrent) except +


# What Context.from_address hands to __cinit__. Between the two no other code runs.
cdef lib.llama_context * _adopted = NULL


cdef bool poll(void * owner) noexcept nogil:
    cdef bool stop = True
    if guard.begin_python():
        stop = ask_python(owner)
        guard.end_python()
    return stop


cdef bool ask_python(void * owner) noexcept with gil:
    """Every 20 ms while llama.cpp computes: signals, then the user's abort callback."""
    self = <Context> owner
    try:
        PyErr_CheckSignals()
        return self.abort_callback_ is not None and (not not self.abort_callback_())
    except BaseException as exception:
        error.stash(exception)
        return True


@cython.no_gc_clear
cdef class Context(ContextSettings):
    """A KV cache and an output buffer for one model: what decodes.

    Two threads that use one context wait for each other; use one context for each thread that should run at the
    same time. Close it with :meth:`close` or a ``with`` block.

    Args:
        model: The model. It is shared: any number of contexts can use it.
        n_ctx: Size of the KV cache in tokens; 0 takes the model's training length.
        n_batch: Most tokens that one decode takes.
        n_ubatch: Most tokens that are computed at once.
        n_seq_max: Number of sequences.
        n_rs_seq: Snapshots of recurrent state kept for each sequence.
        n_outputs_max: Most outputs of a micro-batch; 0 takes n_batch.
        n_outputs_max_per_seq: Most outputs of a sequence.
        reserve_outputs: Make room for so many output rows now, so that arrays on them stay at one address.
        n_threads: Threads for generation; None takes the CPUs this process may use.
        n_threads_batch: Threads for prompts; None takes n_threads.
        ctx_type: "default" or "mtp".
        rope_scaling_type: "none", "linear", "yarn" or "longrope".
        pooling_type: "none", "mean", "cls", "last" or "rank".
        attention_type: "causal" or "non_causal".
        flash_attn_type: "auto", "enabled" or "disabled".
        rope_freq_base: RoPE base frequency; 0 takes the model's.
        rope_freq_scale: RoPE frequency scale; 0 takes the model's.
        yarn_ext_factor: YaRN extrapolation mix; negative takes the model's.
        yarn_attn_factor: YaRN magnitude scale.
        yarn_beta_fast: YaRN low correction dimension.
        yarn_beta_slow: YaRN high correction dimension.
        yarn_orig_ctx: Context length before YaRN.
        type_k: Data type of the K cache, e.g. "f16" or "q8_0".
        type_v: Data type of the V cache.
        embeddings: Output embeddings too.
        offload_kqv: Keep the KV cache on the GPU.
        no_perf: Do not measure; see :meth:`perf`.
        op_offload: Compute operations on host tensors on the GPU.
        swa_full: Keep a full-size cache for sliding-window layers.
        kv_unified: One cache for all sequences instead of equal parts.
        abort_callback: Called without arguments about every 20 ms during a decode; returning True aborts it. What
            it raises is raised by the decode.
        samplers: A dict of sequence to :class:`pyllm.core.sampler.Chain`; see :meth:`set_sampler`.
        capture: Let :class:`pyllm.core.capture.Capture` read and change what is computed between input and output.
        poison_stale: A debug switch: outputs are private copies, filled with NaN by the next decode, so that code
            which keeps reading old arrays shows itself.

    Raises:
        ContextError: llama.cpp could not create it; ``.log`` holds its own words.
        InvalidArgumentError: An argument is out of range.

    Wraps ``llama_init_from_model``.
    """

    __reduce__ = not_pickled(
        "its KV cache belongs to this process; make a Context from the model there, and carry the cache over with "
        "ctx.state.save() and ctx.state.load()"
    )
    __signature__ = signature

    def __cinit__(
        self, Model model not None, *, n_ctx=0, n_batch=None, n_ubatch=None, n_seq_max=None, n_rs_seq=None,
        n_outputs_max=None, n_outputs_max_per_seq=None, reserve_outputs=0, n_threads=None,
        n_threads_batch=None, ctx_type=None, rope_scaling_type=None, pooling_type=None, attention_type=None,
        flash_attn_type=None, rope_freq_base=None, rope_freq_scale=None, yarn_ext_factor=None, yarn_attn_factor=None,
        yarn_beta_fast=None, yarn_beta_slow=None, yarn_orig_ctx=None, type_k=None, type_v=None, embeddings=None,
        offload_kqv=None, no_perf=None, op_offload=None, swa_full=None, kv_unified=None, abort_callback=None,
        samplers=None, bint capture=False, bint poison_stale=False,
    ):
        global _adopted
        cdef lib.llama_context * adopted = _adopted
        _adopted = NULL
        cdef int32_t c_reserve_outputs = int32(reserve_outputs, "reserve_outputs")
        self.ptr = NULL
        self.model = model
        self.output_memory = OutputMemory.__new__(OutputMemory)
        self.shadows = {}
        self.old_pools = []
        self.adapters = ()
        self.device_states = {}
        self.samplers_ = {}
        self.raw_logits = True
        self.poison = poison_stale
        arguments = ContextArguments(
            n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, n_seq_max=n_seq_max, n_rs_seq=n_rs_seq,
            n_outputs_max=n_outputs_max, n_outputs_max_per_seq=n_outputs_max_per_seq, n_threads=n_threads,
            n_threads_batch=n_threads_batch, ctx_type=ctx_type, rope_scaling_type=rope_scaling_type,
            pooling_type=pooling_type, attention_type=attention_type, flash_attn_type=flash_attn_type,
            rope_freq_base=rope_freq_base, rope_freq_scale=rope_freq_scale, yarn_ext_factor=yarn_ext_factor,
            yarn_attn_factor=yarn_attn_factor, yarn_beta_fast=yarn_beta_fast, yarn_beta_slow=yarn_beta_slow,
            yarn_orig_ctx=yarn_orig_ctx, type_k=type_k, type_v=type_v, embeddings=embeddings,
            offload_kqv=offload_kqv, no_perf=no_perf, op_offload=op_offload, swa_full=swa_full,
            kv_unified=kv_unified,
        )
        self.set_abort_callback(abort_callback)
        self.stop.poll = poll
        self.stop.is_finalizing = guard.is_finalizing
        self.stop.owner = <void *> self
        arguments.c.abort_callback = interrupt.callback
        arguments.c.abort_callback_data = &self.stop
        self.capture = capture
        if capture:
            arguments.c.cb_eval = tap.callback
            arguments.c.cb_eval_user_data = &self.tap_

        model.require()
        arguments.check_pooling(model)
        if model.vocab_only:
            raise errors.ContextError("the model was loaded with vocab_only=True and has no weights to compute with")
        self.peers = NULL
        if model.connections is not None:
            self.peers = model.connections.ptr
        log.refresh()
        guard.enter()
        cdef lib.llama_model * c_model = model.use()
        try:
            if adopted == NULL:
                rpc.begin(self.peers, NULL)
                try:
                    with nogil:
                        self.ptr = lib.llama_init_from_model(c_model, arguments.c)
                finally:
                    rpc.end(self.peers)
                if self.peers != NULL:
                    model.connections.check(errors.ContextError, "no context was made", "llama_init_from_model")
                error.not_null(
                    self.ptr, "llama_init_from_model", errors.ContextError,
                    f"no context could be made for {model.path!r} with n_ctx={n_ctx}, "
                    f"n_seq_max={arguments.c.n_seq_max}",
                )
                self._attach_pool()
            else:
                self.borrowed = True  # until from_address() knows better
                self.ptr = adopted
                read_params(self.ptr, arguments.c)
                lib.llama_set_abort_callback(self.ptr, interrupt.callback, &self.stop)
            self._read_constants(arguments)  # fails when the model was closed meanwhile
            for seq_id, chain in dict(samplers or {}).items():
                attach_sampler(self, int32(seq_id, "a sequence id"), chain)
            model._register(self)
        except BaseException:
            self.free_now()  # while the model is still there
            raise
        finally:
            model.done()
        if reserve_outputs:
            make_room(self, c_reserve_outputs)

    @classmethod
    def from_address(cls, Model model not None, address, *, owned=False, owner=None):
        """Wrap a context that C code has made with the llama.cpp of this process.

        Its abort callback is replaced: :meth:`abort` and Ctrl-C work. Outputs that it has can be read.

        Args:
            model: The model that it was made for; see :meth:`pyllm.core.model.Model.from_address`.
            address: Address of the ``llama_context`` (int). It cannot be checked: any other address ends the process.
            owned: Free the context with the Python object. Else the caller frees it, after this object was closed.
            owner: An object that is kept alive as long as this one, for example the one that frees the context.

        Raises:
            InvalidArgumentError: The address cannot be one, or the context was made for another model.

        Wraps ``llama_get_model``.
        """
        global _adopted
        cdef uintptr_t c_address = pointer(address, "a llama_context")
        if <const lib.llama_model *> model.require() != lib.llama_get_model(<lib.llama_context *> c_address):
            raise errors.InvalidArgumentError(f"the context at {address:#x} was made for another model than {model!r}")
        _adopted = <lib.llama_context *> c_address
        self = <Context> cls.__new__(cls, model)
        self.borrowed = not owned
        self.owner = owner
        self.n_outputs = output_count(self.ptr)
        return self

    cdef int free_now(self) except -1:
        """Free the context, or let go of one that C code owns."""
        cdef lib.llama_context * ptr = self.ptr
        self.ptr = NULL
        if ptr != NULL and self.borrowed:
            lib.llama_set_abort_callback(ptr, NULL, NULL)  # ours goes with this object
        elif ptr != NULL:
            with nogil:
                lib.llama_free(ptr)
        return 0

    cdef int _read_constants(self, ContextArguments arguments) except -1:
        cdef lib.llama_model * c_model = self.model.require()
        self.n_vocab = self.model.n_vocab
        self.n_embd_out = lib.llama_model_n_embd_out(c_model)
        self.n_embd_inp = lib.llama_model_n_embd_inp(c_model)
        self.n_batch_ = <int32_t> lib.llama_n_batch(self.ptr)
        self.n_ubatch_ = <int32_t> lib.llama_n_ubatch(self.ptr)
        self.n_seq_max_ = <int32_t> lib.llama_n_seq_max(self.ptr)
        self.embeddings_ = arguments.c.embeddings
        self.kv_unified = arguments.c.kv_unified or self.n_seq_max_ == 1
        self.bf16_keys = arguments.c.type_k == ggml.GGML_TYPE_BF16
        self.is_t5 = self.model.metadata.get("general.architecture") == "t5"
        self.f32_cache = arguments.c.type_k == ggml.GGML_TYPE_F32 and arguments.c.type_v == ggml.GGML_TYPE_F32
        self.n_pos_per_embd = 4 if self.model.rope_type in (enums.RopeType.MROPE, enums.RopeType.IMROPE) else 1
        return 0

    def __dealloc__(self):
        # In a forked child its threads do not exist, and freeing would wait for them.
        # The GIL is kept: weak references are still alive here, and another thread must not come back with one.
        cdef lib.llama_context * ptr = self.ptr
        self.ptr = NULL
        if ptr != NULL and not self.made_in_parent():
            guard.set_quiet(True)
            if self.output_memory.views.load() > 0:
                self.output_memory.buffer = take_output_buffer(ptr)
            if self.borrowed:
                lib.llama_set_abort_callback(ptr, NULL, NULL)
            else:
                lib.llama_free(ptr)
            guard.set_quiet(False)

    def close(self):
        """Free the context. Closing twice is allowed.

        Arrays on its outputs stay as they are: they keep the output buffer, and nothing else, until the last one is
        gone. Only :attr:`logits` and :attr:`embeddings` themselves raise ClosedError from then on.

        Wraps ``llama_free``.
        """
        if self.ptr == NULL or self._abandon():
            return
        self.acquire()
        try:
            if self.ptr == NULL:
                return
            self._expire(errors.ClosedError, "the context has been closed; keep a .copy() of what you need later")
            if self.output_memory.views.load() > 0:
                self.give_up_buffer()
            guard.enter()
            self.free_now()
            self.owner = None
            self.pool = None
            self.pool_lock = NULL
            self.old_pools = []
            self.adapters = ()
            self.device_states = {}
            self.samplers_ = {}
            self.n_outputs = 0
        finally:
            self.release()

    def _abandon(self):
        """In a forked child: let go of a context of the parent, whose threads are not here. True if it was one."""
        if not self.made_in_parent():
            return False
        self.ptr = NULL
        return True

    def _hold(self):
        self.acquire()

    def _let_go(self):
        self.release()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def lock(self):
        """Hold the context over several calls, so that no other thread gets between them.

        Each call takes the lock by itself. Two threads that share a context need this one wherever two calls belong
        together: another decode between :meth:`decode` and the choice of a token would put its rows in place.

        Returns:
            Hold: For a ``with`` block. The thread that is in it can hold the context again.

        Example:
            >>> with ctx.lock():
            ...     ctx.decode(batch)
            ...     token = sampler.sample(ctx)
        """
        return make_hold(self, False)

    def raw_access(self):
        """Hold the context while code of yours calls llama.cpp's functions on it, by ``cimport`` or :attr:`address`.

        Before the block, outputs read so far become stale, and arrays on them get the output buffer, so that a raw
        ``llama_decode`` cannot move it under them; llama.cpp's own outputs are forgotten then. After the block,
        :attr:`logits` has the rows that llama.cpp has now.

        Returns:
            Hold: For a ``with`` block, which gives the address of the ``llama_context`` (int).

        Example:
            >>> with ctx.raw_access() as address:
            ...     code = library.llama_decode(address, batch)
        """
        return make_hold(self, True)

    cdef int begin_raw(self) except -1:
        self._expire()
        if self.output_memory.views.load() > 0:
            self.give_up_buffer()
        return 0

    cpdef outputs_changed(self):
        """Tell the context that its outputs were changed by a call that it has not seen.

        Call it after a raw ``llama_decode`` or ``llama_encode``: outputs read before are stale from then on, and
        :attr:`logits` has the rows that llama.cpp has now. The raw call may have moved the output buffer; where arrays
        on it are alive use :meth:`raw_access` instead.
        """
        self.acquire()
        try:
            self.require()
            self._expire()
            self.n_outputs = output_count(self.ptr)
        finally:
            self.release()

    def __repr__(self):
        if self.ptr == NULL:
            return "<Context (closed)>"
        return f"<Context n_ctx={self.n_ctx} n_seq_max={self.n_seq_max_} of {self.model.path!r}>"

    # ---- decoding

    def decode(self, Batch batch not None):
        """Compute a batch: its tokens enter the KV cache, and the outputs it asked for can be read.

        Args:
            batch: The tokens or embeddings.

        Raises:
            InvalidBatchError: The batch does not fit the model or the context; nothing was computed.
            NoKVSlotError: The KV cache is full. The memory is as before.
            DecodeAborted: :meth:`abort` was called. The micro-batches that were done stay in the memory.
            KeyboardInterrupt: Ctrl-C; the same holds for the memory.
            BackendAssertError: An assertion inside llama.cpp failed.

        Wraps ``llama_decode``.
        """
        self._run(batch, False)

    def encode(self, Batch batch not None):
        """Compute a batch with the encoder, without the KV cache; see :meth:`decode` for what it raises.

        Wraps ``llama_encode``.
        """
        self._run(batch, True)

    def process(self, BatchExt batch not None, *, bint encode=False):
        """Compute a batch whose entries can have both a token and an embedding.

        Args:
            batch: It must have been made for this context.
            encode: Use the encoder, as :meth:`encode` does.

        Outputs and errors are those of :meth:`decode`. Wraps ``llama_process``.
        """
        process_batch(self, batch, encode)

    cdef int _run(self, Batch batch, bint encode) except -1:
        cdef int code
        cdef int32_t n_outputs
        cdef str function = "llama_encode" if encode else "llama_decode"
        self.acquire()
        try:
            self.require()
            n_outputs = self.ready_for(batch, encode)
            with nogil:
                code = self.decode_unchecked(batch.c, n_outputs, encode)
            return self.raise_for(code, function)
        finally:
            self.release()

    cdef int32_t ready_for(self, Batch batch, bint encode) except -1:
        """Check a batch and make room for its outputs; how many there will be."""
        cdef bint output_all
        self._check_batch(batch, encode)
        output_all = self.outputs_all(encode)
        self.prepare(batch.c.n_tokens if output_all else batch.n_outputs)
        if self.n_samplers:
            self.raw_logits = self._needs_raw_logits(batch, output_all)
        return batch.n_outputs

    cdef bint outputs_all(self, bint encode) noexcept nogil:
        """Whether llama.cpp outputs every token, whatever the batch says. Without a memory, decoding is encoding."""
        return encode or self.embeddings_ or lib.llama_get_memory(self.ptr) == NULL

    cdef int _check_batch(self, Batch batch, bint encode) except -1:
        batch.validate(self.n_vocab, self.n_embd_inp, self.n_seq_max_, self.n_batch_)
        self._check_call(batch.c.n_tokens, encode)
        if batch.n_embd and batch.c.pos != NULL and batch.pos_stride != self.n_pos_per_embd:
            raise errors.InvalidBatchError(
                f"the model takes {self.n_pos_per_embd} position(s) for each embedding, not {batch.pos_stride}"
            )
        if self.embeddings_ and self.has_memory and not encode:
            self._check_pooling(batch)
        return 0

    cdef int _check_pooling(self, Batch batch) except -1:
        """llama.cpp pools the tokens of a micro-batch: each sequence must be whole in one."""
        cdef int pooling = lib.llama_get_pooling_type(self.ptr)
        cdef int32_t seq_id
        cdef bint recurrent
        cdef lib.llama_memory_t memory
        # The last token is in the last micro-batch, whatever came before.
        if pooling != lib.LLAMA_POOLING_TYPE_MEAN and pooling != lib.LLAMA_POOLING_TYPE_CLS:
            return 0
        name = enums.PoolingType(pooling).name.lower()
        recurrent = self.model.is_recurrent or self.model.is_hybrid
        seq_id = first_split(batch.c, self.n_ubatch_, self.kv_unified, recurrent)
        if seq_id >= 0:
            raise errors.InvalidBatchError(
                f"sequence {seq_id} of the batch is computed in several micro-batches (n_ubatch={self.n_ubatch_}, "
                f"kv_unified={self.kv_unified}), and its embedding with pooling_type={name!r} would be that of the "
                "last one alone: make the context with kv_unified=True and n_ubatch as large as the batch, decode "
                "fewer sequences at once, or pool the rows of pooling_type='none'"
            )
        memory = lib.llama_get_memory(self.ptr)
        for i in range(batch.c.n_tokens):
            for j in range(1 if batch.c.n_seq_id == NULL else batch.c.n_seq_id[i]):
                seq_id = 0 if batch.c.seq_id == NULL else batch.c.seq_id[i][j]
                if lib.llama_memory_seq_pos_max(memory, seq_id) >= 0:
                    raise errors.InvalidBatchError(
                        f"sequence {seq_id} has tokens of an earlier decode, which its embedding with "
                        f"pooling_type={name!r} would leave out: remove them with memory.rm({seq_id}), decode all of "
                        "a text at once, or pool the rows of pooling_type='none'"
                    )
        return 0

    cdef int _check_call(self, int32_t n, bint encode) except -1:
        if self.model.no_alloc:
            raise errors.ContextError("the model was loaded with no_alloc=True: it has no weights to compute with")
        if self.trained and self.n_ubatch_ == <int32_t> lib.llama_n_ctx(self.ptr):
            # Its graph takes keys and values from the window alone, and asserts that this is all there is.
            raise errors.ContextError(
                "this context has a Trainer and computes windows of it only: decode with another context of the model"
            )
        if encode and self.has_memory and not self.model.has_encoder:
            raise errors.ContextError("this model has no encoder: use decode()")
        if n > self.n_ubatch_ and (encode or not self.has_memory or not lib.llama_get_causal_attn(self.ptr)):
            raise errors.InvalidBatchError(
                f"the batch has {n} tokens and must be computed at once, but n_ubatch={self.n_ubatch_}; "
                "make the context with n_ubatch as large as n_batch"
            )
        return 0

    cdef bint _needs_raw_logits(self, Batch batch, bint output_all):
        """Whether an output belongs to a sequence without a sampler: only then does llama.cpp fetch logits."""
        cdef int32_t i, j
        for i in range(batch.c.n_tokens):
            if output_all or batch.output[i]:
                for j in range(batch.n_seq_id[i]):
                    if batch.seq_id[i][j] not in self.samplers_:
                        return True
        return False

    cdef int64_t _floats(self, int32_t n_outputs) noexcept nogil:
        """Floats that llama.cpp's output buffer needs for so many outputs, as it counts them itself."""
        cdef int64_t rows = n_outputs if n_outputs > self.n_seq_max_ else self.n_seq_max_
        cdef int64_t columns = self.n_vocab + (self.n_embd_out if self.embeddings_ or self.is_t5 else 0)
        cdef int64_t of_all = self.layer_floats
        if self.n_samplers:
            columns += 3 * <int64_t> self.n_vocab + 1  # logits, probabilities and ids of candidates, and the token
        if has_nextn_of_all(self.ptr):
            of_all += <int64_t> self.n_embd_out * self.n_batch_
        elif has_nextn(self.ptr):
            columns += self.n_embd_out
        return rows * columns + of_all

    cdef int forget_outputs(self) except -1:
        """The memory is another now: outputs of before are stale. The buffer stays where it is."""
        self._expire()
        self.n_outputs = 0
        return 0

    cdef int _expire(
        self, object error=errors.StaleLogitsError,  # no-cython-lint
        str message="these outputs belong to an earlier decode and its memory shows newer ones; read ctx.logits again, "
        "or keep ctx.logits_copy() before the next decode",
    ) except -1:
        self.raw_logits = True
        self.decodes += 1  # under the GIL: from here on nobody can make a view of the old outputs
        if self.logits_ is not None:
            expire_outputs(self, LOGITS, error, message)
        if self.token_embeddings is not None:
            expire_outputs(self, EMBEDDINGS, error, message)
        if self.shadows:
            for shadow in self.shadows.values():
                shadow.fill(np.nan)
            self.shadows.clear()
        return 0

    cdef int _warn_of_views(self) except -1:
        self.warned_of_views = True
        n = max(self.output_memory.old_logits.load(), self.output_memory.old_embeddings.load())
        warnings.warn(
            f"arrays on the outputs of {n} earlier decodes are alive, and all of them show the newest rows: keep "
            "ctx.logits_copy() or a .copy() of what you need after the next decode",
            errors.StaleLogitsWarning, stacklevel=1,
        )
        return 0

    cdef int give_up_buffer(self) except -1:
        cdef OutputMemory memory = self.output_memory
        with nogil:
            memory.buffer = take_output_buffer(self.ptr)
        self.output_memory = OutputMemory.__new__(OutputMemory)
        self.n_outputs = 0
        return 0

    cdef int prepare(self, int32_t n_outputs) except -1:
        self._expire()
        if not self.warned_of_views and (
            self.output_memory.old_logits.load() > 1 or self.output_memory.old_embeddings.load() > 1
        ):
            self._warn_of_views()
        if self.output_memory.views.load() > 0:
            # llama.cpp would free the buffer under arrays that show it.
            if not self.has_room_for(n_outputs):
                self.give_up_buffer()
        return 0

    cdef bint has_room_for(self, int32_t n_outputs) noexcept:
        return self._floats(n_outputs) * <int64_t> sizeof(float) <= <int64_t> output_buffer_size(self.ptr)

    cdef int decode_unchecked(self, lib.llama_batch batch, int32_t n_outputs, bint encode) except -99 nogil:
        return self.compute(&batch, NULL, batch.logits, batch.n_tokens, n_outputs, encode)

    cdef int compute(
        self, lib.llama_batch * batch, lib.llama_batch_ext * ext, const int8_t * wanted, int32_t n_tokens,
        int32_t n_outputs, bint encode
    ) except -99 nogil:
        cdef int code
        cdef bint interrupted = False
        self.decodes += 1
        self.n_outputs = 0
        guard.enter()
        self.stop.begin(guard.is_main_thread() or self.has_abort_callback)
        guard.begin_native()
        self.in_call = True
        rpc.begin(self.peers, &self.stop.requested)
        self.lock_pool()
        try:
            if ext != NULL:
                code = lib.llama_process(
                    self.ptr, lib.LLAMA_PROCESS_TYPE_ENCODE if encode else lib.LLAMA_PROCESS_TYPE_DECODE, ext
                )
            elif encode:
                code = lib.llama_encode(self.ptr, batch[0])
            else:
                code = lib.llama_decode(self.ptr, batch[0])
            if self.peers != NULL:
                # Outputs are on their way. What arrives after a server was lost is no output.
                lib.llama_synchronize(self.ptr)
        finally:
            self.unlock_pool()
            interrupted = rpc.end(self.peers)
            self.in_call = False
            guard.end_native()
        if self.peers != NULL and code >= 0:
            if rpc.is_lost(self.peers):
                code = -4
            elif code == 0 and interrupted:
                code = 2
        if code == 0:
            if n_outputs < n_tokens and self.outputs_all(encode):
                keep_outputs(self.ptr, wanted, n_tokens)
            self.n_outputs = n_outputs
        if code >= 0:
            self.unapplied = 0
        return code

    cdef int raise_for(self, int code, str function) except -1:
        cdef bint aborted = self.stop.take_request()
        guard.park_if_finalizing()
        error.raise_stashed()
        self.check_peers(function)
        if code == 0:
            return 0
        if code == 1:
            return error.fail(
                errors.NoKVSlotError,
                f"the KV cache has no room for the batch (n_ctx={lib.llama_n_ctx(self.ptr)}, "
                f"n_ctx_seq={lib.llama_n_ctx_seq(self.ptr)}); "
                "remove tokens with Context.memory, or make the context with a larger n_ctx"
                + ("" if self.kv_unified else "; tokens shared by several sequences need kv_unified=True"),
                function, code,
            )
        if code == 2 or aborted:
            return error.fail(errors.DecodeAborted, "the decode was aborted", function, code)
        if code == -1:
            return error.fail(errors.InvalidBatchError, "llama.cpp refused the batch", function, code)
        return error.fail(errors.DecodeError, f"{function} failed with code {code}", function, code)

    cdef int check_peers(self, str function) except -1:
        if self.peers == NULL:
            return 0
        return self.model.connections.check(
            errors.DecodeError, "load the model again, which connects anew", function
        )

    def abort(self):
        """Abort the decode that is running in another thread, or else the next one. Takes no lock.

        That decode raises :class:`pyllm.errors.DecodeAborted`.
        """
        self.stop.request()

    def clear_abort(self):
        """Take back an :meth:`abort` that came while nothing was computed, so that the next decode is not aborted."""
        self.stop.take_request()

    def set_abort_callback(self, callback):
        """Replace the abort callback; see the constructor. None removes it. Wraps ``llama_set_abort_callback``."""
        if callback is not None and not callable(callback):
            raise TypeError("the abort callback must be callable or None")
        self.abort_callback_ = callback
        self.has_abort_callback = callback is not None

    @property
    def decode_id(self):
        """Changes with every decode, encode and loaded state (int): outputs of an older one are stale."""
        return self.decodes

    @property
    def memory(self):
        """The KV cache (:class:`pyllm.core.memory.Memory`). Wraps ``llama_get_memory``."""
        return Memory(self)

    @property
    def state(self):
        """Saves and restores the KV cache (:class:`pyllm.core.state.State`)."""
        return State(self)

    # ---- adapters

    def set_adapters(self, adapters):
        """Use these LoRA adapters from the next decode on, and no others.

        What is in the KV cache was computed without them and stays as it is.

        Args:
            adapters: A dict of :class:`pyllm.core.adapter.LoraAdapter` to scale, or pairs of these; empty removes
                all. The context keeps them alive. A scale of 0 is the same as none.

        Raises:
            AdapterError: An adapter belongs to another model, or is there twice.
            InvalidArgumentError: A scale is not finite.

        Wraps ``llama_set_adapters_lora``.
        """
        apply_adapters(self, adapters)

    def _remove_adapter(self, adapter):
        remove_adapter(self, adapter)

    def set_control_vector(self, data, il_start=None, il_end=None):
        """Add a vector to the residual stream behind each layer, from the next decode on.

        Args:
            data: float32, shape (n_layer - 1, n_embd); row i goes to layer i + 1, because layer 0 has none.
                It is copied. None removes the vector.
            il_start: First layer it is added to, from 1; None means 1.
            il_end: Last layer, this one included; None means n_layer - 1.

        Raises:
            AdapterError: The shape does not fit the model, a value is not finite, or the model has one layer only.
            InvalidArgumentError: The layers are out of range.

        Wraps ``llama_set_adapter_cvec``.
        """
        apply_control_vector(self, data, il_start, il_end)

    @property
    def control_vector(self):
        """Whether a control vector is in use (bool)."""
        return self.has_control_vector

    # ---- samplers

    def set_sampler(self, seq_id, chain):
        """Sample a sequence while it is computed, from the next decode on.

        The first samplers of the chain run on the device, up to one that it has no operations for, or none that are
        right at that place: Greedy, LogitBias and TopK behind a sampler that narrows the choice. The others, and a
        chain's memory of accepted tokens, run when :meth:`pyllm.core.sampled.Sampled.sample` is called. A clone of
        the chain is attached: what happens to the given one afterwards changes nothing here.

        The raw logits of a sequence with a sampler are not fetched. Where a batch asks for outputs of such sequences
        only, :attr:`logits` raises NoOutputError; else their rows in it hold nothing of use.

        Args:
            seq_id: The sequence.
            chain: A :class:`pyllm.core.sampler.Chain` that is not empty; None removes the one that is there.

        Raises:
            InvalidArgumentError: There is no such sequence.
            SamplerError: It is no chain, is empty, or llama.cpp cannot run it with this model.

        Wraps ``llama_set_sampler``.
        """
        attach_sampler(self, int32(seq_id, "seq_id"), chain)

    @property
    def sampled(self):
        """What the samplers of :meth:`set_sampler` chose in the last decode (:class:`pyllm.core.sampled.Sampled`).

        Raises:
            NoOutputError: The last decode produced no output, or failed, or no sequence has a sampler.
        """
        return wrap_sampled(self)

    # ---- outputs

    @property
    def logits(self):
        """The logits of the last decode: a writable float32 view of shape (n_outputs, n_vocab), without a copy.

        Rows are those that the batch asked for with ``outputs=``, in its order. ``ctx.logits[i]`` is a row;
        ``np.asarray(ctx.logits)`` costs no copy. What is written there is what the samplers read. The memory stays
        valid while an array on it lives; its contents until the next decode: :meth:`logits_copy` keeps them.
        See :class:`pyllm.core.outputs.Outputs`.

        Raises:
            NoOutputError: The last decode produced no output, or failed.

        Wraps ``llama_get_logits``.
        """
        return read_outputs(self, LOGITS)

    @property
    def embeddings(self):
        """The embeddings of the last decode: a float32 view of shape (n_outputs, n_embd_out), without a copy.

        Needs ``embeddings=True`` and pooling_type "none"; for pooled ones see :meth:`embeddings_seq`. The rules are
        those of :attr:`logits`.

        Raises:
            NoOutputError: There are none.

        Wraps ``llama_get_embeddings``.
        """
        return read_outputs(self, EMBEDDINGS)

    def logits_copy(self, row=None):
        """The logits of the last decode as an array of their own, which later decodes leave as it is.

        Args:
            row: One row, as in ``ctx.logits[row]``; None: all of them.

        Returns:
            numpy.ndarray: float32, shape (n_outputs, n_vocab), or (n_vocab,) of one row.

        Raises:
            NoOutputError: The last decode produced no output, or failed; or there is no such row.
        """
        return copy_outputs(self, LOGITS, row)

    def embeddings_copy(self, row=None):
        """The embeddings of the last decode as an array of their own; see :meth:`logits_copy`."""
        return copy_outputs(self, EMBEDDINGS, row)

    def logits_ith(self, i):
        """The logits of the token at index `i` of the batch: float32, shape (n_vocab,), without a copy.

        ``ctx.logits[r]`` counts rows instead.

        Args:
            i: Index in the batch; negative counts outputs from the end.

        Raises:
            NoOutputError: No output was asked for that token.

        Wraps ``llama_get_logits_ith``.
        """
        cdef int32_t c_i = int32(i, "i")
        return read_ith(self, LOGITS, c_i)

    def embeddings_ith(self, i):
        """The embedding of the token at index `i` of the batch; see :meth:`logits_ith`.

        Wraps ``llama_get_embeddings_ith``.
        """
        cdef int32_t c_i = int32(i, "i")
        return read_ith(self, EMBEDDINGS, c_i)

    def embeddings_seq(self, seq_id=0):
        """The pooled embedding of a sequence: float32, shape (n_embd_out,); a copy.

        With pooling_type "rank" the scores, shape (n_cls_out,). It is a copy because llama.cpp frees that memory
        in the next decode.

        Raises:
            NoOutputError: The sequence was not in the last batch, or the context does not pool.

        Wraps ``llama_get_embeddings_seq``.
        """
        return read_pooled(self, int32(seq_id, "seq_id"))

    cdef int sync_shadow(self) except -1:
        """Debug mode: bring what was written into the private copy to where the samplers read."""
        cdef const float[:, ::1] view
        shadow = self.shadows.get(LOGITS)
        if shadow is not None:
            view = shadow
            memcpy(lib.llama_get_logits(self.ptr), &view[0, 0], view.shape[0] * view.shape[1] * sizeof(float))
        return 0
