from typing import Any

_C_API: Any

def function_address(name: str) -> int: ...
