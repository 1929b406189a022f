// A recursive lock that can be waited for in slices, so that signals are seen meanwhile.
#pragma once

#include <chrono>
#include <mutex>
#include <new>

namespace pyllm {

class mutex {
  public:
    bool try_lock() { return inner.try_lock(); }
    bool try_lock_for(int milliseconds) { return inner.try_lock_for(std::chrono::milliseconds(milliseconds)); }
    void unlock() { inner.unlock(); }

    // In a forked child: whoever held it is gone.
    void renew() { new (&inner) std::recursive_timed_mutex(); }

  private:
    std::recursive_timed_mutex inner;
};

}  // namespace pyllm
