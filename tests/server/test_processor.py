"""`--logits-processor`: Python looks at each row of every text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from served import Prompted, Served


@pytest.fixture(scope="module")
def rows() -> list[int]:
    return []


@pytest.fixture(scope="module")
def asked(start: Callable[..., Served], shared_engine: Prompted, rows: list[int]) -> Served:
    def make() -> Any:
        def only_seven(ids: Any, logits: Any) -> None:
            rows.append(len(ids))
            logits[:] = -np.inf
            logits[7] = 0

        return only_seven

    return start(shared_engine, alias="tiny", logits_processors=(make,))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/completion", {"prompt": "a", "n_predict": 5}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 5}),
    ],
)
def test_it_sees_every_row_of_every_endpoint(asked: Served, rows: list[int], path: str, body: dict[str, Any]) -> None:
    rows.clear()
    answer = asked.http.post(asked.url + path, json={"max_tokens": 5, **body})
    assert answer.status_code == 200, answer.text
    assert len(rows) == 5
    assert rows == list(range(rows[0], rows[0] + 5))
