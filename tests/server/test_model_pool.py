"""Leases on models under random arrivals, cancels and failures: nobody is forgotten, and memory is never exceeded."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.waiting import LIMIT

from pyllm.errors import InvariantError
from pyllm.server import Settings, pool
from pyllm.server.errors import APIError
from pyllm.server.loader import ModelSpec, Served, Survey
from pyllm.server.pool import Models

SIZES = {"a": 3, "b": 4, "c": 5, "d": 1, "e": 8}
ROOM = 9


class Memory:
    """Stands for the memory of a machine and the weights in it: what is loaded, and how much that was at most."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.loaded: dict[str, int] = {}
        self.most = 0
        self.n_failed = 0

    def serve(self, spec: ModelSpec) -> Served:
        assert spec.name not in self.loaded
        time.sleep(self.random.uniform(0, 0.002))
        if self.random.random() < 0.1:
            self.n_failed += 1
            raise RuntimeError("no luck")
        self.loaded[spec.name] = SIZES[spec.name]
        self.most = max(self.most, sum(self.loaded.values()))
        stack = ExitStack()
        stack.callback(lambda: self.loaded.pop(spec.name))
        model = SimpleNamespace(path=spec.name)
        engine: Any = SimpleNamespace(model=model, closed=False, embeds=False, generates=True)
        return Served(engine, None, stack)


@pytest.mark.parametrize("seed", range(8))
def test_random_requests(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    memory = Memory(seed)
    monkeypatch.setattr(pool, "serve_model", memory.serve)
    monkeypatch.setattr(pool, "survey", lambda spec: Survey(SIZES[spec.name], generates=True, embeds=False))
    specs = [ModelSpec(name=name, path=Path(name)) for name in SIZES]
    models = Models(specs, Settings(), n_bytes=ROOM, timeout=LIMIT, patience=0.01)
    chance = random.Random(seed)
    ends: dict[str, int] = {"served": 0, "failed": 0, "cancelled": 0}

    async def ask(name: str, arrival: float, hold: float) -> None:
        await asyncio.sleep(arrival)
        lease = models.lease(name)
        try:
            state = await lease.enter()
            assert state.alias == name
            for _ in range(3):
                assert name in memory.loaded
                models.check_invariants()
                await asyncio.sleep(hold / 3)
            assert name in memory.loaded
            ends["served"] += 1
        except APIError as error:
            assert error.status == 500
            ends["failed"] += 1
        except asyncio.CancelledError:
            ends["cancelled"] += 1
            raise
        finally:
            lease.exit()
            lease.exit()  # twice is allowed

    async def main() -> None:
        tasks = [
            asyncio.create_task(ask(chance.choice("aabbccdde"), chance.uniform(0, 0.4), chance.uniform(0, 0.02)))
            for _ in range(150)
        ]
        for task in tasks:
            if chance.random() < 0.2:
                asyncio.get_running_loop().call_later(chance.uniform(0, 0.5), task.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        wrong = [one for one in results if isinstance(one, Exception)]
        assert wrong == []
        assert models.n_waiting == 0
        models.check_invariants()
        assert all(entry.users == 0 for entry in models.entries.values())

    asyncio.run(main())
    models.close()
    assert ends["served"] > 30
    # A task that is called off before it has begun to run is not counted here.
    assert sum(ends.values()) <= 150
    assert memory.most <= ROOM
    assert memory.loaded == {}


def test_two_that_cannot_be_together_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(0)
    memory.random.random = lambda: 1.0  # type: ignore[method-assign]  # nothing fails
    monkeypatch.setattr(pool, "serve_model", memory.serve)
    monkeypatch.setattr(pool, "survey", lambda spec: Survey(SIZES[spec.name], generates=True, embeds=False))
    specs = [ModelSpec(name=name, path=Path(name)) for name in "ce"]
    models = Models(specs, Settings(), n_bytes=ROOM, timeout=LIMIT, patience=0.02)
    served = {"c": 0, "e": 0}

    async def client(name: str) -> None:
        while min(entry.n_loads for entry in models.entries.values()) < 4:
            lease = models.lease(name)
            try:
                await lease.enter()
                await asyncio.sleep(0.002)
                served[name] += 1
            finally:
                lease.exit()

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*map(client, "ccccceeeee")), LIMIT)

    asyncio.run(main())
    models.close()
    for name, entry in models.entries.items():
        assert entry.n_loads >= 4, served
        assert served[name] >= entry.n_loads, served


def test_contradictions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(0)
    memory.random.random = lambda: 1.0  # type: ignore[method-assign]  # nothing fails
    monkeypatch.setattr(pool, "serve_model", memory.serve)
    monkeypatch.setattr(pool, "survey", lambda spec: Survey(SIZES[spec.name], generates=True, embeds=False))
    specs = [ModelSpec(name=name, path=Path(name), load="start" if name == "c" else "demand") for name in "ce"]
    models = Models(specs, Settings(), n_bytes=ROOM)
    models.load_at_start()
    models.check_invariants()
    loaded, other = models.entries.values()
    for change, restore, words in (
        (lambda: setattr(other, "users", -1), lambda: setattr(other, "users", 0), "-1 requests hold the model 'e'"),
        (lambda: setattr(other, "users", 1), lambda: setattr(other, "users", 0), "'e', which is unloaded"),
        (lambda: setattr(other, "status", "loading"), lambda: setattr(other, "status", "unloaded"), "c, e take more"),
        (lambda: setattr(loaded, "status", "unloaded"), lambda: setattr(loaded, "status", "loaded"), "has a state"),
    ):
        change()
        with pytest.raises(InvariantError, match=words) as caught:
            models.check_invariants()
        assert len(caught.value.problems) == 1
        restore()
        models.check_invariants()
    models.close()
