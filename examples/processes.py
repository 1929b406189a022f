"""Many processes, one model file: each process loads it, and the system keeps its pages in memory once.

python examples/processes.py [-n PROCESSES]
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from pyllm import Llama, hub

COUNTRIES = ("France", "Italy", "Spain", "Germany", "Japan", "Egypt")

llm: Llama  # one in each process


def start(path: str) -> None:
    global llm
    llm = Llama(path, n_ctx=256, n_threads=1)


def capital(country: str) -> str:
    return llm(f"The capital of {country} is", max_tokens=4, temperature=0, stop=[".", ",", "\n"]).text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=2, help="how many processes")
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    options = parser.parse_args()

    path = str(hub.resolve(options.model))  # downloaded here, once, if it has to be
    # "spawn": a forked child could not use threads that exist in its parent only.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.n, mp_context=spawn, initializer=start, initargs=(path,)) as pool:
        for country, answer in zip(COUNTRIES, pool.map(capital, COUNTRIES), strict=True):
            print(f"{country}:{answer}")


if __name__ == "__main__":
    main()
