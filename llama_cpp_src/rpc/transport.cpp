// The sockets of the RPC backend, in place of llama.cpp's own transport.cpp.
//
// ggml-rpc.cpp talks to a server in a thread of its own, in which a failed send or receive ends the process. Here a
// lost server is no failure for it: from then on what is sent is dropped and what is awaited is answered with empty
// data of the right size, so that every computation comes to its end. pyllm.core.rpc looks after each call whether the
// connection was lost meanwhile, and raises an error. Connecting, which happens in the caller's thread, does fail.
//
// There are limits to all waiting: for a connection, for an answer, for a client's first message.
#include "transport.h"

#include "ggml-impl.h"
#include "ggml-rpc.h"
#include "rpc_api.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <winsock2.h>
#include <ws2tcpip.h>
#else
#include <cerrno>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

// The table of answers below follows ggml-rpc.cpp. Another version of the protocol: compare both, then change this.
static_assert(RPC_PROTO_MAJOR_VERSION == 7 && RPC_PROTO_MINOR_VERSION == 0, "the RPC protocol has changed");

#ifdef _WIN32
typedef SOCKET sockfd_t;
static int  last_error() { return WSAGetLastError(); }
static bool would_block(int code) { return code == WSAEWOULDBLOCK || code == WSAEINPROGRESS || code == WSAEINTR; }
static bool is_valid(sockfd_t fd) { return fd != INVALID_SOCKET; }
static void close_socket(sockfd_t fd) { closesocket(fd); }
static int  poll_socket(pollfd * fds, int timeout) { return WSAPoll(fds, 1, timeout); }
static bool set_nonblocking(sockfd_t fd) {
    u_long on = 1;
    return ioctlsocket(fd, FIONBIO, &on) == 0;
}
static std::string error_text(int code) { return "error " + std::to_string(code) + " of Winsock"; }
#else
typedef int sockfd_t;
static int  last_error() { return errno; }
static bool would_block(int code) {
    return code == EAGAIN || code == EWOULDBLOCK || code == EINPROGRESS || code == EINTR;
}
static bool is_valid(sockfd_t fd) { return fd >= 0; }
static void close_socket(sockfd_t fd) { close(fd); }
static int  poll_socket(pollfd * fds, int timeout) { return poll(fds, 1, timeout); }
static bool set_nonblocking(sockfd_t fd) { return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0; }
static std::string error_text(int code) { return strerror(code); }
#endif

#ifdef MSG_NOSIGNAL
static constexpr int SEND_FLAGS = MSG_NOSIGNAL;
#else
static constexpr int SEND_FLAGS = 0;
#endif

// What a client announces is allocated before it comes. No tensor is so large.
static constexpr uint64_t MAX_MESSAGE = (uint64_t) 1 << 36;

static constexpr int SLICE_MS         = 50;      // how often waiting is looked up from
static constexpr int FIRST_MESSAGE_MS = 10000;   // a client that says nothing keeps the others out
static constexpr int HELLO_MS         = 5000;    // a server that serves another client does not answer

static std::atomic<int> connect_ms{ 3000 };
static std::atomic<int> answer_ms{ 600000 };
static std::atomic<bool (*)()> hook{ nullptr };

static std::atomic<bool> stopping{ false };
static std::atomic<bool> is_listening{ false };
static std::mutex        listen_mutex;
static std::string       listen_reason;
// A server that failed because of one client is started again, and loses none of those that wait meanwhile.
static std::string       kept_address;
static sockfd_t          kept_listener = (sockfd_t) -1;

static int64_t now_ms() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

struct pyllm_rpc_peer {
    std::string          endpoint;
    std::atomic<int64_t> connection{ 0 };
    std::atomic<int64_t> lost{ 0 };
    std::atomic<int64_t> give_up_at{ 0 };  // 0: not asked for
    std::mutex           mutex;
    std::string          reason;

    void set_reason(const std::string & text) {
        std::lock_guard<std::mutex> lock(mutex);
        reason = text;
    }
};

