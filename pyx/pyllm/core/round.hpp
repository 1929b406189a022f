// What a round of steps has to do with other threads: they can end it, and one of them is told after each step.
#pragma once

#include <atomic>

#ifdef _WIN32
#include <io.h>
#else
#include <fcntl.h>
#include <unistd.h>
#endif

namespace pyllm {

class round_flag {
  public:
    void set() { value.store(true); }
    void clear() { value.store(false); }
    bool is_set() const { return value.load(); }

  private:
    std::atomic<bool> value{ false };
};

// Whether writing to it could wait for a reader.
static inline bool can_block(int fd) {
#ifdef _WIN32
    (void) fd;
    return false;
#else
    const int flags = fcntl(fd, F_GETFL);
    return flags != -1 && (flags & O_NONBLOCK) == 0;
#endif
}

// Makes a pipe readable. One that is full is readable already.
static inline void ring(int fd) {
    const char one = 0;
#ifdef _WIN32
    (void) !_write(fd, &one, 1);
#else
    (void) !write(fd, &one, 1);
#endif
}

}  // namespace pyllm
