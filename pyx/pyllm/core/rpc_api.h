// What the RPC module offers to pyllm.core.rpc beside ggml's own functions. Shared by the module
// (llama_cpp_src/rpc/transport.cpp) and the core: both are compiled with this file.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define PYLLM_RPC_API_VERSION 1
#define PYLLM_RPC_INTERFACE "pyllm_rpc_interface"

// One server by "host:port"; lives until the process ends.
struct pyllm_rpc_peer;

struct pyllm_rpc_api {
    int version;

    pyllm_rpc_peer * (*peer)(const char * endpoint);
    // Number of the newest connection to the server, and of the last one that was lost. 0: none yet.
    int64_t (*connection)(const pyllm_rpc_peer * peer);
    int64_t (*lost)(const pyllm_rpc_peer * peer);
    // Why the last attempt to connect failed or the last connection was lost; cut off at `size`.
    void (*reason)(pyllm_rpc_peer * peer, char * text, size_t size);
    // Drop the connection unless the server answers within so many milliseconds. Negative: take that back.
    void (*give_up)(pyllm_rpc_peer * peer, int milliseconds);
    // Called by a thread that waits for a server, several times a second. True: it should not go on connecting.
    void (*set_hook)(bool (*hook)(void));
    void (*set_timeouts)(int connect_ms, int answer_ms);

    // The server's side. `stop` ends the running server, `listening` is true once it takes connections.
    void (*start)(void);
    void (*stop)(void);
    bool (*listening)(void);
    void (*listen_error)(char * text, size_t size);
};
