"""The KV cache of a context, and what can be done to its sequences (wraps ``llama_memory_*``)."""

cimport cython
from libc.stdint cimport int32_t, uintptr_t
from libcpp cimport bool

from pyllm import errors
from pyllm.core.introspection import not_pickled, signature
from pyllm.core.arguments cimport int32
from pyllm.core.context cimport Context
from pyllm.core.window cimport remove_range, window_reaches
from pyllm.includes cimport llama as lib

cdef enum:
    NO_END = 0x7FFFFFFF


@cython.no_gc_clear
cdef class Memory:
    """The KV cache (or recurrent state) of a context: ``ctx.memory``.

    Ranges of positions are ``[p0, p1)``; a negative p0 means from the beginning, a negative p1 to the end.

    Example:
        >>> ctx.memory.cp(0, 1)  # sequence 1 shares the prompt of sequence 0
        >>> ctx.memory.rm(1, p0=100)
        True
    """

    __reduce__ = not_pickled(
        "it belongs to its context; carry the cache over with ctx.state.save() and ctx.state.load()"
    )
    __signature__ = signature

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
            self.context.unapplied &= ~SHIFT
        finally:
            self.context.release()

    def rm(self, seq_id, p0=-1, p1=-1):
        """Remove tokens of a sequence (-1: of all sequences).

        Returns:
            bool: False when the sequence cannot go on from there; nothing was changed then. A recurrent state has no
            parts. A sliding window at p0 needs the tokens before it, and the cache may have overwritten them: their
            positions are smaller than :meth:`pos_min`. ``rm(seq_id)`` removes the whole sequence in every case.

        Wraps ``llama_memory_seq_rm``.
        """
        cdef int32_t c_seq_id = int32(seq_id, "seq_id")
        cdef int32_t c_p0 = int32(p0, "p0")
        cdef int32_t c_p1 = int32(p1, "p1")
        cdef bool done
        self.context.acquire()
        try:
            self.require()
            self.check_seq(c_seq_id, True)
            with nogil:
                done = remove_range(self.context.ptr, c_seq_id, c_p0, c_p1)
            return done
        finally:
            self.context.release()

    def cp(self, source, target, p0=-1, p1=-1):
        """Replace a range of sequence `target` by the tokens that `source` has there.

        It means the same in every layout of the cache. In a unified one the two share cells, and nothing is copied.
        Copying a sequence onto itself changes nothing.

        Raises:
            ContextError: The memory cannot do it, and nothing was changed: a recurrent state is copied as a whole; a
                cache with a part for each sequence (``kv_unified=False``) copies onto a sequence that has no tokens
                outside of the range; and a sliding window must find the tokens that it reads, as for :meth:`rm`.

        Wraps ``llama_memory_seq_cp``.
        """
        cdef int32_t c_source = int32(source, "source")
        cdef int32_t c_target = int32(target, "target")
        cdef int32_t first = max(int32(p0, "p0"), 0)
        cdef int32_t end = int32(p1, "p1")
        self.context.acquire()
        try:
            memory = self.require()
            self.check_seq(c_source, False)
            self.check_seq(c_target, False)
            if end < 0:
                end = NO_END
            if c_source == c_target or end <= first:
                return
            self._check_copy(memory, c_source, c_target, first, end)
            with nogil:
                if self._copies_whole():
                    self._copy_whole(memory, c_source, c_target, first, end)
                    if not self.context.kv_unified:
                        self._note(COPY)
                else:
                    # llama.cpp would add the tokens to those that are there.
                    lib.llama_memory_seq_rm(memory, c_target, first, end)
                    lib.llama_memory_seq_cp(memory, c_source, c_target, first, end)
        finally:
            self.context.release()

    cdef int _note(self, int flag) except -1 nogil:
        """Something is left for the next decode; a recurrent state is moved at once."""
        if not lib.llama_model_is_recurrent(lib.llama_get_model(self.context.ptr)):
            self.context.unapplied |= flag
        return 0

    cdef bint _copies_whole(self) noexcept nogil:
        """Whether llama.cpp copies whole sequences only."""
        cdef const lib.llama_model * model = lib.llama_get_model(self.context.ptr)
        return not self.context.kv_unified or lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)

    cdef int _copy_whole(
        self, lib.llama_memory_t memory, int32_t source, int32_t target, int32_t first, int32_t end
    ) except -1 nogil:
        lib.llama_memory_seq_rm(memory, target, -1, -1)
        lib.llama_memory_seq_cp(memory, source, target, -1, -1)
        # The buffers are copied with the next decode; cells are counted now.
        if first > 0:
            lib.llama_memory_seq_rm(memory, target, 0, first)
        if end <= lib.llama_memory_seq_pos_max(memory, target):
            lib.llama_memory_seq_rm(memory, target, end, -1)
        return 0

    cdef int _check_copy(
        self, lib.llama_memory_t memory, int32_t source, int32_t target, int32_t first, int32_t end
    ) except -1:
        cdef int32_t last = lib.llama_memory_seq_pos_max(memory, source)
        cdef int32_t target_first = lib.llama_memory_seq_pos_min(memory, target)
        cdef int32_t target_last = lib.llama_memory_seq_pos_max(memory, target)
        cdef int32_t n_swa = lib.llama_model_n_swa(lib.llama_get_model(self.context.ptr))
        model = self.context.model
        cdef bint recurrent = model.is_recurrent or model.is_hybrid
        # All that there is of both: the target ends up like the source, for which it is all right.
        if first == 0 and end > max(last, target_last):
            return 0
        if recurrent:
            raise errors.ContextError(
                f"a part of a recurrent state cannot be copied: cp({source}, {target}) copies all of it"
            )
        if not self.context.kv_unified and target_last >= 0 and (target_first < first or target_last >= end):
            raise errors.ContextError(
                f"sequence {target} has tokens outside of the range, from {target_first} to {target_last}, and only "
                "whole sequences can be copied in a cache with a part for each: remove them with "
                f"memory.rm({target}), or make the context with kv_unified=True"
            )
        if n_swa <= 0:
            return 0
        # Where the next token of the target stands, and the first position that its window reads.
        next = max(min(end, last + 1), target_last + 1 if target_last >= end else 0)
        reads = max(0, next - n_swa + 1)
        begin = max(first, reads)
        gone = begin < min(end, last + 1) and lib.llama_memory_seq_pos_min(memory, source) > begin
        if gone or (reads < first and target_last >= 0 and target_first > reads):
            raise errors.ContextError(
                f"sequence {target} could not go on at position {next}: a sliding window of {n_swa} tokens reads from "
                f"{reads} on, and the cache has overwritten a part of that; copy all of the sequence, or make the "
                "context with swa_full=True"
            )
        return 0

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
            ContextError: The memory cannot shift; see :attr:`can_shift`. Or a sliding window would read tokens that
                the cache has overwritten.

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
            # Tokens that come down stand behind others then: the window there must be complete.
            before = lib.llama_memory_seq_pos_min(memory, c_seq_id) < c_p0
            if c_delta < 0 and before and c_p0 <= lib.llama_memory_seq_pos_max(memory, c_seq_id):
                self._check_window(c_seq_id, c_p0 + c_delta)
            lib.llama_memory_seq_add(memory, c_seq_id, c_p0, c_p1, c_delta)
            self._note(SHIFT)
        finally:
            self.context.release()

    def div(self, seq_id, divisor, p0=-1, p1=-1):
        """Divide positions of a sequence by an integer greater than 1, rounding down.

        It is done position by position with ``llama_memory_seq_add``: at the pinned version
        ``llama_memory_seq_div`` turns the keys the wrong way.

        Raises:
            InvalidArgumentError: The divisor is smaller than 2.
            ContextError: The memory cannot shift. Or a sliding window would read tokens that the cache has
                overwritten.
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
            if first < end:
                # Its tokens move closer together, and a window then reads more of them.
                self._check_window(c_seq_id, last + 1 - (end - 1 - (end - 1) // c_divisor))
            # Upwards: p // divisor never reaches a position that is still to be moved.
            for p in range(first, end):
                if p // c_divisor != p:
                    lib.llama_memory_seq_add(memory, c_seq_id, p, p + 1, p // c_divisor - p)
                    self._note(SHIFT)
        finally:
            self.context.release()

    cdef int _check_window(self, int32_t seq_id, int32_t pos) except -1:
        if not window_reaches(self.context.ptr, seq_id, pos):
            raise errors.ContextError(
                f"sequence {seq_id} could not go on at position {pos}: its sliding window reads tokens before "
                f"position {lib.llama_memory_seq_pos_min(lib.llama_get_memory(self.context.ptr), seq_id)}, which the "
                "cache has overwritten; make the context with swa_full=True"
            )
        return 0

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
