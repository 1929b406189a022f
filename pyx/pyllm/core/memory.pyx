"""The KV cache of a context, and what can be done to its sequences (wraps ``llama_memory_*``)."""

cimport cython
from libc.stdint cimport int32_t, uintptr_t

from pyllm import errors
from pyllm.core.arguments cimport int32
from pyllm.core.context cimport Context
from pyllm.includes cimport llama as lib


@cython.no_gc_clear
cdef class Memory:
    """The KV cache (or recurrent state) of a context: ``ctx.memory``.

    Ranges of positions are ``[p0, p1)``; a negative p0 means from the beginning, a negative p1 to the end.

    Example:
        >>> ctx.memory.cp(0, 1)  # sequence 1 shares the prompt of sequence 0
        >>> ctx.memory.rm(1, p0=100)
        True
    """

    def __cinit__(self, Context context not None):
        self.context = context

    cdef lib.llama_memory_t require(self) except NULL:
        cdef lib.llama_memory_t memory = lib.llama_get_memory(self.context.require())
        if memory == NULL:
            raise errors.ContextError("this context has no memory: encoder-only models keep no KV cache")
        return memory

    cdef int check_seq(self, int seq_id, bint any_allowed) except -1:
        if seq_id >= self.context.n_seq_max_ or seq_id < (-1 if any_allowed else 0):
            raise errors.InvalidArgumentError(
                f"sequence id {seq_id} is out of range: the context has n_seq_max={self.context.n_seq_max_}"
                + (", and -1 means all" if any_allowed else "")
            )
        return 0

    @property
    def address(self):
        """Address of the ``llama_memory_i`` (int), for code that speaks C."""
        return <uintptr_t> self.require()

    def clear(self, bint data=True):
        """Forget all sequences.

        Args:
            data: Also overwrite the buffers with zeros.

        Wraps ``llama_memory_clear``.
        """
        self.context.acquire()
        try:
            memory = self.require()
            with nogil:
                lib.llama_memory_clear(memory, data)
        finally:
            self.context.release()

    def rm(self, seq_id, p0=-1, p1=-1):
        """Remove tokens of a sequence (-1: of all sequences).

        Returns:
            bool: False when a part of a sequence cannot be removed (recurrent models); nothing was changed then.

        Wraps ``llama_memory_seq_rm``.
        """
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        cdef int32_t c_p0 = int32(p0, "p0")
        cdef int32_t c_p1 = int32(p1, "p1")
        self.context.acquire()
        try:
            memory = self.require()
            self.check_seq(c_seq_id, True)
            return lib.llama_memory_seq_rm(memory, c_seq_id, c_p0, c_p1)
        finally:
            self.context.release()

    def cp(self, source, target, p0=-1, p1=-1):
        """Let sequence `target` share the tokens of `source`, without copying them in a unified cache.

        Wraps ``llama_memory_seq_cp``.
        """
        cdef int32_t c_source = int32(source, "source")
        cdef int32_t c_target = int32(target, "target")
        cdef int32_t c_p0 = int32(p0, "p0")
        cdef int32_t c_p1 = int32(p1, "p1")
        self.context.acquire()
        try:
            memory = self.require()
            self.check_seq(c_source, False)
            self.check_seq(c_target, False)
            with nogil:
                lib.llama_memory_seq_cp(memory, c_source, c_target, c_p0, c_p1)
        finally:
            self.context.release()

    def keep(self, seq_id):
        """Remove all sequences but one. Wraps ``llama_memory_seq_keep``."""
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        self.context.acquire()
        try:
            memory = self.require()
            self.check_seq(c_seq_id, False)
            lib.llama_memory_seq_keep(memory, c_seq_id)
            # In a cache that is not unified, llama.cpp looks only at the part of this sequence.
            for other in range(self.context.n_seq_max_):
                if other != seq_id:
                    lib.llama_memory_seq_rm(memory, other, -1, -1)
        finally:
            self.context.release()

    def add(self, seq_id, delta, p0=-1, p1=-1):
        """Shift positions of a sequence by `delta`.

        Raises:
            ContextError: The memory cannot shift; see :attr:`can_shift`.

        Wraps ``llama_memory_seq_add``.
        """
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        cdef int32_t c_delta = int32(delta, "delta")
        cdef int32_t c_p0 = int32(p0, "p0")
        cdef int32_t c_p1 = int32(p1, "p1")
        self.context.acquire()
        try:
            memory = self.require()
            self.check_seq(c_seq_id, False)
            self._check_shift(memory)
            if <long long> lib.llama_memory_seq_pos_max(memory, c_seq_id) + c_delta > 0x7FFFFFFF:
                raise errors.InvalidArgumentError(f"positions end at 2147483647; shifting by {c_delta} goes beyond")
            lib.llama_memory_seq_add(memory, c_seq_id, c_p0, c_p1, c_delta)
        finally:
            self.context.release()

    def div(self, seq_id, divisor, p0=-1, p1=-1):
        """Divide positions of a sequence by an integer greater than 1, rounding down.

        It is done position by position with ``llama_memory_seq_add``: at the pinned version
        ``llama_memory_seq_div`` turns the keys the wrong way.

        Raises:
            InvalidArgumentError: The divisor is smaller than 2.
            ContextError: The memory cannot shift.
        """
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        cdef int32_t c_divisor = int32(divisor, "divisor")
        cdef int32_t first = int32(p0, "p0")
        cdef int32_t end = int32(p1, "p1")
        cdef int32_t p
        self.context.acquire()
        try:
            memory = self.require()
            self.check_seq(c_seq_id, False)
            if c_divisor < 2:
                raise errors.InvalidArgumentError(f"the divisor must be at least 2, not {c_divisor}")
            self._check_shift(memory)
            first = max(first, lib.llama_memory_seq_pos_min(memory, c_seq_id), 0)
            last = lib.llama_memory_seq_pos_max(memory, c_seq_id)
            if end < 0 or end > last:
                end = last + 1
            # Upwards: p // divisor never reaches a position that is still to be moved.
            for p in range(first, end):
                if p // c_divisor != p:
                    lib.llama_memory_seq_add(memory, c_seq_id, p, p + 1, p // c_divisor - p)
        finally:
            self.context.release()

    cdef int _check_shift(self, lib.llama_memory_t memory) except -1:
        if not lib.llama_memory_can_shift(memory):
            raise errors.ContextError("positions cannot be changed in the memory of this model (can_shift is False)")
        if self.context.bf16_keys:
            raise errors.ContextError("positions cannot be changed in a cache with type_k='bf16'; use 'f16' or 'f32'")
        return 0

    def pos_min(self, seq_id):
        """The smallest position present of a sequence, or -1 when it is empty. Wraps ``llama_memory_seq_pos_min``."""
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        self.context.acquire()
        try:
            memory = self.require()
            self.check_seq(c_seq_id, False)
            return lib.llama_memory_seq_pos_min(memory, c_seq_id)
        finally:
            self.context.release()

    def pos_max(self, seq_id):
        """The largest position present of a sequence, or -1 when it is empty. Wraps ``llama_memory_seq_pos_max``."""
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        self.context.acquire()
        try:
            memory = self.require()
            self.check_seq(c_seq_id, False)
            return lib.llama_memory_seq_pos_max(memory, c_seq_id)
        finally:
            self.context.release()

    @property
    def can_shift(self):
        """Whether :meth:`add` and :meth:`div` work. Wraps ``llama_memory_can_shift``."""
        self.context.acquire()
        try:
            return lib.llama_memory_can_shift(self.require()) and not self.context.bf16_keys
        finally:
            self.context.release()

    def __repr__(self):
        if self.context.closed:
            return "<Memory of a closed context>"
        return f"<Memory n_ctx={self.context.n_ctx} n_seq_max={self.context.n_seq_max}>"
