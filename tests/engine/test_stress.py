"""Adapters, the memory of the host, slots, priorities and cancels at once: no text is changed, nothing is lost."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
from support.engines import assert_idle
from support.loras import write_lora
from support.numerics import EXACT

from pyllm import Llama, Model, errors
from pyllm.engine import Engine
from pyllm.engine.slots import SlotBusyError


@pytest.mark.parametrize("unified", [True, False])
def test_everything_at_once(tiny_model: Model, tiny_models: Any, tmp_path: Path, unified: bool) -> None:
    chance = random.Random(7)
    loras: list[Any] = [(), *(write_lora(tmp_path / f"{i}.gguf", tiny_models["llama"], i) for i in range(2))]
    texts = [[chance.randrange(5, 90) for _ in range(90)] for _ in range(3)]
    asked = []
    for _ in range(90):
        prompt = chance.choice(texts)[: chance.randrange(1, 90)]
        prompt += [chance.randrange(5, 90) for _ in range(chance.randrange(1, 10))]
        asked.append((prompt, chance.choice(loras), chance.randrange(1, 12)))
    alone: dict[int, Any] = {}
    for lora in loras:
        with Llama(tiny_model, n_ctx=256, cache_prompt=False, lora=lora, **EXACT) as llm:
            for i, (prompt, one, n) in enumerate(asked):
                if one == lora:
                    alone[i] = llm(prompt, max_tokens=n, temperature=0).tokens
    size = 256 if unified else 1024
    with Engine(tiny_model, n_ctx=size, n_parallel=4, n_batch=64, kv_unified=unified, **EXACT) as engine:
        jobs, cancelled = [], set()
        for i, (prompt, lora, n) in enumerate(asked):
            job = engine.submit(
                prompt,
                max_tokens=n,
                temperature=0,
                lora=lora,
                priority=chance.randrange(2),
                slot=chance.randrange(-1, 4),
            )
            jobs.append(job)
            if chance.random() < 0.1:
                cancelled.add(i)
                threading.Timer(chance.random() / 5, job.cancel).start()
            if chance.random() < 0.1:
                act(engine, chance.choice(["save", "restore", "erase"]), chance.randrange(4), tmp_path / "slot")
        for i, job in enumerate(jobs):
            completion = job.result(300)
            assert i in cancelled or completion.tokens == alone[i], asked[i]
        metrics = engine.metrics()
        assert metrics.n_host_hits > 0 and metrics.n_cached_tokens > 0
        assert_idle(engine)
        assert not any(slot.running for slot in engine.slots())
        for slot in range(4):
            act(engine, "save", slot, tmp_path / "slot")
            act(engine, "restore", slot, tmp_path / "slot")


def act(engine: Engine, action: str, slot: int, path: Path) -> None:
    try:
        if action == "save":
            assert engine.save_slot(slot, path)[1] == path.stat().st_size
        elif action == "restore":
            engine.restore_slot(slot, path)
        else:
            engine.erase_slot(slot)
    except (SlotBusyError, FileNotFoundError, errors.StateError):
        pass
