"""A server from its start until it is told to stop, and the way in between: unready, drained, gone."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from pyllm.errors import PyllmError
from pyllm.network import is_loopback
from pyllm.server.auth import HostNames
from pyllm.server.connections import watched
from pyllm.server.pool import Models
from pyllm.server.state import ServerState

_log = logging.getLogger("pyllm.server")

# After the texts have ended, their last bytes still have to be sent.
_LAST_BYTES = 5
# Between a signal and the end there is time for a load balancer to see that the server is not ready.
_LEAST_DRAIN = 0.2


class ListenError(PyllmError, OSError):
    """The server cannot listen at an address: another program has the port, or the machine has no such address."""


def bind(hosts: Sequence[str], port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Reserve a port at one or more addresses, before anything is loaded.

    Args:
        hosts: Addresses or names; all addresses of a name are used.
        port: The port; 0: one that is free, the same at all addresses.
        reuse_port: Whether other processes may listen at the same port.

    Returns:
        list[socket.socket]: Bound, and not yet listening.

    Raises:
        ListenError: That is not possible; the message says what is.
    """
    bound: list[socket.socket] = []
    try:
        for host in hosts:
            found, failed = [], None
            for family, address in _addresses(host, port):
                try:
                    found.append(_bound(family, address, reuse_port))
                except OSError as error:
                    # Names of this machine can have an IPv6 address where there is no IPv6.
                    if error.errno != errno.EADDRNOTAVAIL:
                        raise _listen_error(host, port, error) from error
                    failed = error
                    continue
                bound.append(found[-1])
                port = port or found[-1].getsockname()[1]
            if not found and failed is not None:
                raise _listen_error(host, port, failed) from failed
    except BaseException:
        for one in bound:
            one.close()
        raise
    return bound


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"there is no address {host!r}: {error.strerror or error}") from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bound(family: socket.AddressFamily, address: Any, reuse_port: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise ListenError("--reuse-port: this system cannot share a port among processes")
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except BaseException:
        one.close()
        raise
    return one


def _listen_error(host: str, port: int, error: OSError) -> ListenError:
    if isinstance(error, ListenError):
        return error
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            f"port {port} of {host} is taken by another program: stop that, or give another port with --port "
            "(--port 0 takes a free one)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ListenError(f"this machine does not have the address {host}: --host 0.0.0.0 is all that it has")
    if error.errno == errno.EACCES:
        return ListenError(f"port {port} needs rights that this user lacks: give one above 1023 with --port")
    return ListenError(f"cannot listen at port {port} of {host}: {error.strerror or error}")


class Runner(uvicorn.Server):
    """Serves an application.

    The first SIGTERM or SIGINT makes it unready: ``/ready`` says so, running requests end, new ones are refused. When
    nothing runs any more, or after ``settings.drain_timeout`` seconds, it stops; what runs then ends with an error. The
    second signal stops it at once.

    Args:
        app: What :func:`pyllm.server.make_app` gave.
        host: The address to listen at, or several of them, or the path of a Unix socket that ends in ".sock".
        port: The port; 0: any that is free.
        sockets: Sockets that :func:`bind` has bound to these, or None.
        **config: Other settings of ``uvicorn.Config``.
    """

    def __init__(
        self,
        app: Starlette,
        *,
        host: str | Sequence[str] = "127.0.0.1",
        port: int = 8080,
        sockets: list[socket.socket] | None = None,
        **config: Any,
    ) -> None:
        # Or several models, which answer the same questions.
        self.pyllm: ServerState = app.state.pyllm
        self._deadline: float | None = None
        self._signals = 0
        defaults: dict[str, Any] = {
            "log_config": None,
            "access_log": False,
            "lifespan": "off",
            "server_header": False,
            "ws": "none",
            "timeout_graceful_shutdown": _LAST_BYTES,
        }
        self._hosts = [host] if isinstance(host, str) else list(host)
        self._port, self._sockets = port, sockets
        path = next((one for one in self._hosts if one.endswith(".sock")), None)
        if path is not None and len(self._hosts) > 1:
            raise ListenError(f"a server listens at addresses or at a Unix socket, not at both: {path}")
        address = {"host": self._hosts[0], "port": port} if path is None else {"uds": path}
        super().__init__(uvicorn.Config(app, **{**defaults, **address, **config}))
        self.config.load()
        self.config.http_protocol_class = watched(self.config.http_protocol_class, self.pyllm)
        if self.pyllm.settings.api_keys:
            return
        exposed = [host for host in self._hosts if not is_loopback(host)]
        if not exposed and path is None:
            names: HostNames = app.state.host_names
            names.restrict(self._hosts)
        for host in exposed:
            _log.warning(
                "%s can be reached from other machines and no API key is set: anybody there can use this server; "
                "give --api-key, or --host 127.0.0.1",
                host,
            )

    def drain(self) -> None:
        """Become unready, and stop when nothing runs any more. Any thread may call this."""
        if not self.pyllm.draining:
            self.pyllm.draining = True
            now = time.monotonic()
            self._since, self._deadline = now, now + self.pyllm.settings.drain_timeout

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        del frame
        self._signals += 1
        if self._signals == 1:
            self.drain()
            return
        self.should_exit = True
        self.force_exit = sig == signal.SIGINT

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop."""
        if self._signals > 1:
            self.pyllm.cancel_all()
        if self._deadline is not None and not self.should_exit:
            now, late = time.monotonic(), time.monotonic() >= self._deadline
            if late or (self.pyllm.idle and now - self._since >= _LEAST_DRAIN):
                self.should_exit = True
            if late:
                self.pyllm.cancel_all()
        return await super().on_tick(counter)

    @property
    def address(self) -> str:
        """Where it listens, as a URL; once it has been started."""
        if self.config.uds:
            return f"unix:{self.config.uds}"
        return _url(self.servers[0].sockets[0], self.config.is_ssl)

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        try:
            if sockets is None and self.config.uds is None:
                sockets = self._sockets or bind(self._hosts, self._port)
            await super().startup(sockets)
        except ListenError as error:
            _log.error("%s", error.message)
            raise SystemExit(1) from None
        except OSError as error:
            _log.error("cannot listen at %s: %s", self.config.uds or self.config.host, error.strerror or error)
            raise SystemExit(1) from None
        if self.started and not self.should_exit:
            self._say_hello()

    def _say_hello(self) -> None:
        """Log the models, the page, the key and the address."""
        settings, address = self.pyllm.settings, self.address
        _log.info("%s", _served(self.pyllm))
        for more in self.servers[1:]:
            _log.info("also at %s", _url(more.sockets[0], self.config.is_ssl))
        if self.config.uds is None:
            page = f"the page is at {address}{settings.api_prefix}/" if settings.page else "there is no page (--no-ui)"
            key = "requests need an API key" if settings.api_keys else "no API key is needed"
            _log.info("%s; %s", page, key)
        _log.info("listening at %s", address)


def _served(state: ServerState | Models) -> str:
    if isinstance(state, Models):
        return f"{len(state.entries)} models: {', '.join(state.entries)}"
    if not state.generates:
        return f"model {state.alias}, for embeddings"
    engine = state.engine
    text = f"model {state.alias}, {engine.n_parallel} slots of {engine.context.n_ctx_seq} tokens"
    return f"{text}, and embeddings" if state.embeds else text


def _url(one: Any, is_ssl: bool) -> str:
    host, port = one.getsockname()[:2]
    return f"{'https' if is_ssl else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
