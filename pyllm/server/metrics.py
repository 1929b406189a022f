"""Numbers for Prometheus: those of llama-server by its names, and some more by ours; of several models with labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pyllm.types import Completion

if TYPE_CHECKING:
    from pyllm.engine import Engine, Job
    from pyllm.server.pool import Models

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PER_SECOND = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class ServerMetrics:
    """The numbers of one server; two servers in a process have their own.

    Args:
        engine: Its engine, or None.
    """

    def __init__(self, engine: Engine | None) -> None:
        self.registry = CollectorRegistry()
        self.http_requests = Counter(
            "pyllm_http_requests", "Requests that were answered.", ("path", "status"), registry=self.registry
        )
        self.first_token = Histogram(
            "pyllm_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "pyllm_request_seconds",
            "From the arrival of a request to its end.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_time = Histogram(
            "pyllm_queue_seconds",
            "From the arrival of a request to its first step.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.speed = Histogram(
            "pyllm_tokens_per_second", "Tokens per second of each request.", buckets=_PER_SECOND, registry=self.registry
        )
        self.prompt_seconds = self.generation_seconds = 0.0
        if engine is not None:
            self.registry.register(_EngineCollector(engine, self))

    def observe(self, job: Job, completion: Completion) -> None:
        """A request has ended well."""
        timings = completion.timings
        self.prompt_seconds += timings.prompt_ms / 1000
        self.generation_seconds += timings.generation_ms / 1000
        started, first = job.started, job.first_token
        if started is None or first is None:
            return
        self.queue_time.observe(started - job.submitted)
        self.first_token.observe(first - job.submitted)
        self.duration.observe(first - job.submitted + timings.generation_ms / 1000)
        if completion.usage.completion_tokens > 1 and timings.generation_ms > 0:
            self.speed.observe(timings.tokens_per_second)

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self.registry)


class _EngineCollector:
    """Asks the engine when Prometheus asks."""

    def __init__(self, engine: Engine, own: ServerMetrics) -> None:
        self._engine = engine
        self._own = own

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        now, own = self._engine.metrics(), self._own
        counters = {
            "llamacpp:prompt_tokens": (
                "Tokens of prompts and of texts to embed that were computed.",
                now.n_prompt_tokens + now.n_embedded_tokens,
            ),
            "llamacpp:prompt_tokens_cached": ("Tokens of prompts that were in the cache.", now.n_cached_tokens),
            "llamacpp:prompt_seconds": ("Time that prompts took.", own.prompt_seconds),
            "llamacpp:tokens_predicted": ("Tokens generated.", now.n_generated_tokens),
            "llamacpp:tokens_predicted_seconds": ("Time that generating took.", own.generation_seconds),
            "llamacpp:n_decode": ("Steps.", now.n_steps),
            "llamacpp:spec_decode_num_drafts": ("Drafts that were computed.", now.n_drafts),
            "llamacpp:spec_decode_num_draft_tokens": ("Tokens of drafts.", now.n_drafted_tokens),
            "llamacpp:spec_decode_num_accepted_tokens": ("Tokens of drafts that were chosen.", now.n_accepted_tokens),
            "pyllm_requests": ("Requests that were accepted.", now.n_requests),
            "pyllm_requests_rejected": ("Requests refused because the queue was full.", now.n_rejected),
            "pyllm_requests_cancelled": ("Requests that were cancelled.", now.n_cancelled),
            "pyllm_requests_failed": ("Requests that ended with an error.", now.n_failed),
            "pyllm_prefix_cache_hit_tokens": ("Tokens of prompts that were in the cache.", now.n_cached_tokens),
            "pyllm_host_cache_hits": ("How often a text came back from the host's memory.", now.n_host_hits),
            "pyllm_preemptions": ("How often a text had to stop for others.", now.n_preempted),
            "pyllm_embedded_texts": ("Texts whose vectors were computed.", now.n_embedded_texts),
            "pyllm_embedded_tokens": ("Their tokens.", now.n_embedded_tokens),
        }
        gauges = {
            "llamacpp:requests_processing": ("Texts that are being computed.", now.n_running),
            "pyllm_embedding_requests": ("Requests for vectors or ranks that have not ended.", now.n_embedding),
            "llamacpp:n_tokens_max": ("Most tokens that a sequence has had.", now.n_tokens_max),
            "llamacpp:n_busy_slots_per_decode": (
                "Mean number of texts in a step.",
                now.n_step_texts / now.n_steps if now.n_steps else 0.0,
            ),
            "llamacpp:requests_deferred": ("Texts that wait.", now.n_waiting),
            "llamacpp:prompt_tokens_seconds": (
                "Mean speed of prompts, in tokens per second.",
                now.n_prompt_tokens / own.prompt_seconds if own.prompt_seconds else 0.0,
            ),
            "llamacpp:predicted_tokens_seconds": (
                "Mean speed of a text, in tokens per second.",
                now.n_generated_tokens / own.generation_seconds if own.generation_seconds else 0.0,
            ),
            "llamacpp:kv_cache_usage_ratio": ("The part of the KV cache that running texts hold.", now.kv_utilization),
            "llamacpp:kv_cache_tokens": ("Cells of the KV cache that hold something.", now.n_cells_used),
            "pyllm_host_cache_bytes": ("Host memory of texts that left the KV cache.", now.n_host_bytes),
            "pyllm_kv_cells": ("Cells of the KV cache.", now.n_cells),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value=value)
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)


class ModelsMetrics(ServerMetrics):
    """Numbers of a server with several models.

    Those of a model begin again when it is loaded again.

    Args:
        models: The models.
    """

    def __init__(self, models: Models) -> None:
        super().__init__(None)
        self._models = models

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self)  # it asks for collect() only

    def collect(self) -> Iterator[Metric]:
        """All of them, as Prometheus' client asks for them."""
        yield from self.http_requests.collect()
        yield from self._of_models()
        families: dict[str, Metric] = {}
        for name, state in self._models.states.items():
            for family in state.metrics.registry.collect():
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples += [sample._replace(labels={"model": name, **sample.labels}) for sample in family.samples]
        for family in families.values():
            # Requests are counted before their model is known.
            if family.samples and family.name != "pyllm_http_requests":
                yield family

    def _of_models(self) -> Iterator[Metric]:
        loaded = GaugeMetricFamily("pyllm_model_loaded", "Whether the model is in memory.", labels=["model"])
        size = GaugeMetricFamily("pyllm_model_bytes", "What the model takes in memory, estimated.", labels=["model"])
        users = GaugeMetricFamily("pyllm_model_requests", "Requests that hold the model.", labels=["model"])
        loads = CounterMetricFamily("pyllm_model_loads", "How often the model was loaded.", labels=["model"])
        for name, entry in self._models.entries.items():
            loaded.add_metric([name], float(entry.status == "loaded"))
            size.add_metric([name], entry.n_bytes)
            users.add_metric([name], entry.users)
            loads.add_metric([name], entry.n_loads)
        yield from (loaded, size, users, loads)