static pyllm_rpc_peer * find_peer(const std::string & endpoint) {
    static std::mutex mutex;
    // Never freed: threads of the module may still run when the process ends.
    static auto * peers = new std::map<std::string, pyllm_rpc_peer *>();
    std::lock_guard<std::mutex> lock(mutex);
    pyllm_rpc_peer *&           found = (*peers)[endpoint];
    if (found == nullptr) {
        found           = new pyllm_rpc_peer();
        found->endpoint = endpoint;
    }
    return found;
}

void pyllm_rpc_waiting();  // module.h calls it

void pyllm_rpc_waiting() {
    if (auto * function = hook.load()) {
        function();
    }
}

// ---- the answers of a server that was lost

namespace {

// The numbers of the commands in ggml-rpc.cpp, which keeps them to itself.
enum command : uint8_t {
    ALLOC_BUFFER      = 0,
    GET_ALIGNMENT     = 1,
    GET_MAX_SIZE      = 2,
    BUFFER_GET_BASE   = 3,
    SET_TENSOR_HASH   = 7,
    GET_TENSOR        = 8,
    COPY_TENSOR       = 9,
    GET_DEVICE_MEMORY = 11,
    GET_ALLOC_SIZE    = 13,
    HELLO             = 14,
    DEVICE_COUNT      = 15,
};

uint64_t answer_size(uint8_t cmd, uint64_t tensor_bytes) {
    switch (cmd) {
        case ALLOC_BUFFER:
        case GET_DEVICE_MEMORY: return 16;
        case GET_ALIGNMENT:
        case GET_MAX_SIZE:
        case BUFFER_GET_BASE:
        case GET_ALLOC_SIZE:    return 8;
        case DEVICE_COUNT:      return 4;
        case SET_TENSOR_HASH:
        case COPY_TENSOR:       return 1;
        case GET_TENSOR:        return tensor_bytes;
        default:                return 0;
    }
}

void empty_answer(uint8_t cmd, void * data, size_t size) {
    memset(data, 0, size);
    uint64_t number = 0;
    switch (cmd) {
        case GET_ALIGNMENT:     // a divisor
        case BUFFER_GET_BASE:   // must not be NULL, and is never read through
            number = 4096;
            break;
        case GET_MAX_SIZE:
            number = UINT64_MAX;
            break;
        case SET_TENSOR_HASH:   // the server has the data already
        case COPY_TENSOR:       // done
            number = 1;
            break;
        default: return;
    }
    memcpy(data, &number, std::min(size, sizeof(number)));
}

}  // namespace

// ---- one connection

struct socket_t::impl {
    sockfd_t         fd;
    pyllm_rpc_peer * peer         = nullptr;  // of a client's connection
    int64_t          number       = 0;        // which connection to that server it is
    bool             established  = false;    // the handshake is done
    bool             dead         = false;    // established and lost
    bool             first        = true;     // of a server's connection: nothing was received yet

    bool             keep          = false;   // the listener
    bool             after_command = false;   // of a server's connection: the size comes next

    // The message that is being sent: ggml-rpc.cpp sends command, size and data, then flushes, then receives.
    int      part         = 0;
    uint8_t  cmd          = 0;
    uint64_t tensor_bytes = 0;
    bool     header       = false;            // the size of the answer comes next

    explicit impl(sockfd_t fd) : fd(fd) {}
    ~impl() {
        if (is_valid(fd) && !keep) {
            close_socket(fd);
        }
    }

    // False where it must be told. `reason` continues "the connection was lost: ".
    bool fail(const std::string & reason) {
        if (peer == nullptr) {
            return false;
        }
        peer->set_reason(reason);
        if (!established) {
            return false;
        }
        dead = true;
        if (peer->lost.load() < number) {
            peer->lost.store(number);
        }
        GGML_LOG_ERROR("RPC server %s: %s\n", peer->endpoint.c_str(), reason.c_str());
        return true;
    }

    int limit() const {
        if (peer != nullptr) {
            return established ? answer_ms.load() : HELLO_MS;
        }
        return first ? FIRST_MESSAGE_MS : -1;
    }

