// Forced into ggml-rpc.cpp: a thread that waits for a server can be interrupted, and nothing is printed.
#pragma once

// All that the file includes, before its words are replaced.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <queue>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ggml-impl.h"

// In transport.cpp: looks after signals and aborted decodes.
void pyllm_rpc_waiting();

// As std::promise<void>, but a thread that waits looks up several times a second.
class pyllm_rpc_event {
    struct shared {
        std::mutex              mutex;
        std::condition_variable changed;
        bool                    done = false;
    };

  public:
    class future {
      public:
        future() = default;
        explicit future(std::shared_ptr<shared> state) : state(std::move(state)) {}

        void wait() const {
            std::unique_lock<std::mutex> lock(state->mutex);
            while (!state->changed.wait_for(lock, std::chrono::milliseconds(50), [this] { return state->done; })) {
                lock.unlock();
                pyllm_rpc_waiting();
                lock.lock();
            }
        }

        future share() const { return *this; }

      private:
        std::shared_ptr<shared> state;
    };

    pyllm_rpc_event() : state(std::make_shared<shared>()) {}
    pyllm_rpc_event(const pyllm_rpc_event &) = delete;
    pyllm_rpc_event & operator=(const pyllm_rpc_event &) = delete;
    ~pyllm_rpc_event() { set_value(); }  // dropped from the queue: its waiters go on

    future get_future() const { return future(state); }

    void set_value() {
        {
            std::lock_guard<std::mutex> lock(state->mutex);
            state->done = true;
        }
        state->changed.notify_all();
    }

  private:
    std::shared_ptr<shared> state;
};

namespace std {
template <typename T> using pyllm_promise = pyllm_rpc_event;
template <typename T> using pyllm_shared_future = pyllm_rpc_event::future;
}  // namespace std

static inline void pyllm_rpc_print(ggml_log_level level, const char * format, ...) {
    char    text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    ggml_log_internal(level, "%s", text);
}

#define promise pyllm_promise
#define shared_future pyllm_shared_future
#define printf(...) pyllm_rpc_print(GGML_LOG_LEVEL_INFO, __VA_ARGS__)
#define fprintf(stream, ...) pyllm_rpc_print(GGML_LOG_LEVEL_ERROR, __VA_ARGS__)
