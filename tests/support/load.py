"""Many clients, well-behaved or not, over sockets of their own. It prints as JSON how each of them ended.

python load.py PORT REQUESTS SEED
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
from collections import Counter
from typing import Any

AT_ONCE = 24
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
MANNERS = {
    "answer": 8, "stream": 8, "leave at once": 3, "leave soon": 5, "leave the stream": 5, "half a head": 1,
    "half a body": 2, "wrong JSON": 1, "wrong value": 2, "slow": 1, "look": 2,
}  # fmt: skip


class Problem(Exception):
    """Something came that must not come."""


class Client:
    """One request."""

    def __init__(self, port: int, number: int, seed: int) -> None:
        self.port = port
        self.number = number
        self.random = random.Random(f"{seed} {number}")
        (self.manner,) = self.random.choices(list(MANNERS), MANNERS.values())
        self.status = 0

    async def run(self) -> str:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            return await self.behave()
        finally:
            if self.random.random() < 0.3:
                # A reset, not an end: what has not been read is thrown away.
                option = struct.pack("ii", 1, 0)
                self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            self.writer.close()

    async def behave(self) -> str:
        if self.manner == "look":
            path = self.random.choice(["/health", "/ready", "/props", "/v1/models", "/metrics", "/openapi.json"])
            self.writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return self.expect(await self.whole(), 200)
        path, body = self.ask()
        if self.manner == "wrong value":
            body["temperature"] = self.random.choice(["warm", -1, [], 1e400])
        data = b'{"prompt": ' if self.manner == "wrong JSON" else json.dumps(body).encode()
        lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        head = f"{lines}Connection: close\r\n\r\n".encode()
        if self.manner == "half a head":
            self.writer.write(head[: self.random.randrange(1, len(head) - 2)])
        elif self.manner == "half a body":
            self.writer.write(head + data[: self.random.randrange(len(data))])
        else:
            self.writer.write(head + data)
        await self.writer.drain()
        if self.manner in ("half a head", "half a body", "leave at once"):
            await asyncio.sleep(self.random.choice([0, 0.005]))
            return "left"
        if self.manner == "leave soon":
            await asyncio.sleep(self.random.expovariate(1 / 0.05))
            return "left"
        if self.manner == "leave the stream":
            await self.reader.read(self.random.randrange(1, 3000))
            return "left"
        if self.manner.startswith("wrong"):
            return self.expect(await self.whole(), 400)
        return self.expect(await self.whole(), 200, 429)

    def ask(self) -> tuple[str, dict[str, Any]]:
        """A path, and a body for it."""
        choose = self.random
        size = choose.randrange(1, 60)
        shared = "the cat and the people look at the number of the time " * choose.randrange(3)
        text = f"{shared}{' '.join(choose.choices(['cat', 'people', 'number', 'time', 'water'], k=size // 4 + 1))}"
        stream = self.manner in ("stream", "leave the stream", "slow") or choose.random() < 0.5
        body: dict[str, Any] = {"stream": stream and self.manner != "answer", "temperature": choose.choice([0, 0.8])}
        path = choose.choice(["/v1/completions"] * 3 + ["/v1/chat/completions"] * 2 + ["/v1/messages", "/v1/responses"])
        chat = [{"role": "user", "content": text}]
        if path == "/v1/completions":
            body |= {"prompt": choose.choice([text, [5 + k % 50 for k in range(size)], [text, "a"]]), "seed": size}
            body |= choose.choice([{}, {}, {"n": 3}, {"best_of": 2, "stream": False}, {"logprobs": 5}, {"echo": True}])
            if body["stream"]:
                body.pop("best_of", None)
        elif path == "/v1/responses":
            body |= {"input": text, "max_output_tokens": size}
        else:
            body["messages"] = chat
        if path in ("/v1/completions", "/v1/chat/completions"):
            forms = [{}] * 4 + [{"json_schema": SCHEMA}, {"grammar": "root ::= [a-z ]{1,20}"}, {"deterministic": True}]
            body |= choose.choice(forms)
        if path != "/v1/responses":
            body["max_tokens"] = size
        return path, body

    async def whole(self) -> bytes:
        if self.manner == "slow":
            parts = []
            while part := await self.reader.read(512):
                parts.append(part)
                await asyncio.sleep(0.01)
            return b"".join(parts)
        return await self.reader.read()

    def expect(self, answer: bytes, *statuses: int) -> str:
        head, _, body = answer.partition(b"\r\n\r\n")
        self.status = int(head.split(b" ", 2)[1]) if head else 0
        if self.status not in statuses:
            raise Problem(f"{self.manner}: {answer[:500]!r}")
        if self.status == 200 and self.manner in ("stream", "slow"):
            ends = (b"data: [DONE]", b"message_stop", b"response.completed", b"response.incomplete")
            if b"text/event-stream" in head and not any(end in body for end in ends):
                raise Problem(f"a stream without an end: {body[-500:]!r}")
        elif self.status == 200 and not body:
            raise Problem("an empty answer")
        return str(self.status)


async def main(port: int, requests: int, seed: int) -> dict[str, int]:
    places = asyncio.Semaphore(AT_ONCE)
    found: Counter[str] = Counter()

    async def one(number: int) -> None:
        client = Client(port, number, seed)
        async with places:
            found[f"{client.manner}: {await asyncio.wait_for(client.run(), 120)}"] += 1

    await asyncio.gather(*map(one, range(requests)))
    return dict(sorted(found.items()))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*map(int, sys.argv[1:4])))))
