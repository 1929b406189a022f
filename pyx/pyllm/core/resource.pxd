"""The base of every object that owns C memory."""


cdef extern from "resource.hpp" namespace "pyllm" nogil:
    cdef cppclass mutex:
        mutex()
        bint try_lock()
        bint try_lock_for(int milliseconds)
        void unlock()
        void renew()


cdef class Resource:
    cdef mutex lock_                   # recursive: a callback may use the object that called it
    cdef int depth                     # how often the thread that has the lock has taken it
    cdef bint in_call                  # llama.cpp is working on it right now: callbacks must not touch it
    cdef int generation                # fork generation under which it was made
    cdef object __weakref__

    # Takes the lock; other Python threads and Ctrl-C go on while it waits.
    cdef int acquire(self) except -1
    cdef void release(self) noexcept
    cdef int check_fork(self) except -1
    cdef bint made_in_parent(self) noexcept
