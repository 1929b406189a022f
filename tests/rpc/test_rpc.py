"""Models on RPC servers: the same text as here, and errors where a server is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.programs import free_port
from support.rpc import RPCServer

from pyllm import Llama, errors, memory
from pyllm.core import backend, rpc
from pyllm.core.batch import Batch
from pyllm.core.breakdown import memory_breakdown
from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.engine import Engine

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
PROMPT = list(range(1, 41))


@pytest.fixture(scope="module")
def servers() -> Iterator[list[RPCServer]]:
    """Two servers that no test stops."""
    with RPCServer() as one, RPCServer() as two:
        yield [one, two]


@pytest.fixture
def server() -> Iterator[RPCServer]:
    """A server that the test may stop."""
    with RPCServer() as one:
        yield one


def logits(model: Model) -> NDArray[np.float32]:
    with Context(model, n_ctx=64, n_threads=1) as context:
        context.decode(Batch.from_arrays(PROMPT[:16]))
        return context.logits[0].copy()


def test_two_servers_give_the_text_of_one_process(smollm2_path: Path, servers: list[RPCServer]) -> None:
    prompt: str = "The capital of France is"
    arguments: dict[str, Any] = {"max_tokens": 16, "temperature": 0}
    with Llama(smollm2_path, n_ctx=256, n_threads=1) as llm:
        here = llm(prompt, **arguments).text
    with Llama(smollm2_path, n_ctx=256, n_threads=1, rpc=[one.endpoint for one in servers]) as llm:
        used = {buffer.device for buffer in memory_breakdown(llm.context) if buffer.model}
        assert {name for one in servers for name in rpc.add_server(one.endpoint)} <= used
        assert llm(prompt, **arguments).text == here


def test_logits_of_all_architectures_that_share_layers(
    tiny_models: Mapping[str, Path], servers: list[RPCServer]
) -> None:
    for arch in ("llama", "gemma3"):
        with Model(tiny_models[arch]) as model:
            here = logits(model)
        with Model(tiny_models[arch], rpc=",".join(one.endpoint for one in servers)) as model:
            np.testing.assert_allclose(logits(model), here, atol=1e-3)


def test_a_model_without_rpc_stays_here(tiny_models: Mapping[str, Path], servers: list[RPCServer]) -> None:
    names = rpc.add_server(servers[0].endpoint)
    assert {device.name for device in backend.devices() if device.backend == "RPC"} >= set(names)
    assert not {device.name for device in memory.used_devices({})} & set(names)
    assert [device.name for device in memory.used_devices({"rpc": servers[0].endpoint})][:1] == list(names)
    with Model(tiny_models["llama"]) as model, Context(model, n_ctx=64) as context:
        assert not {buffer.device for buffer in memory_breakdown(context)} & set(names)
    with Model(tiny_models["llama"], devices=[names[0]]) as model, Context(model, n_ctx=64) as context:
        assert names[0] in {buffer.device for buffer in memory_breakdown(context)}


def test_engine(tiny_models: Mapping[str, Path], servers: list[RPCServer]) -> None:
    with Engine(tiny_models["llama"], n_ctx=256, rpc=[one.endpoint for one in servers]) as engine:
        texts = [engine.submit(f"text {i}", max_tokens=4).result() for i in range(3)]
    assert all(text.usage.completion_tokens for text in texts)


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":50052", "host:0", "host:65536", "host:x", "::1:50052", "a b:1", "h:1,,", "h:1,i"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"RPC server|names no server"):
        rpc.parse_endpoints(text)


def test_doubles_are_one_server() -> None:
    assert rpc.parse_endpoints([" host:50052", "host:050052"]) == ["host:50052"]


def test_unreachable_server_is_named(tiny_models: Mapping[str, Path]) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    with pytest.raises(errors.BackendError, match=f"{endpoint} cannot be used: Connection refused"):
        Model(tiny_models["llama"], rpc=endpoint)
    with pytest.raises(errors.BackendError, match=r"no\.such\.host\.invalid:50052 cannot be used: "):
        Model(tiny_models["llama"], rpc="no.such.host.invalid:50052")


def test_other_services_are_no_rpc_servers(tiny_models: Mapping[str, Path]) -> None:
    """One that answers with something else, and one that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                client.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(errors.BackendError, match=f"{endpoint} cannot be used"):
            Model(tiny_models["llama"], rpc=endpoint)
        thread.join()
        with pytest.raises(errors.BackendError, match=f"{endpoint} cannot be used: it did not answer within"):
            Model(tiny_models["llama"], rpc=endpoint)


