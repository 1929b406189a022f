"""Ray Data: a column of texts for a column of prompts, with an engine in each actor.

python examples/on_ray/batches.py [--model MODEL]
"""

from __future__ import annotations

import argparse

import numpy as np
import ray

from pyllm.engine import Engine

COUNTRIES = ("France", "Italy", "Spain", "Germany", "Japan", "Egypt")


class Writer:
    """What an actor does: it loads the model once, and then takes batch after batch."""

    def __init__(self, model: str, n_threads: int) -> None:
        self.engine = Engine(model, n_parallel=8, n_ctx=4096, n_threads=n_threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        prompts = [f"The capital of {country} is" for country in batch["country"]]
        done = self.engine.generate(prompts, max_tokens=4, temperature=0, stop=[".", ",", "\n"])
        texts = [completion.text.strip() for completion in done]
        return {**batch, "capital": np.array(texts, dtype=object)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    parser.add_argument("--actors", type=int, default=1, help="how many engines")
    parser.add_argument("--threads", type=int, default=1, help="processors of each")
    options = parser.parse_args()

    countries = ray.data.from_items([{"country": country} for country in COUNTRIES])
    capitals = countries.map_batches(
        Writer,
        fn_constructor_args=(options.model, options.threads),
        batch_size=64,  # several times n_parallel: the engine has no gaps then
        compute=ray.data.ActorPoolStrategy(size=options.actors),
        num_cpus=options.threads,
    )
    for row in capitals.take_all():
        print(f"{row['country']}: {row['capital']}")


if __name__ == "__main__":
    main()
