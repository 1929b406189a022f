"""What can be read from a context, and set on it, between two decodes: sizes, threads, attention, times."""

cimport cython
from libc.stdint cimport int32_t, uintptr_t

from pyllm import enums, errors
from pyllm.core cimport guard
from pyllm.core.arguments cimport int32
from pyllm.core.threadpool cimport ThreadPool
from pyllm.includes cimport llama as lib


@cython.no_gc_clear
cdef class ContextSettings(Resource):
    """The sizes and settings of a context. Not made by itself: every :class:`pyllm.core.context.Context` is one."""

    cdef lib.llama_context * require(self) except NULL:
        if self.ptr == NULL:
            raise errors.ClosedError("the context has been closed")
        self.check_fork()
        guard.enter()
        return self.ptr

    cdef int _attach_pool(self) except -1:
        cdef int32_t n = max(lib.llama_n_threads(self.ptr), lib.llama_n_threads_batch(self.ptr))
        if n > 1:
            self.use_pool(ThreadPool(n))
        return 0

    cdef int use_pool(self, ThreadPool pool) except -1:
        lib.llama_attach_threadpool(self.ptr, pool.ptr, NULL)
        # The backend goes on pointing to the old one until the next decode.
        if self.pool is not None:
            self.old_pools.append(self.pool)
        self.pool = pool
        self.pool_lock = &pool.lock
        return 0

    cdef void lock_pool(self) noexcept nogil:
        if self.pool_lock != NULL:
            while not self.pool_lock.try_lock_for(1000):
                pass

    cdef void unlock_pool(self) noexcept nogil:
        if self.pool_lock != NULL:
            self.pool_lock.unlock()

    @property
    def has_memory(self):
        """False for encoder-only models, which have no KV cache."""
        return lib.llama_get_memory(self.require()) != NULL

    @property
    def closed(self):
        """True after :meth:`close`."""
        return self.ptr == NULL

    @property
    def address(self):
        """Address of the ``llama_context`` (int), for code that speaks C."""
        return <uintptr_t> self.require()

    @property
    def n_ctx(self):
        """Tokens that fit in the KV cache. Wraps ``llama_n_ctx``."""
        return lib.llama_n_ctx(self.require())

    @property
    def n_ctx_seq(self):
        """Tokens that fit for one sequence. Wraps ``llama_n_ctx_seq``."""
        return lib.llama_n_ctx_seq(self.require())

    @property
    def n_batch(self):
        """Most tokens that one decode takes. Wraps ``llama_n_batch``."""
        return lib.llama_n_batch(self.require())

    @property
    def n_ubatch(self):
        """Most tokens that are computed at once. Wraps ``llama_n_ubatch``."""
        return lib.llama_n_ubatch(self.require())

    @property
    def n_seq_max(self):
        """Number of sequences. Wraps ``llama_n_seq_max``."""
        return lib.llama_n_seq_max(self.require())

    @property
    def n_rs_seq(self):
        """Snapshots of recurrent state kept for each sequence. Wraps ``llama_n_rs_seq``."""
        return lib.llama_n_rs_seq(self.require())

    @property
    def pooling_type(self):
        """How embeddings are pooled (:class:`pyllm.enums.PoolingType`). Wraps ``llama_pooling_type``."""
        return enums.PoolingType(<int> lib.llama_get_pooling_type(self.require()))

    @property
    def n_threads(self):
        """Threads for generation. Wraps ``llama_n_threads``."""
        return lib.llama_n_threads(self.require())

    @property
    def n_threads_batch(self):
        """Threads for prompts. Wraps ``llama_n_threads_batch``."""
        return lib.llama_n_threads_batch(self.require())

    @property
    def threadpool(self):
        """The worker threads (:class:`pyllm.core.threadpool.ThreadPool`), or None where there is one thread only."""
        self.require()
        return self.pool

    def attach_threadpool(self, ThreadPool pool not None):
        """Compute with these worker threads.

        Contexts that are used in turn should share a pool: after a decode its threads look out for the next one for a
        while, and those of one context would take the processors from the other. Contexts that decode at the same
        time should not, because a pool serves one at a time and the others wait.

        Args:
            pool: Of at least as many threads as the context has.

        Raises:
            InvalidArgumentError: It has fewer.

        Wraps ``llama_attach_threadpool``.
        """
        self.acquire()
        try:
            self.require()
            n = max(lib.llama_n_threads(self.ptr), lib.llama_n_threads_batch(self.ptr))
            if pool.n_threads < n:
                raise errors.InvalidArgumentError(
                    f"the pool has {pool.n_threads} threads and the context computes with {n}: make a larger pool, or "
                    "call set_n_threads()"
                )
            if pool.generation != guard.fork_generation():
                raise errors.ForkError("the threads of this pool exist only in the process that made it")
            self.use_pool(pool)
        finally:
            self.release()

    def set_n_threads(self, n_threads, n_threads_batch=None):
        """Change the numbers of threads; the second defaults to the first. Wraps ``llama_set_n_threads``."""
        cdef int32_t c_n_threads = int32(n_threads, "n_threads")
        cdef int32_t n_batch = c_n_threads if n_threads_batch is None else n_threads_batch
        if c_n_threads < 1 or n_batch < 1:
            raise errors.InvalidArgumentError(f"threads must be at least 1, not {c_n_threads} and {n_batch}")
        self.acquire()
        try:
            self.require()
            if max(c_n_threads, n_batch) > (self.pool.n_threads if self.pool is not None else 1):
                self.use_pool(ThreadPool(max(c_n_threads, n_batch)))
            lib.llama_set_n_threads(self.ptr, c_n_threads, n_batch)
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

    def synchronize(self):
        """Wait until everything that was started is computed. Wraps ``llama_synchronize``."""
        self.acquire()
        try:
            self.require()
            with nogil:
                lib.llama_synchronize(self.ptr)
        finally:
            self.release()

    def set_embeddings(self, bint value):
        """Switch the output of embeddings on or off. Wraps ``llama_set_embeddings``."""
        self.acquire()
        try:
            lib.llama_set_embeddings(self.require(), value)
            self.embeddings_ = value
        finally:
            self.release()

    @property
    def causal_attn(self):
        """Whether a token attends only to those before it. Wraps ``llama_get_causal_attn``."""
        return lib.llama_get_causal_attn(self.require())

    def set_causal_attn(self, bint value):
        """Switch causal attention on or off. Wraps ``llama_set_causal_attn``."""
        self.acquire()
        try:
            lib.llama_set_causal_attn(self.require(), value)
        finally:
            self.release()

    def perf(self):
        """Times of this context in milliseconds, and counts (dict); zeros when made with no_perf=True, the default.

        Wraps ``llama_perf_context``.
        """
        cdef lib.llama_perf_context_data data = lib.llama_perf_context(self.require())
        return {
            "t_start_ms": data.t_start_ms,
            "t_load_ms": data.t_load_ms,
            "t_p_eval_ms": data.t_p_eval_ms,
            "t_eval_ms": data.t_eval_ms,
            "n_p_eval": data.n_p_eval,
            "n_eval": data.n_eval,
            "n_reused": data.n_reused,
        }

    def perf_reset(self):
        """Start measuring anew. Wraps ``llama_perf_context_reset``."""
        lib.llama_perf_context_reset(self.require())