def test_server_is_killed_before_a_decode(tiny_models: Mapping[str, Path], server: RPCServer) -> None:
    with Model(tiny_models["llama"], rpc=server.endpoint) as model, Context(model, n_ctx=64) as context:
        context.decode(Batch.from_arrays(PROMPT[:8]))
        server.kill()
        for _ in range(2):
            with pytest.raises(errors.DecodeError, match=f"{server.endpoint} was lost"):
                context.decode(Batch.from_arrays([1]))
        with pytest.raises(errors.NoOutputError):
            context.logits_ith(0)
        with pytest.raises(errors.DecodeError, match=f"{server.endpoint} was lost"):
            context.state.save()
    with RPCServer(port=server.port), Model(tiny_models["llama"], rpc=server.endpoint) as model:
        assert np.isfinite(logits(model)).all()


def test_server_is_killed_while_a_text_is_generated(smollm2_path: Path, server: RPCServer) -> None:
    with Llama(smollm2_path, n_ctx=512, n_threads=1, rpc=server.endpoint) as llm:
        texts = iter(llm.stream("Once upon a time", max_tokens=400, temperature=0))
        next(texts)
        server.kill()
        with pytest.raises(errors.DecodeError, match=f"{server.endpoint} was lost"):
            list(texts)


def test_server_is_killed_in_prefill(smollm2_path: Path, server: RPCServer) -> None:
    with Llama(smollm2_path, n_ctx=2048, n_threads=1, rpc=server.endpoint) as llm:
        killer = threading.Timer(0.2, server.kill)
        killer.start()
        with pytest.raises(errors.DecodeError, match=f"{server.endpoint} was lost"):
            while True:
                llm(list(range(1000, 2800)), max_tokens=1, cache_prompt=False)
        killer.join()


def test_server_is_killed_while_a_model_is_loaded(smollm2_path: Path, server: RPCServer) -> None:
    def kill(progress: float) -> None:
        if 0.2 < progress < 1 and server.process.poll() is None:
            server.kill()

    with pytest.raises(errors.ModelLoadError, match=f"{server.endpoint} was lost"):
        Model(smollm2_path, rpc=server.endpoint, progress_callback=kill)


def test_engine_requests_fail_when_a_server_is_lost(smollm2_path: Path, server: RPCServer) -> None:
    with Engine(smollm2_path, n_ctx=512, rpc=server.endpoint) as engine:
        assert engine.submit("One", max_tokens=1).result(300).text is not None
        server.kill()
        with pytest.raises(errors.DecodeError, match=f"{server.endpoint} was lost"):
            engine.submit("Two", max_tokens=4).result(300)


def test_ctrl_c_ends_waiting_for_a_server_that_hangs(tiny_models: Mapping[str, Path], server: RPCServer) -> None:
    program = """
import sys
from pyllm.core.batch import Batch
from pyllm.core.breakdown import memory_breakdown
from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.engine import Engine
with Model(sys.argv[1], rpc=sys.argv[2]) as model, Context(model, n_ctx=64) as context:
    context.decode(Batch.from_arrays([1, 2, 3]))
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        context.decode(Batch.from_arrays([4]))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("closed", flush=True)
"""
    command = [sys.executable, "-c", program, str(tiny_models["llama"]), server.endpoint]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        server.pause()
        client.stdin.write("\n")
        client.stdin.flush()
        time.sleep(1)
        assert client.poll() is None
        client.send_signal(signal.SIGINT)
        assert client.stdout.read() == "interrupted\nclosed\n"
    assert client.returncode == 0


def test_aborted_decode_ends_waiting_for_a_server_that_hangs(
    tiny_models: Mapping[str, Path], server: RPCServer
) -> None:
    with Model(tiny_models["llama"], rpc=server.endpoint) as model, Context(model, n_ctx=64) as context:
        context.decode(Batch.from_arrays(PROMPT[:8]))
        server.pause()
        timer = threading.Timer(0.5, context.abort)
        timer.start()
        with pytest.raises(errors.DecodeError, match=f"{server.endpoint} was lost: it did not answer"):
            context.decode(Batch.from_arrays([1]))
        timer.join()


