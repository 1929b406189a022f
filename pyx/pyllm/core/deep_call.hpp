// A call on a stack of its own, for what recurses as deep as its input is nested.
//
// Templates, JSON and parsers of answers recurse once or more for each level of nesting. Threads that Python starts have
// small stacks on some platforms, and what overflows a stack takes the process with it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <process.h>
#include <windows.h>
#else
#include <pthread.h>
#endif

namespace pyllm {

template <typename F> struct deep_task {
    F *                function;
    void               (*enter)();  // marks the thread as one of ours, so that assertions are thrown
    std::exception_ptr exception;

    void run() {
        try {
            enter();
            (*function)();
        } catch (...) {
            exception = std::current_exception();
        }
    }
};

#ifdef _WIN32
template <typename F> static unsigned __stdcall deep_main(void * data) {
    static_cast<deep_task<F> *>(data)->run();
    return 0;
}
#else
template <typename F> static void * deep_main(void * data) {
    static_cast<deep_task<F> *>(data)->run();
    return nullptr;
}
#endif

// Runs `function` to its end in a thread with `stack_size` bytes of stack. What it throws is thrown from here.
template <typename F> static void call_deep(size_t stack_size, void (*enter)(), F && function) {
    using plain = typename std::remove_reference<F>::type;
    deep_task<plain> task{ &function, enter, nullptr };
    bool             started = false;
#ifdef _WIN32
    uintptr_t thread = _beginthreadex(
        nullptr, (unsigned) std::min<size_t>(stack_size, 0xF0000000u), deep_main<plain>, &task,
        STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
    if (thread != 0) {
        WaitForSingleObject((HANDLE) thread, INFINITE);
        CloseHandle((HANDLE) thread);
        started = true;
    }
#else
    pthread_attr_t attributes;
    pthread_t      thread;
    pthread_attr_init(&attributes);
    started = pthread_attr_setstacksize(&attributes, stack_size) == 0 &&
              pthread_create(&thread, &attributes, deep_main<plain>, &task) == 0;
    pthread_attr_destroy(&attributes);
    if (started) {
        pthread_join(thread, nullptr);
    }
#endif
    if (!started) {
        throw std::runtime_error("no thread with a large stack could be started");
    }
    if (task.exception) {
        std::rethrow_exception(task.exception);
    }
}

}  // namespace pyllm
