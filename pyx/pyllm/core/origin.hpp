// What the dynamic linker knows: which file a symbol was bound to, and where a function is.
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

// A function by its name, of the library that defines `neighbour` or of one that it is linked with; or null.
inline void * find_symbol(void * neighbour, const char * name) noexcept {
#ifdef _WIN32
    HMODULE module = nullptr;
    const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExA(flags, (LPCSTR) neighbour, &module)) {
        return nullptr;
    }
    for (HMODULE each : {module, GetModuleHandleA("pyllm-ggml.dll"), GetModuleHandleA("pyllm-ggml-base.dll")}) {
        if (void * found = each ? (void *) GetProcAddress(each, name) : nullptr) {
            return found;
        }
    }
    return nullptr;
#else
    // RTLD_NOLOAD: only what is loaded already, and its reference count is as before afterwards.
    void * handle = dlopen(origin(neighbour).c_str(), RTLD_LAZY | RTLD_NOLOAD);
    void * found = handle ? dlsym(handle, name) : nullptr;
    if (handle) {
        dlclose(handle);
    }
    return found;
#endif
}

}  // namespace pyllm
