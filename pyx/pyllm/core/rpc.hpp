// Connections of a model to RPC servers, and what a thread does while it waits for one.
// Included by rpc.pyx alone, so that there is exactly one copy of the thread-local variable.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "rpc_api.h"

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <filesystem>
#else
#include <dlfcn.h>
#endif

namespace pyllm {

// A server that answers goes on; one that does not is given up so long after Ctrl-C or an aborted decode.
static constexpr int GRACE_MS = 3000;

// The connections that one model uses. They stay the same until the model is closed.
struct rpc_peers {
    struct one {
        pyllm_rpc_peer * peer;
        int64_t          connection;
    };

    const pyllm_rpc_api * api = nullptr;
    std::vector<one>      all;

    // Index of the first whose connection was lost, or -1.
    int first_lost() const noexcept {
        for (size_t i = 0; i < all.size(); i++) {
            if (api->lost(all[i].peer) >= all[i].connection) {
                return (int) i;
            }
        }
        return -1;
    }

    void give_up(int milliseconds) noexcept {
        for (const one & each : all) {
            api->give_up(each.peer, milliseconds);
        }
    }
};

// What this thread waits for, while it is inside a call that may go to a server.
struct rpc_call {
    rpc_peers *                           peers = nullptr;
    const std::atomic<bool> *             abort = nullptr;  // asked for by another thread
    bool                                  interrupted = false;
    std::chrono::steady_clock::time_point next;
};

static thread_local rpc_call current;

static inline void begin_rpc(rpc_peers * peers, const std::atomic<bool> * abort) noexcept {
    current       = rpc_call();
    current.peers = peers;
    current.abort = abort;
}

// Whether the call was interrupted while it waited.
static inline bool end_rpc() noexcept {
    const bool interrupted = current.interrupted;
    if (interrupted && current.peers != nullptr) {
        current.peers->give_up(-1);
    }
    current = rpc_call();
    return interrupted;
}

// Set by rpc.pyx. `has_signal` runs signal handlers if this is the main thread; true: one of them raised.
static bool (*has_signal)()    = nullptr;
static bool (*is_finalizing)() = nullptr;

static inline bool on_wait() {
    const auto now = std::chrono::steady_clock::now();
    if (!current.interrupted && now >= current.next) {
        current.next        = now + std::chrono::milliseconds(50);
        current.interrupted = is_finalizing() || (current.abort != nullptr && current.abort->load()) || has_signal();
        if (current.interrupted && current.peers != nullptr) {
            current.peers->give_up(GRACE_MS);
        }
    }
    return current.interrupted;
}

// The interface of a module that is loaded already; NULL where it is not one of pyllm's.
static inline const pyllm_rpc_api * find_rpc_api(const char * path) {
    using function = const pyllm_rpc_api * (*) ();
#ifdef _WIN32
    HMODULE handle = GetModuleHandleW(std::filesystem::u8path(path).c_str());
    auto    get    = handle ? (function) (void *) GetProcAddress(handle, PYLLM_RPC_INTERFACE) : nullptr;
#else
    void * handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    auto   get    = handle ? (function) dlsym(handle, PYLLM_RPC_INTERFACE) : nullptr;
    if (handle) {
        dlclose(handle);  // ggml holds it
    }
#endif
    const pyllm_rpc_api * api = get ? get() : nullptr;
    return api && api->version == PYLLM_RPC_API_VERSION ? api : nullptr;
}

}  // namespace pyllm
