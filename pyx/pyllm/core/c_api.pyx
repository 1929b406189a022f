"""pyllm's objects for C, C++ and Rust: the capsule ``pyllm._C_API``, and addresses of functions.

The table is declared in ``pyllm_api.h``, which lies in :func:`pyllm.get_include`.
"""

import difflib
import re
from pathlib import Path

from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_New
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uintptr_t

from pyllm import errors, linking
from pyllm.core.arguments cimport c_text
from pyllm.core.context cimport Context
from pyllm.core.model cimport Model
from pyllm.core.sampler cimport Sampler
from pyllm.core.vocab cimport Vocab
from pyllm.includes cimport ggml
from pyllm.includes cimport llama as lib

from pyllm.version import __version__


cdef extern from "origin.hpp" namespace "pyllm" nogil:
    void * find_symbol(void * neighbour, const char * name) noexcept


cdef extern from "pyllm_api.h" nogil:
    enum:
        PYLLM_API_MAJOR
        PYLLM_API_MINOR
        PYLLM_CLASS_LAYOUT
    const char * PYLLM_API_CAPSULE

    struct pyllm_api:
        uint32_t abi_major
        uint32_t abi_minor
        size_t size
        const char * version
        const char * llama_commit
        const char * build_id
        lib.llama_model * (*model)(PyObject * object) except? NULL
        const lib.llama_vocab * (*vocab)(PyObject * object) except? NULL
        lib.llama_context * (*context)(PyObject * object) except? NULL
        lib.llama_sampler * (*sampler)(PyObject * object) except? NULL
        int (*acquire)(PyObject * context) except -1
        void (*release)(PyObject * context) noexcept
        int (*outputs_changed)(PyObject * context) except -1
        void * (*function)(const char * name) noexcept nogil
        int (*begin_raw)(PyObject * context) except -1


cdef extern from "pyllm_api_table.hpp" namespace "pyllm" nogil:
    # Fills in the functions of llama.h, with the types that the C compiler checks.
    void fill_functions(pyllm_api & table)


cdef lib.llama_model * model_pointer(PyObject * object) except? NULL:
    return (<Model?> <object> object).require()


cdef const lib.llama_vocab * vocab_pointer(PyObject * object) except? NULL:
    if isinstance(<object> object, Model):
        return (<Vocab> (<Model> <object> object).vocab).require()
    return (<Vocab?> <object> object).require()


cdef lib.llama_context * context_pointer(PyObject * object) except? NULL:
    return (<Context?> <object> object).require()


cdef lib.llama_sampler * sampler_pointer(PyObject * object) except? NULL:
    return (<Sampler?> <object> object).require()


cdef int acquire(PyObject * object) except -1:
    (<Context?> <object> object).acquire()
    return 0


cdef void release(PyObject * object) noexcept:
    (<Context> <object> object).release()


cdef int outputs_changed(PyObject * object) except -1:
    (<object> object).outputs_changed()
    return 0


cdef int begin_raw(PyObject * object) except -1:
    cdef Context context = <Context?> <object> object
    context.acquire()
    try:
        context.require()
        return context.begin_raw()
    finally:
        context.release()


cdef void * find(const char * name) noexcept nogil:
    return find_symbol(<void *> lib.llama_decode, name)


def function_address(name):
    """Address of a function of ``llama.h`` or ``ggml.h`` (int), for ctypes, cffi or a library that takes pointers.

    Args:
        name: Its name, e.g. "llama_tokenize".

    Raises:
        InvalidArgumentError: There is no such function; the message has the nearest names.
    """
    encoded = c_text(name, "the name of a function")
    cdef void * address = find(encoded) if _DECLARED.fullmatch(name) else NULL
    if address == NULL:
        header = Path(linking.get_include(), "llama.h").read_text(encoding="utf-8")
        nearest = difflib.get_close_matches(name, set(_DECLARED.findall(header)), n=3)
        raise errors.InvalidArgumentError(
            f"llama.h has no function {name!r}" + (f"; the nearest: {', '.join(nearest)}" if nearest else "")
        )
    return <uintptr_t> address


# The number of the layout that the classes have, for modules that cimport them.
CLASS_LAYOUT = PYLLM_CLASS_LAYOUT

# Other symbols of the libraries are no part of any interface.
_DECLARED = re.compile(r"\b(?:llama|ggml|gguf)_\w+")

cdef pyllm_api table
# The table points into these.
cdef bytes _version = __version__.encode()
cdef bytes _build_id = linking.build_info()["build_id"].encode()

table.abi_major = PYLLM_API_MAJOR
table.abi_minor = PYLLM_API_MINOR
table.size = sizeof(pyllm_api)
table.version = _version
table.llama_commit = ggml.ggml_commit()
table.build_id = _build_id
table.model = model_pointer
table.vocab = vocab_pointer
table.context = context_pointer
table.sampler = sampler_pointer
table.acquire = acquire
table.release = release
table.outputs_changed = outputs_changed
table.function = find
table.begin_raw = begin_raw
fill_functions(table)

_C_API = PyCapsule_New(&table, PYLLM_API_CAPSULE, NULL)
