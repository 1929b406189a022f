"""``pyllm rpc-server``."""

from __future__ import annotations

import os
import signal
import threading
from typing import Annotated

import typer

from pyllm.cli.output import note, set_verbose
from pyllm.network import is_loopback

# An assertion that fails because of what a client sent ends its connection, and not the server. One that fails at
# every start is none of those.
_MAX_FAILURES = 100


def rpc_server(
    host: Annotated[str, typer.Option("--host", "-H", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="The port.")] = 50052,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Devices to offer, with commas; else the GPUs, or the CPU.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads of the CPU device.")] = None,
    cache: Annotated[bool, typer.Option("--cache", "-c", help="Keep large tensors on disk, to get them once.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show llama.cpp's log.")] = False,
) -> None:
    """Compute layers for models on other machines: `pyllm run --rpc HOST:PORT` there.

    There is no authentication and no encryption. Never listen on a network that others can reach.
    """
    set_verbose(verbose)
    from pyllm.core import rpc
    from pyllm.core.backend import load_backends

    load_backends()
    if not is_loopback(host):
        note(
            f"warning: {host} may be reached from other machines. RPC has no authentication and no encryption: each "
            "client can make this process do anything. Never expose it to an open network."
        )
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    failed: list[BaseException] = []
    server = threading.Thread(target=_serve, args=(host, port, device, threads, cache, stop, failed), daemon=True)
    rpc.is_listening()  # the backend is there, or this says what to do
    server.start()
    said = False
    while server.is_alive() and not stop.is_set():
        if not said and rpc.is_listening():
            said = True
            note(f"RPC server at {host}:{port}; Ctrl-C stops it")
        stop.wait(0.1)
    if stop.is_set():
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_DFL)  # a second signal ends the process at once
        rpc.stop_serving()
    server.join()
    if failed:
        raise failed[0]


def _serve(
    host: str,
    port: int,
    device: str | None,
    threads: int | None,
    cache: bool,
    stop: threading.Event,
    failed: list[BaseException],
) -> None:
    from pyllm.core import rpc
    from pyllm.errors import BackendAssertError, BackendError, OutOfMemoryError

    devices = None if device is None else [name.strip() for name in device.split(",") if name.strip()]
    try:
        for _ in range(_MAX_FAILURES):
            try:
                rpc.serve(host, port, devices=devices, n_threads=threads, cache_dir=_cache_dir() if cache else None)
                return
            except (BackendAssertError, OutOfMemoryError) as error:
                note(f"a client's connection was closed: {error.message}")
            except BackendError as error:
                if error.function is not None:  # it cannot listen
                    raise
                note(f"a client's connection was closed: {error.message}")
            if stop.is_set():
                return
        failed.append(BackendError(f"{_MAX_FAILURES} clients' connections ended in failed assertions; giving up"))
    except BaseException as error:
        failed.append(error)


def _cache_dir() -> str:
    from pyllm import hub

    return os.path.join(hub.cache_dir(), "rpc")
