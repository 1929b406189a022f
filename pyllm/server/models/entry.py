"""A model that a server has, in memory or not."""

from __future__ import annotations

from pyllm.errors import InsufficientMemoryError
from pyllm.server.errors import APIError
from pyllm.server.models.loader import ModelSpec, Served, Survey
from pyllm.server.state import ServerState


class Entry:
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


def load_error(entry: Entry, error: BaseException) -> APIError:
    """What those are told who wait for a model that cannot be loaded."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, InsufficientMemoryError):
        return APIError(503, f"the model {entry.name!r} was not loaded: {error.message}", code="model_load_failed")
    kind = type(error).__name__
    message = f"the model {entry.name!r} could not be loaded ({kind}); the server's log says more"
    return APIError(500, message, code="model_load_failed")


def size_text(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"
