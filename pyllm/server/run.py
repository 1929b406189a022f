"""A server from its start until it is told to stop, and the way in between: unready, drained, gone."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from pyllm.server.connections import watched
from pyllm.server.settings import is_loopback
from pyllm.server.state import ServerState

_log = logging.getLogger("pyllm.server")

# After the texts have ended, their last bytes still have to be sent.
_LAST_BYTES = 5
# Between a signal and the end there is time for a load balancer to see that the server is not ready.
_LEAST_DRAIN = 0.2


class Runner(uvicorn.Server):
    """Serves an application.

    The first SIGTERM or SIGINT makes it unready: ``/ready`` says so, running requests end, new ones are refused. When
    nothing runs any more, or after ``settings.drain_timeout`` seconds, it stops; what runs then ends with an error. The
    second signal stops it at once.

    Args:
        app: What :func:`pyllm.server.make_app` gave.
        host: The address to listen at.
        port: The port; 0: any that is free.
        **config: Other settings of ``uvicorn.Config``.
    """

    def __init__(self, app: Starlette, *, host: str = "127.0.0.1", port: int = 8080, **config: Any) -> None:
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
        address = {"uds": host} if host.endswith(".sock") else {"host": host, "port": port}
        super().__init__(uvicorn.Config(app, **{**defaults, **address, **config}))
        self.config.load()
        self.config.http_protocol_class = watched(self.config.http_protocol_class, self.pyllm)
        if not is_loopback(host) and not self.pyllm.settings.api_keys:
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
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        try:
            await super().startup(sockets)
        except SystemExit:
            # The port is taken, or there is no such address: uvicorn has logged which.
            raise SystemExit(1) from None
        except OSError as error:
            _log.error("cannot listen at %s: %s", self.config.uds or self.config.host, error)
            raise SystemExit(1) from None
        if self.started and not self.should_exit:
            _log.info("listening at %s", self.address)
