// Forced into single files of llama.cpp that print errors to stderr: what they print goes to its log instead.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <vector>

#include "ggml.h"

void llama_log_internal(ggml_log_level level, const char * format, ...);

static inline int pyllm_fprintf(FILE * file, const char * format, ...) {
    va_list arguments;
    va_start(arguments, format);
    if (file != stderr) {
        const int written = vfprintf(file, format, arguments);
        va_end(arguments);
        return written;
    }
    std::vector<char> text(8192);
    const int length = vsnprintf(text.data(), text.size(), format, arguments);
    va_end(arguments);
    llama_log_internal(GGML_LOG_LEVEL_ERROR, "%s\n", text.data());
    return length;
}

#define fprintf pyllm_fprintf
