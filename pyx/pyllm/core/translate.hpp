// C++ exceptions from llama.cpp become Python exceptions: the handler behind `except +translate`.
#pragma once

#include <Python.h>

#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

namespace pyllm {

// Called by Cython inside `catch (...)` with the GIL held; leaves a Python exception set.
// The choice of the Python class is made in pyllm.core.error, which knows about failed assertions.
static inline void translate() {
    const char * kind = "unknown";
    std::string  what = "an exception that is not a std::exception";
    try {
        throw;
    } catch (const std::bad_alloc & e) {
        kind = "bad_alloc";
        what = e.what();
    } catch (const std::out_of_range & e) {
        kind = "out_of_range";
        what = e.what();
    } catch (const std::invalid_argument & e) {
        kind = "invalid_argument";
        what = e.what();
    } catch (const std::exception & e) {
        kind = "exception";
        what = e.what();
    } catch (...) {
    }

    PyObject * module = PyImport_ImportModule("pyllm.core.error");
    if (module == nullptr) {
        return;
    }
    PyObject * result = PyObject_CallMethod(module, "raise_cpp", "sy", kind, what.c_str());
    Py_XDECREF(result);
    Py_DECREF(module);
    if (PyErr_Occurred() == nullptr) {
        PyErr_SetString(PyExc_SystemError, what.c_str());
    }
}

}  // namespace pyllm
