import os
from dataclasses import dataclass, field

@dataclass(frozen=True)
class BufferType:
    name: str
    kind: str
    alignment: int
    max_size: int | None
    is_host: bool

@dataclass(frozen=True)
class DeviceCaps:
    async_: bool
    host_buffer: bool
    buffer_from_host_ptr: bool
    events: bool
    mmap_support: bool

@dataclass(frozen=True)
class Device:
    name: str
    description: str
    type: str
    backend: str
    memory_free: int
    memory_total: int
    id: str | None
    caps: DeviceCaps
    buffer_types: tuple[BufferType, ...]

@dataclass(frozen=True)
class BackendInfo:
    name: str
    loaded: bool
    path: str
    reason: str
    devices: tuple[str, ...]
    features: dict[str, str] = field(default_factory=dict, hash=False)
    remedy: str = ""

def load_backends() -> None: ...
def load_backend(path: str | os.PathLike[str]) -> str: ...
def start_devices(path: str | os.PathLike[str]) -> list[str]: ...
def backends() -> list[BackendInfo]: ...
def devices() -> list[Device]: ...
def buffer_type_address(name: str) -> int: ...
def system_info() -> str: ...
def cpu_features() -> dict[str, str]: ...
def support() -> dict[str, bool]: ...
def limits() -> dict[str, int]: ...
def numa_init(strategy: str) -> None: ...
def time_us() -> int: ...
def llama_commit() -> str: ...
def llama_version() -> str: ...
