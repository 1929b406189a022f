import os
from dataclasses import dataclass

@dataclass(frozen=True)
class Device:
    name: str
    description: str
    type: str
    backend: str
    memory_free: int
    memory_total: int

@dataclass(frozen=True)
class BackendInfo:
    name: str
    loaded: bool
    path: str
    reason: str
    devices: tuple[str, ...]

def load_backends() -> None: ...
def load_backend(path: str | os.PathLike[str]) -> str: ...
def backends() -> list[BackendInfo]: ...
def devices() -> list[Device]: ...
def buffer_type_address(name: str) -> int: ...
def system_info() -> str: ...
def cpu_features() -> dict[str, str]: ...
def llama_version() -> str: ...
