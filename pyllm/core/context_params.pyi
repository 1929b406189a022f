from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class ContextArguments:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
