"""The numbers of several models as those of one server: each with the label ``model``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pyllm.server.metrics import ServerMetrics

if TYPE_CHECKING:
    from pyllm.server.models.pool import Models


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
            # Requests are counted before anybody knows which model they ask.
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
