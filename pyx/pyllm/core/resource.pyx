"""The base of every object that owns C memory: its lock, the process it belongs to."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals

from pyllm import errors
from pyllm.core cimport guard


@cython.no_gc_clear
cdef class Resource:
    """An object with C memory. Not made by itself; see Context and Sampler."""

    def __cinit__(self):
        self.generation = guard.fork_generation()

    cdef int check_fork(self) except -1:
        if self.made_in_parent():
            raise errors.ForkError(
                f"this {type(self).__name__} was made before os.fork(), and its threads exist only in the parent; "
                "make a new one in the child (the model can be shared), or start the child with the 'spawn' method"
            )
        return 0

    cdef bint made_in_parent(self) noexcept:
        return self.generation != guard.fork_generation()

    cdef int acquire(self) except -1:
        cdef bint got
        # Before the lock: a thread that exists only in the parent may hold it.
        self.check_fork()
        got = self.lock_.try_lock()
        while not got:
            with nogil:
                got = self.lock_.try_lock_for(50)
            if not got:
                PyErr_CheckSignals()
        self.depth += 1
        if self.in_call:
            # The lock is recursive, so this is the thread that is inside llama.cpp, in a callback of its own.
            self.depth -= 1
            self.lock_.unlock()
            raise errors.ReentrantError(
                f"this {type(self).__name__} is being used by the call that called back; "
                "a callback or signal handler can set a flag or call Context.abort(), and leave the rest for afterwards"
            )
        return 0

    cdef void release(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            guard.leave()
        self.lock_.unlock()
