// llama_tokenize on a stack that is large enough.
//
// Some vocabularies are split with std::regex, which recurses once for each character of a run: a few ten thousand
// equal characters overflow the stack of a thread, and the process is gone. Long texts therefore get a thread of
// their own, whose stack grows with the text. Only what is used of it becomes memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <stdexcept>

#include "llama.h"

#ifdef _WIN32
#define NOMINMAX
#include <process.h>
#include <windows.h>
#else
#include <pthread.h>
#endif

namespace pyllm {

struct tokenize_call {
    const llama_vocab * vocab;
    const char *        text;
    int32_t             length;
    llama_token *       tokens;
    int32_t             n_max;
    bool                add_special;
    bool                parse_special;
    void (*enter)();  // marks the thread as one of ours, so that assertions are thrown
    int32_t             result = 0;
    std::exception_ptr  exception;

    void run() {
        try {
            enter();
            result = llama_tokenize(vocab, text, length, tokens, n_max, add_special, parse_special);
        } catch (...) {
            exception = std::current_exception();
        }
    }
};

// Longest run of characters of one kind: the regular expressions never match across kinds for long.
static inline size_t longest_run(const char * text, size_t length) {
    auto kind = [](unsigned char c) {
        return c >= 0x80 || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ? 0
               : c >= '0' && c <= '9'                                         ? 1
               : c == ' ' || (c >= 9 && c <= 13)                              ? 2
                                                                              : 3;
    };
    size_t longest = 0;
    size_t start   = 0;
    for (size_t i = 1; i <= length; ++i) {
        if (i == length || kind(text[i]) != kind(text[start])) {
            longest = std::max(longest, i - start);
            start   = i;
        }
    }
    return longest;
}

#ifdef _WIN32
static unsigned __stdcall tokenize_main(void * data) {
    static_cast<tokenize_call *>(data)->run();
    return 0;
}
#else
static void * tokenize_main(void * data) {
    static_cast<tokenize_call *>(data)->run();
    return nullptr;
}
#endif

static inline bool run_on_stack(tokenize_call & call, size_t stack_size) {
#ifdef _WIN32
    uintptr_t thread = _beginthreadex(
        nullptr, (unsigned) std::min<size_t>(stack_size, 0xF0000000u), tokenize_main, &call,
        STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
    if (thread == 0) {
        return false;
    }
    WaitForSingleObject((HANDLE) thread, INFINITE);
    CloseHandle((HANDLE) thread);
    return true;
#else
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_t thread;
    const bool started = pthread_attr_setstacksize(&attributes, stack_size) == 0 &&
                         pthread_create(&thread, &attributes, tokenize_main, &call) == 0;
    pthread_attr_destroy(&attributes);
    if (started) {
        pthread_join(thread, nullptr);
    }
    return started;
#endif
}

static inline int32_t tokenize(
    const llama_vocab * vocab, const char * text, int32_t length, llama_token * tokens, int32_t n_max, bool add_special,
    bool parse_special, void (*enter)()) {
    static constexpr int32_t SHORT_TEXT     = 1024;
    static constexpr size_t  BYTES_PER_CHAR = 2048;  // several times what libstdc++ takes for one step
    static constexpr size_t  BASE           = 16u << 20;
    if (length <= SHORT_TEXT) {
        return llama_tokenize(vocab, text, length, tokens, n_max, add_special, parse_special);
    }
    tokenize_call call{ vocab, text, length, tokens, n_max, add_special, parse_special, enter };
    if (!run_on_stack(call, BASE + BYTES_PER_CHAR * longest_run(text, length))) {
        throw std::invalid_argument("no room for the stack that a run of so many characters of one kind needs");
    }
    if (call.exception) {
        std::rethrow_exception(call.exception);
    }
    return call.result;
}

}  // namespace pyllm
