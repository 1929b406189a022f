"""What the server computes with: ``/slots``, ``/slots/{id}?action=…`` and ``/lora-adapters``."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pyllm.core.adapter import LoraAdapter
from pyllm.engine import Engine
from pyllm.engine.slots import SlotBusyError
from pyllm.engine.slots import SlotInfo as EngineSlot
from pyllm.errors import StateError
from pyllm.server.errors import APIError, as_api_error, invalid, json_response, unavailable
from pyllm.server.limits import read_json, read_value
from pyllm.server.native_answer import described as described_sampling
from pyllm.server.openapi import Success, get, post
from pyllm.server.sampling import LoraScales, lora_pairs
from pyllm.server.sse import until_gone
from pyllm.server.state import ServerState, state_of
from pyllm.server.wire import Wire, about, decode

T = TypeVar("T")

_SECONDS_BETWEEN = 0.02
# Names of files that clients may give: in one folder, and on any system.
_MOST_BYTES = 255
_FORBIDDEN = frozenset('/\\:*?"<>|')
# On Windows these are devices, also with an extension.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


class SlotFile(Wire):
    """A file with what a slot holds."""

    filename: Annotated[str | None, about("The name of a file, without a path; needed to save and to restore.")] = None


class SlotInfo(Wire):
    """What is in a slot."""

    id: int
    n_ctx: int
    speculative: bool
    is_processing: bool
    id_task: int | UnsetType = UNSET
    n_prompt_tokens: int | UnsetType = UNSET
    n_prompt_tokens_processed: int | UnsetType = UNSET
    n_prompt_tokens_cache: int | UnsetType = UNSET
    params: dict[str, Any] | UnsetType = UNSET
    next_token: list[dict[str, Any]] | UnsetType = UNSET


class SlotAction(Wire):
    """What was done with a slot."""

    id_slot: int
    filename: str | UnsetType = UNSET
    n_saved: int | UnsetType = UNSET
    n_written: int | UnsetType = UNSET
    n_restored: int | UnsetType = UNSET
    n_read: int | UnsetType = UNSET
    n_erased: int | UnsetType = UNSET
    timings: dict[str, float] | UnsetType = UNSET


class AdapterInfo(Wire):
    """A LoRA adapter."""

    id: int
    path: str
    scale: float
    task_name: str
    prompt_prefix: str


async def slots(request: Request) -> Response:
    """What is in each slot."""
    state = state_of(request)
    if not state.settings.slots:
        raise APIError(501, "this server does not tell about its slots: start it with --slots", code="unsupported")
    engine = state.engine
    found = await asyncio.to_thread(engine.slots)
    if request.query_params.get("fail_on_no_slot") and all(slot.running for slot in found):
        raise unavailable("no slot is free", state.settings.retry_after)
    show = state.settings.slot_prompts
    return json_response(await asyncio.to_thread(lambda: [_described_slot(engine, slot, show) for slot in found]))


async def act(request: Request) -> Response:
    """Save, restore or erase what a slot holds. While a text is computed there, this waits for its end."""
    state = state_of(request)
    folder = state.settings.slot_save_path
    if folder is None:
        message = "slots are not saved, restored or erased here: start the server with --slot-save-path"
        raise APIError(501, message, code="unsupported")
    action = request.query_params.get("action")
    if action not in _ACTIONS:
        raise invalid("action", f"action must be one of {', '.join(_ACTIONS)}, not {action!r}")
    number = request.path_params["slot"]
    n_slots = state.engine.n_parallel
    if not (number.isascii() and number.isdecimal() and len(number) < 9 and int(number) < n_slots):
        raise invalid("id_slot", f"id_slot must be from 0 to {n_slots - 1}, not {number!r}")
    path = None
    if action != "erase":
        name = decode(SlotFile, await read_json(request, state.settings)).filename
        if name is None:
            raise invalid("filename", "filename is missing")
        path = Path(folder, check_name(name))
    try:
        return await until_gone(request, _ACTIONS[action](state, int(number), path))
    except OSError as error:
        raise as_api_error(error) from error


async def _save(state: ServerState, slot: int, path: Path | None) -> Response:
    assert path is not None
    started = time.perf_counter()
    n_tokens, n_bytes = await _when_free(state, lambda: state.engine.save_slot(slot, path))
    timings = {"save_ms": _ms_since(started)}
    names = {"id_slot": slot, "filename": path.name, "n_saved": n_tokens, "n_written": n_bytes, "timings": timings}
    return json_response(names)


async def _restore(state: ServerState, slot: int, path: Path | None) -> Response:
    assert path is not None
    started = time.perf_counter()
    try:
        n_tokens, n_bytes = await _when_free(state, lambda: state.engine.restore_slot(slot, path))
    except (FileNotFoundError, IsADirectoryError):
        raise invalid("filename", f"there is no file {path.name!r}") from None
    timings = {"restore_ms": _ms_since(started)}
    names = {"id_slot": slot, "filename": path.name, "n_restored": n_tokens, "n_read": n_bytes, "timings": timings}
    return json_response(names)


async def _erase(state: ServerState, slot: int, path: Path | None) -> Response:
    del path
    n_tokens = await _when_free(state, lambda: state.engine.erase_slot(slot))
    return json_response({"id_slot": slot, "n_erased": n_tokens})


_ACTIONS: dict[str, Callable[[ServerState, int, Path | None], Any]] = {
    "save": _save,
    "restore": _restore,
    "erase": _erase,
}


async def _when_free(state: ServerState, work: Callable[[], T]) -> T:
    """Do something with a slot as soon as no text is computed there."""
    folder = str(state.settings.slot_save_path)
    end = time.monotonic() + state.settings.timeout
    while True:
        try:
            return await asyncio.to_thread(work)
        except SlotBusyError as error:
            state.check_ready()
            if time.monotonic() > end:
                raise unavailable(error.message, state.settings.retry_after) from None
        except StateError as error:
            # Where files lie is no concern of clients.
            raise invalid("filename", error.message.replace(folder, "").replace("'/", "'")) from None
        await asyncio.sleep(_SECONDS_BETWEEN)


def _ms_since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 3)


def _described_slot(engine: Engine, slot: EngineSlot, show: bool) -> dict[str, Any]:
    """A slot as JSON.

    Args:
        engine: Its engine.
        slot: What is in it.
        show: Whether the texts are told.
    """
    result: dict[str, Any] = {
        "id": slot.id,
        "n_ctx": engine.context.n_ctx_seq,
        "speculative": False,
        "is_processing": slot.running,
    }
    request = slot.request
    if request is None:
        return result
    answer = engine.detokenize(slot.ids[slot.n_prompt :])
    n_predict = -1 if request.max_tokens is None else request.max_tokens
    result |= {
        "speculative": request.speculation is not None,
        "id_task": slot.task,
        "n_prompt_tokens": len(slot.ids),
        "n_prompt_tokens_processed": slot.n_read,
        "n_prompt_tokens_cache": slot.n_cached,
        "params": described_sampling(request.params, seed=request.seed, n_predict=n_predict)
        | {"lora": _loras(engine, slot)},
        "next_token": [
            {
                "has_next_token": slot.running,
                "has_new_line": "\n" in answer,
                # What a text that has ended had left is no concern of the next one.
                "n_remain": -1 if n_predict < 0 or not slot.running else max(0, n_predict - slot.n_generated),
                "n_decoded": slot.n_generated if slot.running else 0,
            }
        ],
    }
    if show:
        result |= {"prompt": engine.detokenize(slot.ids[: slot.n_prompt]), "generated": answer}
    return result


def _loras(engine: Engine, slot: EngineSlot) -> list[dict[str, Any]]:
    """The adapters that the text of a slot is computed with."""
    numbers = {adapter: i for i, adapter in enumerate(engine.adapters)}
    return [{"id": numbers[adapter], "scale": scale} for adapter, scale in slot.adapters]


def check_name(name: str, param: str = "filename") -> str:
    """A name without any path, which can be that of a file.

    Raises:
        APIError: It is something else.
    """
    wrong = None
    if not name:
        wrong = "is empty"
    elif not name.isprintable() or not _FORBIDDEN.isdisjoint(name):
        wrong = "must be the name of a file, without a path and special characters"
    elif name[0] in ". " or name[-1] in ". " or _DEVICES.fullmatch(name):
        wrong = "must be an ordinary name, which neither begins nor ends with a full stop or a blank"
    elif len(name.encode("utf-8", "surrogatepass")) > _MOST_BYTES:
        wrong = f"must be a name of at most {_MOST_BYTES} bytes"
    if wrong is not None:
        raise invalid(param, f"{param} {wrong}, not {name[:80]!r}" if name else f"{param} {wrong}")
    return name


# ---- LoRA adapters


async def adapters(request: Request) -> Response:
    """All adapters, with the scales of requests that name none."""
    engine = state_of(request).engine
    scales = engine.lora
    return json_response([_described_adapter(i, one, scales[one.path]) for i, one in enumerate(engine.adapters)])


async def set_adapters(request: Request) -> Response:
    """Set the scales of requests that name none.

    An adapter that is not named gets the scale 0. Running requests keep theirs.
    """
    state = state_of(request)
    engine = state.engine
    scales = decode(LoraScales, await read_value(request, state.settings))
    pairs = lora_pairs(scales, [one.path for one in engine.adapters], name="")
    await asyncio.to_thread(engine.set_lora, pairs)
    return json_response({"success": True})


def _described_adapter(number: int, adapter: LoraAdapter, scale: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "id": number,
        "path": adapter.path,
        "scale": scale,
        "task_name": adapter.meta("adapter.lora.task_name") or "",
        "prompt_prefix": adapter.meta("adapter.lora.prompt_prefix") or "",
    }
    tokens = adapter.alora_tokens
    if tokens:
        pieces = (adapter.model.vocab.token_to_piece(token) for token in tokens)
        result |= {
            "alora_invocation_string": b"".join(pieces).decode("utf-8", "replace"),
            "alora_invocation_tokens": tokens,
        }
    return result


_ACTION = {"action": {"enum": ["save", "restore", "erase"]}}
ROUTES = [
    get("/slots", slots, gives=list[SlotInfo], refuses=(501, 503)),
    post("/slots/{slot}", act, takes=SlotFile, gives=SlotAction, refuses=(501, 503), query=_ACTION),
    get("/lora-adapters", adapters, gives=list[AdapterInfo], refuses=(501, 503)),
    post("/lora-adapters", set_adapters, takes=LoraScales, gives=Success, refuses=(501, 503)),
]