def test_answers_have_a_time_limit(tiny_models: Mapping[str, Path], server: RPCServer) -> None:
    program = """
import os, psutil, signal, sys
from pyllm import errors
from pyllm.core.batch import Batch
from pyllm.core.breakdown import memory_breakdown
from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.engine import Engine
with Model(sys.argv[1], rpc=sys.argv[2]) as model, Context(model, n_ctx=64) as context:
    context.decode(Batch.from_arrays([1, 2, 3]))
    os.kill(int(sys.argv[3]), signal.SIGSTOP)
    while psutil.Process(int(sys.argv[3])).status() != psutil.STATUS_STOPPED:
        pass  # until then it may still answer
    try:
        context.decode(Batch.from_arrays([4]))
    except errors.DecodeError as error:
        print(error.message)
"""
    command = [sys.executable, "-c", program, str(tiny_models["llama"]), server.endpoint, str(server.process.pid)]
    environment = {**os.environ, "PYLLM_RPC_TIMEOUT": "2"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert f"{server.endpoint} was lost: it did not answer within 2 s" in result.stdout


def test_clients_wait_in_turn(tiny_models: Mapping[str, Path], servers: list[RPCServer]) -> None:
    """A client that closes its model makes room for the next."""
    rows = []
    for _ in range(3):
        with Model(tiny_models["llama"], rpc=servers[0].endpoint) as model:
            rows.append(logits(model))
    assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])


@pytest.mark.parametrize("sent", [b"", b"\x00" * 9, b"GET / HTTP/1.1\r\n\r\n", b"\x0e" + b"\xff" * 200])
def test_garbage_does_not_matter_to_other_clients(
    tiny_models: Mapping[str, Path], servers: list[RPCServer], sent: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", servers[0].port)) as client:
        client.sendall(sent)
    with Model(tiny_models["llama"], rpc=servers[0].endpoint) as model:
        assert np.isfinite(logits(model)).all()


def test_garbage_after_the_handshake(tiny_models: Mapping[str, Path], servers: list[RPCServer]) -> None:
    hello = b"\x0e" + (24).to_bytes(8, "little") + bytes(24)
    for command in range(20):
        with socket.create_connection(("127.0.0.1", servers[0].port)) as client:
            client.sendall(hello)
            assert client.recv(100)
            client.sendall(bytes([command]) + b"\xff" * 8 + os.urandom(2000))
    with Model(tiny_models["llama"], rpc=servers[0].endpoint) as model:
        assert np.isfinite(logits(model)).all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_stops_when_told(tiny_models: Mapping[str, Path], server: RPCServer, number: int) -> None:
    with Model(tiny_models["llama"], rpc=server.endpoint) as model, Context(model, n_ctx=64) as context:
        assert server.stop(number) == 0
        with pytest.raises(errors.DecodeError, match="was lost"):
            context.decode(Batch.from_arrays([1]))


def test_port_in_use(servers: list[RPCServer]) -> None:
    command = [sys.executable, "-m", "pyllm", "rpc-server", "--port", str(servers[0].port)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"cannot listen at 127.0.0.1:{servers[0].port}: Address already in use" in result.stderr


def test_server_warns_where_others_can_reach_it() -> None:
    with RPCServer("--host", "0.0.0.0") as server:
        assert "no authentication" in server.said
    with RPCServer() as server:
        assert "warning" not in server.said


def test_unknown_device_of_a_server() -> None:
    command = [sys.executable, "-m", "pyllm", "rpc-server", "--port", str(free_port()), "--device", "CUDA7"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "there is no device 'CUDA7' here" in result.stderr


def test_command_line(tiny_models: Mapping[str, Path], servers: list[RPCServer]) -> None:
    command = [sys.executable, "-m", "pyllm", "run", str(tiny_models["llama"]), "text", "-n", "4", "--temp", "0"]
    here = subprocess.run(command, capture_output=True, text=True, check=True)
    there = subprocess.run([*command, "--rpc", servers[0].endpoint], capture_output=True, text=True, check=True)
    assert there.stdout == here.stdout
    lost = subprocess.run([*command, "--rpc", f"127.0.0.1:{free_port()}"], capture_output=True, text=True)
    assert lost.returncode == 1
    assert "cannot be used: Connection refused" in lost.stderr


def test_devices_of_servers_are_listed(servers: list[RPCServer]) -> None:
    command = [sys.executable, "-m", "pyllm", "devices", "--rpc", ",".join(one.endpoint for one in servers)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for one in servers:
        assert any(re.match(rf"RPC\d+: {one.endpoint} \[gpu\], [\d.]+ .B free of ", line) for line in lines), lines


def test_lost_servers_are_listed_without_memory(server: RPCServer) -> None:
    names = rpc.add_server(server.endpoint)
    server.kill()
    (device,) = [device for device in backend.devices() if device.name in names]
    assert (device.memory_free, device.memory_total) == (0, 0)
    assert device.description == f"{server.endpoint} (cannot be reached)"
