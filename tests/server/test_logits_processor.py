"""`--logits-processor`: Python looks at each row of every text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
from support.engines import Prompted
from support.servers import Served


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


class OneText:
    """Remembers where the texts began that it saw."""

    made: ClassVar[list[OneText]] = []

    def __init__(self) -> None:
        self.begins: set[int] = set()
        self.rows = 0
        self.made.append(self)

    def __call__(self, ids: Any, logits: Any) -> None:
        self.begins.add(int(ids[-1 - self.rows]))
        self.rows += 1
        logits[:] = -np.inf
        logits[7 + self.rows] = 0


@pytest.mark.parametrize(
    ("path", "body", "texts"),
    [
        ("/v1/completions", {"prompt": ["a", "b", "c"]}, 3),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, 4),
        ("/completion", {"prompt": ["a", "b"], "n_cmpl": 2}, 4),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 3}, 3),
    ],
)
def test_each_text_has_its_own(
    start: Callable[..., Served], shared_engine: Prompted, path: str, body: dict[str, Any], texts: int
) -> None:
    asked = start(shared_engine, logits_processors=(OneText,))
    OneText.made.clear()
    answer = asked.post(path, {"max_tokens": 5, "n_predict": 5, **body})
    assert answer.status_code == 200, answer.text
    assert [(one.rows, len(one.begins)) for one in OneText.made if one.rows] == [(5, 1)] * texts


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
