# The handler that turns a C++ exception into a Python exception: `except +translate` on every foreign function.
# Cython calls it inside `catch (...)`, with the GIL held; it sets the Python error and returns.

cdef extern from "pyllm/core/translate.hpp" namespace "pyllm":
    void translate()
