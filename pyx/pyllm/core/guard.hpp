// State of one thread while it is inside llama.cpp: what was logged, and whether an assertion may be thrown.
// Included by error.pyx alone, so that there is exactly one copy of the thread-local variables.
#pragma once

#include <Python.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

namespace pyllm {

static constexpr size_t MAX_LOG_LINES = 32;

struct thread_state {
    bool                    inside = false;  // this thread has entered llama.cpp through pyllm
    std::string             assertion;       // message of the last assertion thrown in this thread
    std::deque<std::string> log;             // warnings and errors of the current call
    std::string             line;            // a line that llama.cpp has not finished yet
    int                     line_level = 0;
    bool                    quiet      = false;  // in a destructor: no Python may run
};

static thread_local thread_state state;

// Lines below this level are not worth taking the GIL for. 99 = nobody listens.
static std::atomic<int> min_level{ 99 };

// Callbacks that need Python are counted, so that the interpreter can wait for them before it goes down:
// a thread that asks for the GIL later is ended in the middle of llama.cpp.
static std::atomic<bool> finalizing{ false };
static std::atomic<int>  in_python{ 0 };
static std::atomic<int>  in_native{ 0 };  // long calls into llama.cpp that run without the GIL

// What the callback does, pyllm calls of its own included, must not touch the state of the call it came from,
// and an assertion must not be thrown through the frames of the Python interpreter.
static thread_local std::vector<thread_state> suspended;

static inline bool begin_python() {
    in_python.fetch_add(1);
    if (finalizing.load()) {
        in_python.fetch_sub(1);
        return false;
    }
    suspended.push_back(std::move(state));
    state = thread_state();
    return true;
}

static inline void end_python() {
    state = std::move(suspended.back());
    suspended.pop_back();
    in_python.fetch_sub(1);
}

static inline void begin_native() { in_native.fetch_add(1); }

static inline void end_native() { in_native.fetch_sub(1); }

static inline void enter() {
    state.inside = true;
    if (!state.log.empty()) {
        state.log.clear();
    }
}

static inline void leave() { state.inside = false; }

// Adds a piece of log text; returns true when `out` was filled with complete lines that somebody wants to read.
static inline bool log_append(int level, const char * text, int & out_level, std::string & out) {
    static constexpr int LEVEL_WARN = 3;
    static constexpr int LEVEL_CONT = 5;
    if (level != LEVEL_CONT) {
        state.line_level = level;
    }
    state.line += text;
    const size_t end = state.line.rfind('\n');
    if (end == std::string::npos) {
        return false;
    }
    std::string done = state.line.substr(0, end);
    state.line.erase(0, end + 1);
    out_level = state.line_level;
    if (done.find_first_not_of(" .\n\r\t") == std::string::npos) {
        return false;  // progress dots and empty lines say nothing
    }
    if (out_level >= LEVEL_WARN) {
        state.log.push_back(done);
        if (state.log.size() > MAX_LOG_LINES) {
            state.log.pop_front();
        }
    }
    if (state.quiet || out_level < min_level.load(std::memory_order_relaxed)) {
        return false;
    }
    out = std::move(done);
    return true;
}

[[noreturn]] static inline void sleep_forever() {
    for (;;) {
        std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

static inline void write_stderr(const char * text) {
#ifdef _WIN32
    (void) !_write(2, text, (unsigned) strlen(text));
#else
    (void) !write(2, text, strlen(text));
#endif
}

// Installed with ggml_set_abort_callback. ggml calls abort() when it returns.
static void on_abort(const char * message) {
    if (state.inside) {
        state.assertion = message;
        throw std::runtime_error(message);
    }
    // A worker thread of ggml: nothing above it can catch. Say what is known before the process ends.
    write_stderr("pyllm: an assertion failed in a thread of ggml and the process cannot go on:\n");
    write_stderr(message);
    write_stderr("\n");
    if (Py_IsInitialized() && begin_python()) {
        PyGILState_STATE gil = PyGILState_Ensure();
        PyObject * module = PyImport_ImportModule("faulthandler");
        PyObject * result = module ? PyObject_CallMethod(module, "dump_traceback", "i", 2) : nullptr;
        if (result == nullptr) {
            PyErr_Clear();
        }
        Py_XDECREF(result);
        Py_XDECREF(module);
        PyGILState_Release(gil);
        end_python();
    }
}

}  // namespace pyllm