    // Waits until the socket is ready; false, with the reason, if that takes too long or is no longer wanted.
    bool wait(short events, int limit_ms, std::string & reason) {
        const int64_t begin = now_ms();
        for (;;) {
            pollfd    one  = { fd, events, 0 };
            const int n    = poll_socket(&one, SLICE_MS);
            const int code = n < 0 ? last_error() : 0;
            if (n > 0) {
                return true;  // errors are those of the send or receive that follows
            }
            if (n < 0 && !would_block(code)) {
                reason = error_text(code);
                return false;
            }
            if (peer == nullptr && stopping.load()) {
                reason = "the server stops";
                return false;
            }
            if (peer != nullptr && !established) {  // in the caller's thread
                if (auto * function = hook.load(); function != nullptr && function()) {
                    reason = "interrupted";
                    return false;
                }
            }
            const int64_t give_up_at = peer != nullptr ? peer->give_up_at.load() : 0;
            if (give_up_at != 0 && now_ms() >= give_up_at) {
                reason = "it did not answer, and waiting for it was interrupted";
                return false;
            }
            if (limit_ms >= 0 && now_ms() - begin >= limit_ms) {
                reason = "it did not answer within " + std::to_string(limit_ms / 1000) + " s";
                if (!established) {
                    reason += " (it serves one client at a time, and may have another)";
                }
                return false;
            }
        }
    }

    template <typename Step> bool transfer(size_t size, short events, std::string & reason, Step step) {
        size_t done = 0;
        while (done < size) {
            const int64_t n = step(done, (int) std::min(size - done, (size_t) 1 << 30));
            if (n > 0) {
                done += (size_t) n;
                continue;
            }
            const int code = n < 0 ? last_error() : 0;
            if (n == 0 && events == POLLIN) {
                reason = "it closed the connection";
                return false;
            }
            if (n < 0 && !would_block(code)) {
                reason = error_text(code);
                return false;
            }
            if (!wait(events, limit(), reason)) {
                return false;
            }
        }
        return true;
    }

    bool send_data(const void * data, size_t size) {
        note_sent(data, size);
        if (dead) {
            return true;
        }
        std::string reason;
        const bool  ok = transfer(size, POLLOUT, reason, [&](size_t done, int n) {
            return (int64_t) ::send(fd, (const char *) data + done, n, SEND_FLAGS);
        });
        return ok || fail(reason);
    }

    bool recv_data(void * data, size_t size) {
        const bool is_header = std::exchange(header, false);
        uint64_t   expected  = answer_size(cmd, tensor_bytes);
        if (!dead) {
            std::string reason;
            bool        ok = transfer(size, POLLIN, reason, [&](size_t done, int n) {
                return (int64_t) ::recv(fd, (char *) data + done, n, 0);
            });
            first          = false;
            if (ok && peer == nullptr) {  // a client sends command, size and data
                uint64_t announced = 0;
                if (std::exchange(after_command, size == 1) && size == sizeof(announced)) {
                    memcpy(&announced, data, sizeof(announced));
                    ok = announced <= MAX_MESSAGE;
                }
            }
            if (ok && is_header && established && memcmp(data, &expected, sizeof(expected)) != 0) {
                ok     = false;
                reason = "its answer has another size than expected";
            }
            if (ok || !fail(reason)) {
                return ok;
            }
        }
        if (is_header) {
            memcpy(data, &expected, std::min(size, sizeof(expected)));
        } else {
            empty_answer(cmd, data, size);
        }
        return true;
    }

    void note_sent(const void * data, size_t size) {
        if (part == 0 && size == 1) {
            memcpy(&cmd, data, 1);
            tensor_bytes = 0;
        } else if (part == 2 && cmd == GET_TENSOR && size >= sizeof(tensor_bytes)) {
            memcpy(&tensor_bytes, (const char *) data + size - sizeof(tensor_bytes), sizeof(tensor_bytes));
        }
        part++;
    }

    void flush() {
        part   = 0;
        header = peer != nullptr;
    }
};

