// Which file a symbol of llama.cpp was bound to by the dynamic linker.
#pragma once

#include <string>

#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace pyllm {

// Path of the library that defines a function; empty where the system does not tell.
inline std::string origin(void * function) noexcept {
#ifdef _WIN32
    HMODULE module = nullptr;
    char path[32768];
    const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExA(flags, (LPCSTR) function, &module)) {
        return "";
    }
    return std::string(path, GetModuleFileNameA(module, path, sizeof(path)));
#else
    Dl_info info;
    return dladdr(function, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
#endif
}

}  // namespace pyllm
