from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class LoadParams:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
