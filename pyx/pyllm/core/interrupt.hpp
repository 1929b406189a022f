// The abort callback of a context: cheap enough to be asked at every node of every graph.
#pragma once

#include <atomic>
#include <chrono>

namespace pyllm {

struct interrupt {
    using clock = std::chrono::steady_clock;

    std::atomic<bool> requested{ false };        // set by abort() from any thread
    bool              watch = false;             // whether `poll` has anything to look at in this call
    bool (*poll)(void * owner) = nullptr;        // takes the GIL: signals, and the user's callback
    bool (*is_finalizing)() = nullptr;           // the interpreter goes down: stop computing
    void *            owner = nullptr;
    unsigned          asked = 0;
    clock::time_point next;

    // Before each call into llama.cpp. The time of the next look goes on from call to call: a generation is many
    // short ones.
    void begin(bool watch_) { watch = watch_; }

    void request() { requested.store(true); }

    bool take_request() { return requested.exchange(false); }

    static clock::duration interval() { return std::chrono::milliseconds(20); }

    static bool callback(void * data) {
        interrupt & self = *static_cast<interrupt *>(data);
        if (self.requested.load(std::memory_order_relaxed) || self.is_finalizing()) {
            return true;
        }
        // The clock is read at every fourth node, the GIL is taken every 20 ms.
        if (!self.watch || (++self.asked & 3) != 0) {
            return false;
        }
        const clock::time_point now = clock::now();
        if (now < self.next) {
            return false;
        }
        self.next = now + interval();
        if (self.poll(self.owner)) {
            self.requested.store(true);
            return true;
        }
        return false;
    }
};

}  // namespace pyllm
