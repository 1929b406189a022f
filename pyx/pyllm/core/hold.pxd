"""A context held over several calls."""

from pyllm.core.context cimport Context


cdef class Hold:
    cdef Context context        # what is held
    cdef bint raw               # code of others calls llama.cpp's functions on it meanwhile
    cdef int depth              # blocks of this object that a thread is in
    cdef long thread            # which thread

cdef Hold make_hold(Context context, bint raw)
