// Text that grows piece by piece: stop strings end it, and only whole characters come out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

namespace pyllm {

// Every public method may be called from any thread while another one appends.
class text_stream {
  public:
    void set_stops(const std::vector<std::string> & values) {
        stops = values;
        longest = 0;
        for (const std::string & stop : stops) {
            longest = std::max(longest, stop.size());
        }
    }

    // Adds bytes; returns true when the text has reached a stop string (it is cut off, nothing more is taken).
    bool append(const char * data, size_t size) {
        std::lock_guard<std::mutex> lock(mutex);
        if (stopped) {
            return true;
        }
        const size_t before = text.size();
        text.append(data, size);
        size_t cut = std::string::npos;
        int    which = -1;
        for (size_t i = 0; i < stops.size(); ++i) {
            const size_t overlap = stops[i].size() - 1;
            const size_t from    = std::max(taken, before > overlap ? before - overlap : 0);
            const size_t at      = text.find(stops[i], from);
            // The earliest match wins; of two at one place the one that was named first.
            if (at != std::string::npos && (cut == std::string::npos || at < cut)) {
                cut   = at;
                which = (int) i;
            }
        }
        if (cut != std::string::npos) {
            text.resize(cut);
            stopped  = true;
            stop_hit = which;
        }
        return stopped;
    }

    // The next bytes to hand out. `all`: the text has ended, hand out whatever is left.
    std::string take(bool all) {
        std::lock_guard<std::mutex> lock(mutex);
        const size_t end = all ? text.size() : ready();
        std::string  out = text.substr(taken, end - taken);
        taken = end;
        return out;
    }

    std::string all_text() {
        std::lock_guard<std::mutex> lock(mutex);
        return text;
    }

    // Index of the stop string that was found, or -1.
    int stopped_by() {
        std::lock_guard<std::mutex> lock(mutex);
        return stop_hit;
    }

  private:
    // End of the bytes that can be handed out: not within a character, not within what may become a stop string.
    size_t ready() const {
        if (stopped) {
            return text.size();
        }
        size_t end = text.size();
        for (size_t keep = std::min(longest > 0 ? longest - 1 : 0, text.size() - taken); keep > 0; --keep) {
            if (may_become_stop(text.size() - keep)) {
                end = text.size() - keep;
                break;
            }
        }
        return std::max(taken, end - unfinished(end));
    }

    bool may_become_stop(size_t from) const {
        const size_t size = text.size() - from;
        for (const std::string & stop : stops) {
            if (size < stop.size() && text.compare(from, size, stop, 0, size) == 0) {
                return true;
            }
        }
        return false;
    }

    // Bytes at the end of text[0, end) that begin a character and do not complete it.
    size_t unfinished(size_t end) const {
        for (size_t back = 1; back <= 3 && back <= end - taken; ++back) {
            const unsigned char c = (unsigned char) text[end - back];
            if ((c & 0xC0) == 0x80) {
                continue;  // inside a character
            }
            const size_t length = c >= 0xF0 && c <= 0xF4 ? 4 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xC2 && c < 0xE0 ? 2 : 1;
            return length > back ? back : 0;
        }
        return 0;
    }

    std::mutex               mutex;
    std::vector<std::string> stops;
    size_t                   longest  = 0;
    std::string              text;
    size_t                   taken    = 0;      // bytes that were handed out
    bool                     stopped  = false;
    int                      stop_hit = -1;
};

}  // namespace pyllm
