// How well a CPU module of ggml fits this processor, asked of the module itself.
#pragma once

#include <string>

#ifdef _WIN32
#define NOMINMAX
#include <filesystem>
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace pyllm {

// ggml_backend_score() of a module: 0 where the processor lacks something, 1 where the module does not score itself.
// -1 with the reason in `error` where it cannot be loaded. The module is unloaded again.
inline int module_score(const char * path, std::string & error) {
    using score_function = int (*)();
#ifdef _WIN32
    HMODULE handle = LoadLibraryW(std::filesystem::u8path(path).c_str());
    if (!handle) {
        error = "LoadLibrary failed with error " + std::to_string(GetLastError());
        return -1;
    }
    auto score = (score_function) (void *) GetProcAddress(handle, "ggml_backend_score");
    const int result = score ? score() : 1;
    FreeLibrary(handle);
#else
    void * handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char * message = dlerror();
        error = message ? message : "dlopen failed";
        return -1;
    }
    auto score = (score_function) dlsym(handle, "ggml_backend_score");
    const int result = score ? score() : 1;
    dlclose(handle);
#endif
    return result;
}

}  // namespace pyllm
