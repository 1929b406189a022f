"""A model file in memory."""

from libcpp.atomic cimport atomic

from pyllm.core.rpc cimport Connections
from pyllm.includes cimport llama as lib


cdef class Model:
    cdef lib.llama_model * ptr
    cdef atomic[int] users           # calls that are using ptr with the GIL released
    cdef int generation              # fork generation in which `users` was counted
    cdef readonly str path           # as given, for messages
    cdef object origin               # what loads it again: an absolute path, a SplitSource, or None
    cdef dict arguments              # those of the load, for pickle
    cdef readonly bint vocab_only
    cdef readonly bint no_alloc
    cdef bint extra_bufts            # weights may be repacked, and cannot be read back then
    cdef object contexts             # WeakSet: closing the model closes them first
    cdef object adapters             # WeakSet: they are closed next
    cdef object _vocab
    cdef bint borrowed               # C code owns ptr, and frees it
    cdef object owner                # kept alive for a model that is borrowed: what owns ptr
    cdef object __weakref__
    cdef Connections connections     # to RPC servers; None: no layer is elsewhere

    cdef int _check_metadata(self) except -1
    cdef bytes _check_path(self, path)
    # The only way to read ptr: raises ClosedError after close().
    cdef lib.llama_model * require(self) except NULL
    # The same around a `with nogil` block: close() waits until done().
    cdef lib.llama_model * use(self) except NULL
    cdef void done(self) noexcept