socket_t::socket_t(std::unique_ptr<impl> p) : pimpl(std::move(p)) {}

socket_t::~socket_t() = default;

bool socket_t::send_data(const void * data, size_t size) { return pimpl->send_data(data, size); }

bool socket_t::recv_data(void * data, size_t size) { return pimpl->recv_data(data, size); }

bool socket_t::flush() {
    pimpl->flush();
    return true;
}

// No other transport is offered.
void socket_t::get_caps(uint8_t * local_caps) { memset(local_caps, 0, RPC_CONN_CAPS_SIZE); }

// The last step of the handshake, on both sides.
void socket_t::update_caps(const uint8_t *) { pimpl->established = true; }

static void set_option(sockfd_t fd, int level, int name, int value) {
    setsockopt(fd, level, name, (const char *) &value, sizeof(value));
}

// A peer whose machine is gone is noticed within half a minute.
static void prepare(sockfd_t fd) {
    set_nonblocking(fd);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
#ifdef TCP_KEEPIDLE
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 10);
#endif
#ifdef TCP_KEEPINTVL
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
#endif
#ifdef TCP_KEEPCNT
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
#endif
#ifdef TCP_USER_TIMEOUT
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 30000);
#endif
#ifdef SO_NOSIGPIPE
    set_option(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
}

static addrinfo * look_up(const char * host, int port, bool passive, std::string & reason) {
    addrinfo hints = {};
    hints.ai_family   = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags    = passive ? AI_PASSIVE : 0;
    addrinfo * found  = nullptr;
    const int  code   = getaddrinfo(host, std::to_string(port).c_str(), &hints, &found);
    if (code != 0) {
#ifdef _WIN32
        reason = "the host is not known";
#else
        reason = gai_strerror(code);
#endif
        return nullptr;
    }
    return found;
}

// ---- the client's side

socket_ptr socket_t::connect(const char * host, int port) {
    pyllm_rpc_peer * peer = find_peer(std::string(host) + ":" + std::to_string(port));
    std::string      reason;
    addrinfo *       all = look_up(host, port, false, reason);
    for (addrinfo * address = all; address != nullptr; address = address->ai_next) {
        const sockfd_t fd = socket(address->ai_family, address->ai_socktype, address->ai_protocol);
        if (!is_valid(fd)) {
            reason = error_text(last_error());
            continue;
        }
        auto one  = std::make_unique<impl>(fd);
        one->peer = peer;
        prepare(fd);
        if (::connect(fd, address->ai_addr, (socklen_t) address->ai_addrlen) != 0) {
            if (!would_block(last_error())) {
                reason = error_text(last_error());
                continue;
            }
            int       code = 0;
            socklen_t size = sizeof(code);
            if (!one->wait(POLLOUT, connect_ms.load(), reason)) {
                continue;
            }
            if (getsockopt(fd, SOL_SOCKET, SO_ERROR, (char *) &code, &size) != 0 || code != 0) {
                reason = error_text(code);
                continue;
            }
        }
        one->number = peer->connection.fetch_add(1) + 1;
        peer->set_reason("what answers there is no RPC server of this version of llama.cpp");
        freeaddrinfo(all);
        return socket_ptr(new socket_t(std::move(one)));
    }
    if (all != nullptr) {
        freeaddrinfo(all);
    }
    peer->set_reason(reason);
    return nullptr;
}

// ---- the server's side

static socket_ptr cannot_listen(const std::string & reason) {
    std::lock_guard<std::mutex> lock(listen_mutex);
    listen_reason = reason;
    return nullptr;
}

static void close_listener() {
    if (is_valid(kept_listener)) {
        close_socket(kept_listener);
    }
    kept_listener = (sockfd_t) -1;
}

