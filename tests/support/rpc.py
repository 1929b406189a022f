"""RPC servers in processes of their own, for tests."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import TracebackType

from support.programs import free_port

# A busy machine takes long to start Python.
_START = 120


class RPCServer:
    """``pyllm rpc-server`` with the arguments, on loopback; it listens when this object is there."""

    def __init__(self, *arguments: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "pyllm", "rpc-server", "--port", str(self.port), "--threads", "1", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = ""
        for line in self.process.stderr:
            self.said += line
            if "RPC server at" in line:
                return
        raise AssertionError(f"the server ended with {self.process.wait()}: {self.said}")

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(_START)

    def pause(self) -> None:
        """Let it hang: its connections stay, and it does not answer."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> RPCServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stderr is not None:
            self.process.stderr.close()
