"""schemathesis makes requests from the OpenAPI document: no answer breaks it, and none is the server's fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from support.engines import Prompted, wait_until_idle
from support.servers import Served

from pyllm import Llama, Model

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
not_a_server_error = pytest.importorskip("schemathesis.checks").not_a_server_error


@pytest.fixture(scope="module")
def served(start: Callable[..., Served], tiny_model: Model) -> Iterator[Served]:
    """A small server that does all that is described."""
    with (
        Prompted(tiny_model, n_ctx=512, n_parallel=4, n_threads=1, max_queued=None) as engine,
        Llama(tiny_model, n_ctx=256, n_threads=1) as embedder,
    ):
        yield start(engine, embedder=embedder, metrics=True, alias="tiny", max_tokens=4, props=True)
        wait_until_idle(engine)
        assert engine.metrics().n_failed == 0


def try_all(served: Served, examples: int) -> list[str]:
    """Make so many good and so many bad requests of each kind; what was found."""
    document = served.get("/openapi.json").json()
    # A document cannot say which fields exclude each other, or which the server leaves aside.
    excluded = [checks.positive_data_acceptance, checks.negative_data_rejection, not_a_server_error]
    limits = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    problems = []
    for each in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = each.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @limits
            @given(case=operation.as_strategy(generation_mode=mode))
            def attempt(case: Any) -> None:
                response = case.call_and_validate(base_url=served.url, excluded_checks=excluded, timeout=60)
                # What this model cannot do, or nobody has allowed, is 501.
                assert response.status_code < 500 or response.status_code == 501, response.text

            try:
                attempt()
            except Unsatisfiable:
                pass  # without fields nothing can be wrong
            except (AssertionError, BaseExceptionGroup) as error:
                found = getattr(error, "exceptions", [error])
                problems += [f"{operation.label} {mode.value}: {one}" for one in found]
    return problems


def test_some_requests_of_each_kind(served: Served) -> None:
    assert try_all(served, 5) == []


@pytest.mark.slow
def test_many_requests_of_each_kind(served: Served) -> None:
    assert try_all(served, 25) == []
