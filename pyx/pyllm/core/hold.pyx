"""A context held over several calls: what ``Context.lock()`` and ``Context.raw_access()`` give."""

cimport cython

from pyllm.core.context cimport Context

from pyllm.core.introspection import not_pickled


cdef extern from "Python.h" nogil:
    long thread_ident "PyThread_get_thread_ident"()


@cython.no_gc_clear
cdef class Hold:
    """A ``with`` block in which one thread has a context for itself. Made by a Context."""

    __reduce__ = not_pickled("it belongs to its context; call Context.lock() there")

    def __init__(self):
        raise TypeError("a Hold is made by Context.lock() or Context.raw_access()")

    def __enter__(self):
        if self.context is None:
            raise TypeError("a Hold is made by Context.lock() or Context.raw_access()")
        self.context.acquire()
        try:
            self.context.require()
            if self.raw:
                self.context.begin_raw()
            self.thread = thread_ident()
            self.depth += 1
            return self.context.address if self.raw else self.context
        except BaseException:
            self.context.release()
            raise

    def __exit__(self, *exc_info):
        if self.depth < 1 or self.thread != thread_ident():
            raise RuntimeError("the block was not entered by this thread, which cannot leave it")
        self.depth -= 1
        try:
            if self.raw and not self.context.closed:
                self.context.outputs_changed()
        finally:
            self.context.release()


cdef Hold make_hold(Context context, bint raw):
    cdef Hold self = Hold.__new__(Hold)
    context.require()
    self.context = context
    self.raw = raw
    return self
