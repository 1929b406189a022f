"""``/slots`` and ``/slots/{id}?action=…``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllm.engine.slots import SlotBusyError
from pyllm.errors import StateError
from pyllm.server.errors import APIError, as_api_error, invalid, json_response, unavailable
from pyllm.server.fields import Fields
from pyllm.server.limits import read_json
from pyllm.server.slots.answer import described
from pyllm.server.slots.names import check_name
from pyllm.server.sse import until_gone
from pyllm.server.state import ServerState, state_of

T = TypeVar("T")

_SECONDS_BETWEEN = 0.02


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
    return json_response(await asyncio.to_thread(lambda: [described(engine, slot, show) for slot in found]))


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
        fields = Fields(await read_json(request, state.settings))
        fields.need("filename")
        path = Path(folder, check_name(fields.text("filename") or ""))
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


ROUTES = [
    Route("/slots", slots),
    Route("/slots/{slot}", act, methods=["POST"]),
]
