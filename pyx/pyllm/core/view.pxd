"""Zero-copy views on memory that llama.cpp made."""

from libcpp.atomic cimport atomic

from pyllm.includes.ggml_backend cimport ggml_backend_buffer_t


cdef class OutputMemory:
    cdef ggml_backend_buffer_t buffer     # freed with this object; NULL while a llama_context owns the memory
    cdef int generation                   # fork generation under which it was made
    cdef atomic[Py_ssize_t] views         # View objects on it: arrays and Outputs, fresh or stale, hold one each
    # Earlier decodes that live buffer views on logits, and on embeddings, were made for.
    cdef atomic[Py_ssize_t] old_logits
    cdef atomic[Py_ssize_t] old_embeddings


cdef class View:
    cdef OutputMemory memory              # keeps what `pointer` points to
    cdef void * pointer
    cdef Py_ssize_t shape_[2]
    cdef Py_ssize_t strides_[2]
    cdef atomic[Py_ssize_t] exports       # live buffer views that were made from this object
    cdef bint is_logits
    cdef bint outdated                    # counted in memory.old_logits or memory.old_embeddings

    cdef int set_outdated(self) except -1
    cdef int count(self, Py_ssize_t change) except -1

cdef View make_view(OutputMemory memory, bint is_logits, float * pointer, Py_ssize_t n_rows, Py_ssize_t n_columns)
