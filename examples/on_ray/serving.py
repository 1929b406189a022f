"""The server inside Ray Serve: all its endpoints, in as many replicas as there shall be.

    serve run --app-dir examples/on_ray serving:build model=smollm2

Other deployments ask it without HTTP, by a handle: `handle.complete.remote("One, two,", max_tokens=8)`.
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve
from starlette.applications import Starlette

from pyllm.engine import AsyncEngine, Engine
from pyllm.server import Settings, make_app

N_CPUS = 2


@serve.deployment(
    ray_actor_options={"num_cpus": N_CPUS},
    # The engine queues, and shares what prompts have alike: it should see requests before they run.
    max_ongoing_requests=64,
    autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8},
    graceful_shutdown_timeout_s=60,
)
@serve.ingress()
class Server:
    """One replica: an engine of its own, and the application around it."""

    def __init__(self, model: str, **arguments: Any) -> None:
        # Ray counts processors and does not bind to them: without n_threads each replica would take all.
        self.engine = Engine(model, n_threads=N_CPUS, max_queued=256, **arguments)
        self.client = AsyncEngine(self.engine)

    def __serve_build_asgi_app__(self) -> Starlette:
        keys = os.environ.get("LLAMA_API_KEY", "")
        return make_app(self.engine, Settings(api_keys=tuple(filter(None, keys.split(",")))))

    async def complete(self, prompt: str, **arguments: Any) -> dict[str, Any]:
        """For other deployments: a completion in OpenAI's shape."""
        return (await self.client.complete(prompt, **arguments)).to_dict()

    def check_health(self) -> None:
        """Ray asks every few seconds, and starts a replica anew whose engine has ended."""
        if self.engine.closed:
            raise RuntimeError("the engine has stopped")

    def __del__(self) -> None:
        self.engine.close()


def build(arguments: dict[str, str]) -> serve.Application:
    """What `serve run` asks for."""
    return Server.bind(arguments.get("model", "smollm2"), n_parallel=8, n_ctx=16384)
