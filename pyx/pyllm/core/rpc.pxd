"""Models whose layers are computed by servers on other machines."""

from libcpp cimport bool

from pyllm.includes cimport ggml_backend as lib

# The connections of a model, as rpc.pyx knows them: other modules need not include its header.
ctypedef void rpc_peers


# Around a call into llama.cpp that may wait for a server: Ctrl-C, and `abort` (a std::atomic<bool>, or NULL), end the
# waiting. end() says whether one of them did. `peers` may be NULL: nothing happens then.
cdef void begin(rpc_peers * peers, void * abort) noexcept nogil
cdef bool end(rpc_peers * peers) noexcept nogil

# Whether a connection was lost, and what came back since is not to be used.
cdef bint is_lost(rpc_peers * peers) noexcept nogil


cdef class Connections:
    """The connections of one model; `ptr` lives as long as this object."""

    cdef rpc_peers * ptr
    cdef list endpoints
    cdef list backends                 # addresses of ggml_backend: each holds its connection open

    # Raises `cls` if a connection was lost; the message begins with the server and goes on with `consequence`.
    cdef int check(self, object cls, str consequence, str function=*) except -1
    cdef void release(self) noexcept


# A server's device by name; NULL if there is none.
cdef lib.ggml_backend_dev_t find_device(name) except? NULL
# None if the devices are all here.
cdef Connections connect(list names)
