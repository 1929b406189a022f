"""How many tokens to draft: from what drafting has cost and brought so far."""

from libc.stdint cimport int32_t, int64_t


cdef class Pace:
    cdef readonly int32_t n_max           # most tokens of a draft
    cdef readonly bint adaptive           # whether it changes anything
    cdef readonly int32_t length          # most tokens of the next draft
    cdef readonly int32_t pause           # steps to go without a draft
    cdef readonly int64_t paused          # steps that were made in pauses, all together
    cdef readonly double plain_us         # what a step without a draft takes, a running average; 0 is unknown
    cdef readonly double gain             # tokens for the same time, with drafts against without; a running average
    cdef int32_t next_pause               # how long the next pause will be
    cdef int32_t n_plain                  # steps without a draft that were measured
    cdef int32_t since_plain              # rounds since the last of them
    cdef int32_t n_rounds                 # rounds since drafting was switched on

    cdef int32_t allowed(self) noexcept nogil
    cdef void plain(self, int64_t us) noexcept nogil
    cdef void round(self, int32_t drafted, int32_t accepted, int64_t us) noexcept nogil