socket_ptr socket_t::create_server(const char * host, int port) {
    std::string       reason;
    const std::string wanted = std::string(host) + ":" + std::to_string(port);
    if (is_valid(kept_listener) && kept_address == wanted) {
        auto same  = std::make_unique<impl>(kept_listener);
        same->keep = true;
        is_listening.store(true);
        return socket_ptr(new socket_t(std::move(same)));
    }
    close_listener();
    addrinfo *  all = look_up(host, port, true, reason);
    if (all == nullptr) {
        return cannot_listen(reason);
    }
    const sockfd_t fd = socket(all->ai_family, all->ai_socktype, all->ai_protocol);
    if (!is_valid(fd)) {
        reason = error_text(last_error());
        freeaddrinfo(all);
        return cannot_listen(reason);
    }
    auto one = std::make_unique<impl>(fd);
    set_nonblocking(fd);
#ifndef _WIN32
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);  // on Windows two servers could share a port
#endif
    const bool ok = bind(fd, all->ai_addr, (socklen_t) all->ai_addrlen) == 0 && listen(fd, 8) == 0;
    reason        = ok ? "" : error_text(last_error());
    freeaddrinfo(all);
    if (!ok) {
        return cannot_listen(reason);
    }
    one->keep     = true;
    kept_listener = fd;
    kept_address  = wanted;
    is_listening.store(true);
    return socket_ptr(new socket_t(std::move(one)));
}

socket_ptr socket_t::accept() {
    std::string reason;
    while (pimpl->wait(POLLIN, -1, reason)) {
        const sockfd_t fd = ::accept(pimpl->fd, nullptr, nullptr);
        if (is_valid(fd)) {
            prepare(fd);
            return socket_ptr(new socket_t(std::make_unique<impl>(fd)));
        }
        // The client has left already, or there are no file descriptors for now: the server goes on.
        std::this_thread::sleep_for(std::chrono::milliseconds(SLICE_MS));
    }
    close_listener();
    return nullptr;
}

#ifdef _WIN32
bool rpc_transport_init() {
    static const bool started = [] {
        WSADATA data;
        return WSAStartup(MAKEWORD(2, 2), &data) == 0;
    }();
    return started;
}
#else
bool rpc_transport_init() { return true; }
#endif

void rpc_transport_shutdown() {}

// ---- what pyllm.core.rpc calls

static void copy_text(const std::string & from, char * text, size_t size) {
    if (size != 0) {
        const size_t n = std::min(from.size(), size - 1);
        memcpy(text, from.data(), n);
        text[n] = '\0';
    }
}

static const pyllm_rpc_api api = {
    /* .version      = */ PYLLM_RPC_API_VERSION,
    /* .peer         = */ [](const char * endpoint) { return find_peer(endpoint); },
    /* .connection   = */ [](const pyllm_rpc_peer * peer) { return peer->connection.load(); },
    /* .lost         = */ [](const pyllm_rpc_peer * peer) { return peer->lost.load(); },
    /* .reason       = */
    [](pyllm_rpc_peer * peer, char * text, size_t size) {
        std::lock_guard<std::mutex> lock(peer->mutex);
        copy_text(peer->reason, text, size);
    },
    /* .give_up      = */
    [](pyllm_rpc_peer * peer, int milliseconds) {
        int64_t none = 0;
        if (milliseconds < 0) {
            peer->give_up_at.store(0);
        } else {
            peer->give_up_at.compare_exchange_strong(none, now_ms() + milliseconds);
        }
    },
    /* .set_hook     = */ [](bool (*function)()) { hook.store(function); },
    /* .set_timeouts = */
    [](int connect, int answer) {
        connect_ms.store(connect);
        answer_ms.store(answer);
    },
    /* .start        = */
    []() {
        stopping.store(false);
        is_listening.store(false);
        cannot_listen("");
    },
    /* .stop         = */ []() { stopping.store(true); },
    /* .listening    = */ []() { return is_listening.load(); },
    /* .listen_error = */
    [](char * text, size_t size) {
        std::lock_guard<std::mutex> lock(listen_mutex);
        copy_text(listen_reason, text, size);
    },
};

extern "C" {
GGML_BACKEND_API const pyllm_rpc_api * pyllm_rpc_interface(void);

const pyllm_rpc_api * pyllm_rpc_interface(void) { return &api; }
}
