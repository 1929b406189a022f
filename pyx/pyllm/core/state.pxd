"""The state of a context as bytes."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from pyllm.core.context cimport Context


cdef class State:
    cdef Context context            # owns what is saved and loaded

    cdef int _check(self, int32_t seq_id, uint32_t flags) except -1
    cdef size_t _payload_size(self, int32_t seq_id, uint32_t flags) except? 0
    cdef size_t _write(self, uint8_t * target, size_t size, int32_t seq_id, uint32_t flags) except? 0
    cdef size_t _read(self, const uint8_t * source, size_t size, int32_t seq_id, uint32_t flags) except? 0
    cdef bytes _seal(self, const uint8_t * payload, size_t size, int32_t seq_id, uint32_t flags)
    cdef size_t _check_seal(self, const uint8_t * data, size_t size, int32_t seq_id, uint32_t flags) except? 0
    cdef int _check_raw(self, const uint8_t * data, size_t size, int32_t seq_id) except -1
    cdef bytes _backup(self, int32_t seq_id)
    cdef int _put_back(self, bytes before, int32_t seq_id) except -1
    cdef bint _positions_are_sane(self) except -1
