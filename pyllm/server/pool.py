"""Several models in one server: which of them are in memory, and which requests hold or wait for them.

All of it belongs to the event loop; models are loaded and freed in a thread beside it, one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pyllm.errors import InsufficientMemoryError, InvalidArgumentError, InvariantError, PyllmError
from pyllm.host_memory import host_memory
from pyllm.memory import used_devices
from pyllm.server.errors import APIError, unavailable
from pyllm.server.evictions import LoadedModel, MemoryBudget, choose_evictions
from pyllm.server.loader import ModelSpec, Served, Survey, serve_model, survey
from pyllm.server.metrics import ServerMetrics
from pyllm.server.settings import Settings
from pyllm.server.state import ServerState

_log = logging.getLogger("pyllm.server")

MOST_WAITING = 256
_HOST_MARGIN_SHARE = 16
_DEVICE_MARGIN = 1 << 30


class ManagedModel:
    """A model that the server has, in memory or not.

    Attributes:
        spec: What it is.
        n_bytes: What it takes in memory, estimated.
        generates: Whether it can be asked for texts.
        embeds: Whether it can be asked for vectors.
        status: "unloaded", "loading", "loaded" or "unloading".
        progress: How much of it is loaded, from 0 to 1.
        state: What its requests share, while it is loaded.
        error: Why it could not be loaded the last time, or None.
        users: Requests that hold it.
        used: When it was asked last; larger is later.
        n_loads: How often it was loaded.
    """

    def __init__(self, spec: ModelSpec, survey: Survey) -> None:
        self.spec = spec
        self.n_bytes = survey.n_bytes
        self.generates, self.embeds = survey.generates, survey.embeds
        self.status = "unloaded"
        self.progress = 0.0
        self.state: ServerState | None = None
        self.error: BaseException | None = None
        self.users = self.used = self.n_loads = 0
        self.served: Served | None = None

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.spec.name

    @property
    def answers(self) -> bool:
        """Whether it is loaded, and its engine has not ended by itself."""
        return self.status == "loaded" and self.state is not None and (self.state.ready or self.state.draining)

    @property
    def idle(self) -> bool:
        """Whether it may be unloaded."""
        return self.status == "loaded" and self.users == 0


@dataclass(eq=False)
class _Waiter:
    """A request that waits for a model."""

    entry: ManagedModel
    lease: Lease
    future: asyncio.Future[None]
    since: float


class Lease:
    """The hold of a request on a model: the model is not unloaded before it ends.

    Args:
        models: All models.
        entry: The one that is asked.
        loads: Whether the model is loaded where it is not.
    """

    def __init__(self, models: Models, entry: ManagedModel, *, loads: bool = True) -> None:
        self.models = models
        self.entry = entry
        self.loads = loads
        self.held = False

    async def enter(self) -> ServerState:
        """Wait until the model is loaded.

        Raises:
            APIError: It does not fit beside those that are in use, and none of them ended in time (503); too many
                requests wait (429); it is not loaded, and shall not be (400); or the server shuts down (503).
            PyllmError: It cannot be loaded.
        """
        await self.models.wait_for(self)
        assert self.entry.state is not None
        return self.entry.state

    def exit(self) -> None:
        """Let go of it. Letting go twice is allowed."""
        if self.held:
            self.held = False
            self.models.let_go(self.entry)


class Models:
    """The models of a server; its application finds it as ``state.pyllm``.

    Args:
        specs: The models. The first one answers requests that name none.
        settings: The settings of the server; each model has its own for its requests.
        n_bytes: Bytes that loaded models may take together. None: what is free now.
        n_models: How many may be loaded at once. None: any number.
        autoload: Whether a request loads its model, or only :meth:`load` does.
        timeout: Seconds that a request waits for its model, while it is loaded or does not fit.
        patience: Seconds after which models that stay in use have to make room for one that waits: new requests for
            them wait behind it.

    Raises:
        InvalidArgumentError: There is no model, or two have one name.
        InsufficientMemoryError: One of them can never fit, or those that are to be loaded at the start cannot.
        PyllmError: A file cannot be read, or an argument is wrong.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        settings: Settings,
        *,
        n_bytes: int | None = None,
        n_models: int | None = None,
        autoload: bool = True,
        timeout: float = 300,
        patience: float = 5,
    ) -> None:
        if not specs:
            raise InvalidArgumentError("a server needs a model")
        names = [spec.name for spec in specs]
        for name in names:
            if names.count(name) > 1:
                raise InvalidArgumentError(f"two models are called {name!r}: each needs a name of its own")
        if not timeout > 0:
            raise InvalidArgumentError(f"timeout must be greater than 0, not {timeout!r}")
        if not patience >= 0:
            raise InvalidArgumentError(f"patience must be at least 0, not {patience!r}")
        self.settings = settings
        self.budget = MemoryBudget(_free_bytes(specs) if n_bytes is None else n_bytes, n_models)
        self.autoload, self.timeout, self.patience = autoload, timeout, patience
        self.created = int(time.time())
        self.entries = {spec.name: ManagedModel(spec, survey(spec)) for spec in map(_counted, specs)}
        self._check_sizes()
        self.metrics = ModelsMetrics(self)
        self._waiting: list[_Waiter] = []
        self._yielding: frozenset[str] = frozenset()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="pyllm models")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = self._draining = self._closed = False
        self._clock = 0

    def _check_sizes(self) -> None:
        at_start = [entry for entry in self.entries.values() if entry.spec.load == "start"]
        for entry in self.entries.values():
            if not self.budget.holds([entry.n_bytes]):
                self._refuse([entry], f"the model {entry.name!r} takes {_size_text(entry.n_bytes)}")
        if not self.budget.holds([entry.n_bytes for entry in at_start]):
            sizes = ", ".join(f"{entry.name!r} {_size_text(entry.n_bytes)}" for entry in at_start)
            self._refuse(at_start, f"the models to load at the start take {sizes}")

    def _refuse(self, entries: list[ManagedModel], text: str) -> None:
        limits = [] if self.budget.n_bytes is None else [f"{_size_text(self.budget.n_bytes)} of memory"]
        limits += [] if self.budget.n_models is None else [f"{self.budget.n_models} models at once"]
        needed = sum(entry.n_bytes for entry in entries)
        raise InsufficientMemoryError(
            f"{text}, and there may be {' and '.join(limits)}: a smaller context or cache takes less",
            needed=needed,
            available=self.budget.n_bytes or 0,
        )

    # ---- for the application

    def find(self, name: str | None) -> ManagedModel:
        """The model that a request names; the first one where it names none, or where there is no other.

        Raises:
            APIError: There is no such model (404).
        """
        if not name or len(self.entries) == 1:
            return next(iter(self.entries.values()))
        return self._named(name)

    def lease(self, name: str | None, *, loads: bool | None = None) -> Lease:
        """A hold on the model that a request names; see :meth:`find`.

        Args:
            name: What the request says.
            loads: Whether it may load the model. None: as `autoload` has it.
        """
        return Lease(self, self.find(name), loads=self.autoload if loads is None else loads)

    def load_at_start(self) -> None:
        """Load the models that are to be there at the start; before anything is served.

        Raises:
            PyllmError: One cannot be loaded.
        """
        for entry in self.entries.values():
            if entry.spec.load == "start":
                self._load(entry)
                self._loaded(entry)

    def load(self, name: str) -> None:
        """Begin to load a model before its first request.

        Raises:
            APIError: There is no such model (404), or it is loaded (400).
        """
        entry = self._named(name)
        if entry.status in ("loading", "loaded"):
            raise APIError(400, f"the model {entry.name!r} is {entry.status} already", param="model")
        self.check_ready()
        task = asyncio.get_running_loop().create_task(self._touch(entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unload(self, name: str) -> None:
        """Begin to unload a model.

        Raises:
            APIError: There is no such model (404), it is not loaded (400), or requests hold it (409).
        """
        entry = self._named(name)
        if entry.status != "loaded":
            raise APIError(400, f"the model {entry.name!r} is {entry.status}", param="model")
        if entry.users:
            message = f"{entry.users} requests run on the model {entry.name!r}: it cannot be unloaded before they end"
            raise APIError(409, message, param="model", code="model_in_use")
        entry.status = "unloading"

        def done(error: BaseException | None) -> None:
            if error is not None:
                _log.error("the model %s could not be unloaded", entry.name, exc_info=error)
            self._unloaded([entry])
            self._pump()

        self._in_thread(lambda: self._unload([entry]), done)

    def _named(self, name: str) -> ManagedModel:
        if name not in self.entries:
            known = f"there {'is' if len(self.entries) == 1 else 'are'} {', '.join(map(repr, self.entries))}"
            shown = name if len(name) <= 80 else f"{name[:77]}..."
            message = f"there is no model {shown!r} here; {known}"
            raise APIError(404, message, param="model", code="model_not_found")
        return self.entries[name]

    async def _touch(self, entry: ManagedModel) -> None:
        lease = Lease(self, entry)
        try:
            await lease.enter()
        except (APIError, PyllmError) as error:
            _log.warning("the model %s was not loaded: %s", entry.name, error)
        finally:
            lease.exit()

    @property
    def states(self) -> dict[str, ServerState]:
        """The loaded models, by name."""
        return {name: entry.state for name, entry in self.entries.items() if entry.state is not None}

    @property
    def n_waiting(self) -> int:
        """How many requests wait for their model to be loaded."""
        return len(self._waiting)

    def check_invariants(self) -> None:
        """Check that models, requests and memory agree; a diagnostic, for the thread of the event loop.

        Raises:
            InvariantError: They contradict each other, which is a defect of pyllm. ``.problems`` lists how.
        """
        problems = []
        # What is being unloaded is freed before another model is loaded.
        there = [entry for entry in self.entries.values() if entry.status in ("loaded", "loading")]
        if not self.budget.holds([entry.n_bytes for entry in there]):
            problems.append(f"the models {', '.join(entry.name for entry in there)} take more than there may be")
        for entry in self.entries.values():
            if entry.users < 0 or (entry.users and entry.status != "loaded"):
                problems.append(f"{entry.users} requests hold the model {entry.name!r}, which is {entry.status}")
            if (entry.state is None) != (entry.status == "unloaded") and entry.status in ("unloaded", "loaded"):
                found = "no state" if entry.state is None else "a state"
                problems.append(f"the model {entry.name!r} is {entry.status}, and has {found}")
        if self._yielding and not self._waiting:
            problems.append(f"{', '.join(sorted(self._yielding))} make room, and no request waits")
        if problems:
            raise InvariantError("; ".join(problems), problems=problems)

    # ---- what a server asks of its only model, too

    @property
    def draining(self) -> bool:
        """Whether the server was told to stop: running requests end, new ones are refused."""
        return self._draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._draining = value
        for state in self.states.values():
            state.draining = value
        if value and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._refuse_waiting)

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be taken."""
        return not self._draining and not self._closed

    def check_ready(self) -> None:
        """Raise the error that refuses requests while the server shuts down."""
        if not self.ready:
            raise unavailable("the server is shutting down", self.settings.retry_after)

    @property
    def idle(self) -> bool:
        """Whether nothing is being generated."""
        return all(state.idle for state in self.states.values())

    def cancel_all(self) -> None:
        """End everything that is being generated."""
        for state in self.states.values():
            state.cancel_all()

    def close(self) -> None:
        """Free all models, once nothing is served any more. Closing twice is allowed."""
        self._closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)
        for entry in self.entries.values():
            if entry.served is not None:
                entry.served.close()
            entry.served, entry.state, entry.status = None, None, "unloaded"

    # ---- requests that come and go

    async def wait_for(self, lease: Lease) -> None:
        """Wait until a request can hold its model; see :meth:`Lease.enter`."""
        self.check_ready()
        entry = lease.entry
        if entry.answers and entry.name not in self._yielding:
            self._grant(lease)
            return
        if entry.status in ("unloaded", "unloading") and not lease.loads:
            message = f"the model {entry.name!r} is not loaded: /models/load does that here"
            raise APIError(400, message, param="model", code="model_not_loaded")
        if len(self._waiting) >= MOST_WAITING:
            headers = {"Retry-After": str(self.settings.retry_after)}
            message = f"{len(self._waiting)} requests wait for models to be loaded; try again later"
            raise APIError(429, message, code="queue_full", headers=headers)
        self._loop = loop = asyncio.get_running_loop()
        waiter = _Waiter(entry, lease, loop.create_future(), loop.time())
        self._waiting.append(waiter)
        self._pump()
        # Timers may be a little early.
        again = loop.call_later(self.patience + 0.01, self._pump)
        try:
            async with asyncio.timeout(self.timeout):
                await waiter.future
        except TimeoutError:
            raise unavailable(self._why_not(entry), self.settings.retry_after) from None
        finally:
            again.cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self._pump()

    def let_go(self, entry: ManagedModel) -> None:
        """A request has ended."""
        entry.users -= 1
        if entry.users == 0 and self._waiting:
            self._pump()

    def _grant(self, lease: Lease) -> None:
        self._clock += 1
        lease.entry.used = self._clock
        lease.entry.users += 1
        lease.held = True

    def _why_not(self, entry: ManagedModel) -> str:
        if entry.status == "loading":
            return f"the model {entry.name!r} is still being loaded after {self.timeout:g} seconds"
        others = [other for other in self.entries.values() if other.users]
        held = ", ".join(f"{other.name!r} ({_size_text(other.n_bytes)}, {other.users} requests)" for other in others)
        limit = "" if self.budget.n_bytes is None else f" into {_size_text(self.budget.n_bytes)}"
        if self.budget.n_models is not None:
            limit += f"{' and' if limit else ' into'} {self.budget.n_models} models at once"
        return (
            f"the model {entry.name!r} ({_size_text(entry.n_bytes)}) does not fit{limit} beside {held or 'others'}, "
            f"and nothing of that ended within {self.timeout:g} seconds; try again later"
        )

    def _refuse_waiting(self) -> None:
        for waiter in self._waiting:
            if not waiter.future.done():
                waiter.future.set_exception(unavailable("the server is shutting down", self.settings.retry_after))
        self._waiting.clear()

    # ---- which model is next

    def _pump(self) -> None:
        """Let requests have their models, and load the next one."""
        if not self.ready:
            return
        now, yielding = asyncio.get_running_loop().time(), frozenset[str]()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            entry = waiter.entry
            if waiter.future.done():
                continue
            if entry.answers and entry.name not in yielding:
                self._grant(waiter.lease)
                waiter.future.set_result(None)
                continue
            self._waiting.append(waiter)
            if not yielding and now - waiter.since >= self.patience and entry.status == "unloaded":
                # Those that came before it have been let in; who comes later waits behind it.
                yielding = self._in_the_way(entry)
        self._yielding = yielding
        if self._loading:
            return
        for waiter in self._waiting:
            victims = self._victims(waiter.entry)
            if victims is not None:
                self._swap(waiter.entry, victims)
                return

    def _in_the_way(self, entry: ManagedModel) -> frozenset[str]:
        """Models that must go before another one can be loaded, in use or not."""
        if_all_were_idle = [replace(resident, idle=True) for resident in self._residents()]
        return frozenset(choose_evictions(entry.n_bytes, if_all_were_idle, self.budget) or ())

    def _victims(self, entry: ManagedModel) -> list[ManagedModel] | None:
        """Models to unload before a model is loaded. None: it cannot be loaded, or need not."""
        if entry.status == "loaded" and not entry.answers and entry.users == 0:
            return [entry]  # its engine has ended by itself: again from the beginning
        if entry.status != "unloaded":
            return None
        names = choose_evictions(entry.n_bytes, self._residents(), self.budget)
        return None if names is None else [self.entries[name] for name in names]

    def _residents(self) -> list[LoadedModel]:
        there = [entry for entry in self.entries.values() if entry.status != "unloaded"]
        return [LoadedModel(entry.name, entry.n_bytes, entry.idle, entry.used) for entry in there]

    def _swap(self, entry: ManagedModel, victims: list[ManagedModel]) -> None:
        for victim in victims:
            victim.status = "unloading"
        entry.status, entry.progress, self._loading = "loading", 0.0, True

        def work() -> None:
            self._unload(victims)
            self._load(entry)

        def done(error: BaseException | None) -> None:
            self._loading = False
            self._unloaded([victim for victim in victims if victim is not entry])
            if error is None:
                self._loaded(entry)
            else:
                self._failed(entry, error)
            self._pump()

        self._in_thread(work, done)

    def _in_thread(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self._loop = loop = asyncio.get_running_loop()

        def ended(future: Future[None]) -> None:
            if not future.cancelled():
                with contextlib.suppress(RuntimeError):  # the loop is closed: no request waits any more
                    loop.call_soon_threadsafe(done, future.exception())

        self._worker.submit(work).add_done_callback(ended)

    # ---- in the thread

    def _load(self, entry: ManagedModel) -> None:
        def progressed(part: float) -> None:
            entry.progress = part
            self.check_ready()  # no request waits for a model of a server that ends

        arguments = {**entry.spec.arguments, "progress_callback": progressed}
        entry.served = serve_model(replace(entry.spec, arguments=arguments))

    def _unload(self, entries: list[ManagedModel]) -> None:
        for entry in entries:
            if entry.served is not None:
                entry.served.close()
            entry.served = None

    # ---- and afterwards

    def _loaded(self, entry: ManagedModel) -> None:
        served = entry.served
        assert served is not None
        entry.state = ServerState(served.engine, served.embedder, replace(entry.spec.settings, alias=entry.name))
        entry.state.draining = self._draining
        entry.status, entry.error = "loaded", None
        entry.n_loads += 1
        _log.info("loaded the model %s", entry.name)

    def _unloaded(self, entries: list[ManagedModel]) -> None:
        for entry in entries:
            # What could not be closed takes memory still, and answers.
            entry.status = "unloaded" if entry.served is None else "loaded"
            if entry.served is None:
                entry.state = None
                _log.info("unloaded the model %s", entry.name)

    def _failed(self, entry: ManagedModel, error: BaseException) -> None:
        """Waiting requests get the error; the next request tries again."""
        entry.status, entry.state, entry.error = "unloaded", None, error
        _log.error("the model %s could not be loaded: %s", entry.name, error)
        for waiter in self._waiting:
            if waiter.entry is entry and not waiter.future.done():
                waiter.future.set_exception(_load_error(entry, error))


def _load_error(entry: ManagedModel, error: BaseException) -> APIError:
    """The error of requests that wait for a model that cannot be loaded."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, InsufficientMemoryError):
        return APIError(503, f"the model {entry.name!r} was not loaded: {error.message}", code="model_load_failed")
    kind = type(error).__name__
    message = f"the model {entry.name!r} could not be loaded ({kind}); the server's log says more"
    return APIError(500, message, code="model_load_failed")


def _size_text(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"


def _counted(spec: ModelSpec) -> ModelSpec:
    """The model without a host cache by default: that default is for the only model of a process."""
    if spec.engine.get("host_cache_bytes") is not None:
        return spec
    return replace(spec, engine={**spec.engine, "host_cache_bytes": 0})


def _free_bytes(specs: Sequence[ModelSpec]) -> int | None:
    """Memory of all models by default: the free memory, less a margin."""
    available = host_memory().available
    if available is None:
        return None
    devices = {device.name: device for spec in specs for device in used_devices(spec.split()[0])}
    free = sum(max(0, device.memory_free - _DEVICE_MARGIN) for device in devices.values())
    return available - available // _HOST_MARGIN_SHARE + free


class ModelsMetrics(ServerMetrics):
    """Numbers of a server with several models.

    Those of a model begin again when it is loaded again.

    Args:
        models: The models.
    """

    def __init__(self, models: Models) -> None:
        super().__init__(None)
        self._models = models

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self)  # it asks for collect() only

    def collect(self) -> Iterator[Metric]:
        """All of them, as Prometheus' client asks for them."""
        yield from self.http_requests.collect()
        yield from self._of_models()
        families: dict[str, Metric] = {}
        for name, state in self._models.states.items():
            for family in state.metrics.registry.collect():
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples += [sample._replace(labels={"model": name, **sample.labels}) for sample in family.samples]
        for family in families.values():
            # Requests are counted before their model is known.
            if family.samples and family.name != "pyllm_http_requests":
                yield family

    def _of_models(self) -> Iterator[Metric]:
        loaded = GaugeMetricFamily("pyllm_model_loaded", "Whether the model is in memory.", labels=["model"])
        size = GaugeMetricFamily("pyllm_model_bytes", "What the model takes in memory, estimated.", labels=["model"])
        users = GaugeMetricFamily("pyllm_model_requests", "Requests that hold the model.", labels=["model"])
        loads = CounterMetricFamily("pyllm_model_loads", "How often the model was loaded.", labels=["model"])
        for name, entry in self._models.entries.items():
            loaded.add_metric([name], float(entry.status == "loaded"))
            size.add_metric([name], entry.n_bytes)
            users.add_metric([name], entry.users)
            loads.add_metric([name], entry.n_loads)
        yield from (loaded, size, users, loads)
