"""A model at work: the KV cache and the output buffer (wraps ``llama_context``)."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy
from libcpp cimport bool

import numpy as np

from pyllm import enums, errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core cimport error, guard, log
from pyllm.core.arguments cimport int32
from pyllm.core.adapter cimport apply_adapters, apply_control_vector, remove_adapter
from pyllm.core.batch cimport Batch
from pyllm.core.batch_ext cimport BatchExt, process_batch
from pyllm.core.context_params cimport ContextArguments
from pyllm.core.memory cimport Memory
from pyllm.core.model cimport Model
from pyllm.core.outputs cimport EMBEDDINGS, LOGITS, wrap_outputs
from pyllm.core.sampled cimport attach_sampler, wrap_sampled
from pyllm.core.state cimport State
from pyllm.core.tap cimport tap
from pyllm.includes cimport ggml
from pyllm.includes cimport llama as lib


cdef extern from "pooling.hpp" namespace "pyllm" nogil:
    int32_t first_split(const lib.llama_batch & batch, int32_t n_ubatch, bool unified, bool recurrent) except +


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
        reserve_outputs: Make room for so many output rows now, so that the buffer never has to move while views
            on it are alive.
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
        cdef int32_t c_reserve_outputs = int32(reserve_outputs, "reserve_outputs")
        self.ptr = NULL
        self.model = model
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
        log.refresh()
        guard.enter()
        cdef lib.llama_model * c_model = model.use()
        try:
            with nogil:
                self.ptr = lib.llama_init_from_model(c_model, arguments.c)
            error.not_null(
                self.ptr, "llama_init_from_model", errors.ContextError,
                f"no context could be made for {model.path!r} with n_ctx={n_ctx}, n_seq_max={arguments.c.n_seq_max}",
            )
            self._attach_pool()
            self._read_constants(arguments)  # fails when the model was closed meanwhile
            for seq_id, chain in dict(samplers or {}).items():
                attach_sampler(self, int32(seq_id, "a sequence id"), chain)
            model._register(self)
        except BaseException:
            if self.ptr != NULL:
                lib.llama_free(self.ptr)  # now, while the model is still there
                self.ptr = NULL
            raise
        finally:
            model.done()
        if reserve_outputs:
            self._reserve(c_reserve_outputs)

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
        # llama.cpp makes room for one output of every sequence when it creates the context.
        self.reserved = self._floats(self.n_seq_max_)
        return 0

    def __dealloc__(self):
        # In a forked child its threads do not exist, and freeing would wait for them.
        # The GIL is kept: weak references are still alive here, and another thread must not come back with one.
        cdef lib.llama_context * ptr = self.ptr
        self.ptr = NULL
        if ptr != NULL and not self.made_in_parent():
            guard.set_quiet(True)
            lib.llama_free(ptr)
            guard.set_quiet(False)

    def close(self):
        """Free the context. Closing twice is allowed.

        Raises:
            BufferError: A NumPy view on its memory is alive. Nothing was closed.

        Wraps ``llama_free``.
        """
        cdef lib.llama_context * ptr
        if self.ptr == NULL or self._abandon():
            return
        self.acquire()
        try:
            self._check_closable()
            ptr = self.ptr
            self.ptr = NULL  # before the GIL is released: nobody else reads it any more
            if ptr == NULL:
                return
            guard.enter()
            with nogil:
                lib.llama_free(ptr)
            self.pool = None
            self.pool_lock = NULL
            self.old_pools = []
            self.adapters = ()
            self.device_states = {}
            self.samplers_ = {}
            self.n_outputs = 0
        finally:
            self.release()

    def _check_closable(self):
        if self.exports.load() > 0:
            raise BufferError(
                f"{self.exports.load()} NumPy view(s) on the memory of this context are alive; "
                "delete them, or keep a .copy() instead"
            )

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
        try:
            self.close()
        except BufferError:
            # The traceback of an exception that passes through can hold a view. That exception is the one to see:
            # the context is freed when the last view is gone.
            if not any(exc_info):
                raise

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
            BufferError: More outputs are asked for than the buffer holds, and views on it are alive.
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
        cdef int32_t n_outputs
        self._check_batch(batch, encode)
        # Embeddings, and the encoder, output every token. Without a memory, decoding is encoding.
        n_outputs = batch.c.n_tokens if encode or self.embeddings_ or not self.has_memory else batch.n_outputs
        self.prepare(n_outputs)
        if self.n_samplers:
            self.raw_logits = self._needs_raw_logits(batch, n_outputs == batch.c.n_tokens)
        return n_outputs

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
        if self.n_samplers:
            columns += 3 * <int64_t> self.n_vocab + 1  # logits, probabilities and ids of candidates, and the token
        return rows * columns + self.layer_floats

    cdef int forget_outputs(self) except -1:
        """The memory is another now: outputs of before are stale. The buffer stays where it is."""
        self._expire()
        self.n_outputs = 0
        return 0

    cdef int _expire(self) except -1:
        self.raw_logits = True
        self.decodes += 1  # under the GIL: from here on nobody can make a view of the old outputs
        if self.shadows:
            for shadow in self.shadows.values():
                shadow.fill(np.nan)
            self.shadows.clear()
        return 0

    cdef int prepare(self, int32_t n_outputs) except -1:
        cdef int64_t needed = self._floats(n_outputs)
        if needed > self.reserved:
            if self.exports.load() > 0:
                raise BufferError(
                    f"this decode asks for {n_outputs} outputs, more than any before, and llama.cpp would have to "
                    f"move the output buffer while {self.exports.load()} view(s) on it are alive; delete the views, "
                    f"copy them, or make the context with reserve_outputs={n_outputs}"
                )
        self.unconfirmed = needed
        return self._expire()

    cdef int decode_unchecked(self, lib.llama_batch batch, int32_t n_outputs, bint encode) except -99 nogil:
        return self.compute(&batch, NULL, n_outputs, encode)

    cdef int compute(
        self, lib.llama_batch * batch, lib.llama_batch_ext * ext, int32_t n_outputs, bint encode
    ) except -99 nogil:
        cdef int code
        self.decodes += 1
        self.n_outputs = 0
        guard.enter()
        self.stop.begin(guard.is_main_thread() or self.has_abort_callback)
        guard.begin_native()
        self.in_call = True
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
        finally:
            self.unlock_pool()
            self.in_call = False
            guard.end_native()
        if code == 0:
            self.n_outputs = n_outputs
        if code >= 0:
            self.unapplied = 0
        # A decode that was refused has not enlarged the output buffer; one that was aborted has.
        if (code == 0 or code == 2) and self.unconfirmed > self.reserved:
            self.reserved = self.unconfirmed
        return code

    cdef int raise_for(self, int code, str function) except -1:
        cdef bint aborted = self.stop.take_request()
        guard.park_if_finalizing()
        error.raise_stashed()
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

    def _reserve(self, n_outputs):
        """Let llama.cpp enlarge its output buffer by a decode that is aborted before it computes anything."""
        cdef int32_t c_n_outputs = int32(n_outputs, "n_outputs")
        if c_n_outputs < 1 or c_n_outputs > self.n_batch_:
            raise errors.InvalidArgumentError(
                f"reserve_outputs must be from 1 to n_batch={self.n_batch_}, not {c_n_outputs}"
            )
        if self._floats(c_n_outputs) <= self.reserved:
            return
        encode = self.model.has_encoder or not self.has_memory
        if encode and c_n_outputs > self.n_ubatch_:
            raise errors.InvalidArgumentError(
                f"reserve_outputs can be at most n_ubatch={self.n_ubatch_} where a model has an encoder, "
                f"not {c_n_outputs}"
            )
        batch = Batch.from_arrays(np.zeros(c_n_outputs, np.int32), pos=np.arange(c_n_outputs), outputs="all")
        self.abort()
        try:
            self._run(batch, encode)
        except errors.DecodeAborted:
            pass
        finally:
            self.stop.take_request()
        if self.has_memory:
            lib.llama_memory_clear(lib.llama_get_memory(self.ptr), False)

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

    def synchronize(self):
        """Wait until everything that was started is computed. Wraps ``llama_synchronize``."""
        self.acquire()
        try:
            self.require()
            with nogil:
                lib.llama_synchronize(self.ptr)
        finally:
            self.release()

    def detach_threadpool(self):
        """Let go of the worker threads that wait for the next decode, which then starts threads of its own.

        For a context that rests for long. :meth:`set_n_threads` with more threads than before attaches a pool again.

        Wraps ``llama_detach_threadpool``.
        """
        self.acquire()
        try:
            self.require()
            lib.llama_detach_threadpool(self.ptr)
            # The backend goes on pointing to it until the next decode.
            if self.pool is not None:
                self.old_pools.append(self.pool)
            self.pool = None
            self.pool_lock = NULL
        finally:
            self.release()

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

        Rows stand in the order of the batch. ``ctx.logits[i]`` is a row; ``np.asarray(ctx.logits)`` costs no copy.
        What is written there is what the samplers read. The memory stays valid while a view lives; its contents
        until the next decode. See :class:`pyllm.core.outputs.Outputs`.

        Raises:
            NoOutputError: The last decode produced no output, or failed.

        Wraps ``llama_get_logits``.
        """
        return self._outputs(LOGITS)

    @property
    def embeddings(self):
        """The embeddings of the last decode: a float32 view of shape (n_outputs, n_embd_out), without a copy.

        Needs ``embeddings=True`` and pooling_type "none"; for pooled ones see :meth:`embeddings_seq`. The rules are
        those of :attr:`logits`.

        Raises:
            NoOutputError: There are none.

        Wraps ``llama_get_embeddings``.
        """
        return self._outputs(EMBEDDINGS)

    cdef _outputs(self, int kind):
        cdef float * data
        self.acquire()
        try:
            self.require()
            if self.n_outputs == 0:
                raise errors.NoOutputError("the last decode gave no outputs; ask for them with Batch outputs=...")
            if kind == LOGITS and not self.raw_logits:
                raise errors.NoOutputError(
                    "all outputs of the last decode were sampled while they were computed, and llama.cpp did not fetch "
                    "their logits: read ctx.sampled, or take the samplers away with set_sampler(seq_id, None)"
                )
            with nogil:
                # Synchronizes the device, and puts the rows in the order of the batch.
                data = lib.llama_get_logits(self.ptr) if kind == LOGITS else lib.llama_get_embeddings(self.ptr)
            if data == NULL or not (self._has_logits() if kind == LOGITS else self._has_token_embeddings()):
                raise errors.NoOutputError(
                    "there are no token embeddings: make the context with embeddings=True and pooling_type='none', "
                    "or read embeddings_seq()" if kind == EMBEDDINGS else "this model has no logits"
                )
            return wrap_outputs(self, kind, data)
        finally:
            self.release()

    cdef bint _has_logits(self):
        # Encoders fill the rows with zeros.
        return self.has_memory or self.model.is_diffusion

    cdef bint _has_token_embeddings(self):
        return lib.llama_get_pooling_type(self.ptr) == lib.LLAMA_POOLING_TYPE_NONE

    def logits_ith(self, i):
        """The logits of the token at index `i` of the batch: float32, shape (n_vocab,), without a copy.

        Args:
            i: Index in the batch; negative counts outputs from the end.

        Raises:
            NoOutputError: No output was asked for that token.

        Wraps ``llama_get_logits_ith``.
        """
        cdef int32_t c_i = int32(i, "i")
        return self._ith(LOGITS, c_i)

    def embeddings_ith(self, i):
        """The embedding of the token at index `i` of the batch; see :meth:`logits_ith`.

        Wraps ``llama_get_embeddings_ith``.
        """
        cdef int32_t c_i = int32(i, "i")
        return self._ith(EMBEDDINGS, c_i)

    cdef _ith(self, int kind, int32_t i):
        cdef float * base
        cdef float * row = NULL
        self.acquire()
        try:
            outputs = self._outputs(kind)
            with nogil:
                if kind == LOGITS:
                    base = lib.llama_get_logits(self.ptr)
                    row = lib.llama_get_logits_ith(self.ptr, i)
                else:
                    base = lib.llama_get_embeddings(self.ptr)
                    row = lib.llama_get_embeddings_ith(self.ptr, i)
            if row == NULL:
                error.fail(errors.NoOutputError, f"no output was asked for index {i} of the batch")
            return outputs[(row - base) // (self.n_vocab if kind == LOGITS else self.n_embd_out)]
        finally:
            self.release()

    def embeddings_seq(self, seq_id=0):
        """The pooled embedding of a sequence: float32, shape (n_embd_out,); a copy.

        With pooling_type "rank" the scores, shape (n_cls_out,). It is a copy because llama.cpp frees that memory
        in the next decode.

        Raises:
            NoOutputError: The sequence was not in the last batch, or the context does not pool.

        Wraps ``llama_get_embeddings_seq``.
        """
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        cdef float * data
        cdef int32_t n = self.n_embd_out
        self.acquire()
        try:
            self.require()
            if lib.llama_get_pooling_type(self.ptr) == lib.LLAMA_POOLING_TYPE_RANK:
                n = <int32_t> lib.llama_model_n_cls_out(self.model.require())
            with nogil:
                data = lib.llama_get_embeddings_seq(self.ptr, c_seq_id)
            if data == NULL:
                raise errors.NoOutputError(
                    f"there is no pooled embedding for sequence {c_seq_id}: it was not in the last batch, "
                    "or the context was not made with embeddings=True and a pooling_type"
                )
            result = np.empty(n, np.float32)
            _copy_floats(result, data, n)
            return result
        finally:
            self.release()

    cdef int sync_shadow(self) except -1:
        """Debug mode: bring what was written into the private copy to where the samplers read."""
        cdef const float[:, ::1] view
        shadow = self.shadows.get(LOGITS)
        if shadow is not None:
            view = shadow
            memcpy(lib.llama_get_logits(self.ptr), &view[0, 0], view.shape[0] * view.shape[1] * sizeof(float))
        return 0


cdef int _copy_floats(target, const float * source, int32_t n) except -1:
    cdef float[::1] view = target
    memcpy(&view[0], source, <size_t> n * sizeof(float))
    return 0
