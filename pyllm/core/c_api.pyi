from typing import Any

CLASS_LAYOUT: int
_C_API: Any

def function_address(name: str) -> int: ...
