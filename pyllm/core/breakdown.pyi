from dataclasses import dataclass

from pyllm.core.context import Context

@dataclass(frozen=True)
class BufferMemory:
    buffer_type: str
    device: str
    model: int
    context: int
    compute: int

def memory_breakdown(context: Context) -> list[BufferMemory]: ...
