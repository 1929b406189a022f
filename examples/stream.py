"""Write a story, piece by piece as the model makes it up.

python examples/stream.py [PROMPT] [--seed N]
"""

from __future__ import annotations

import argparse

from pyllm import Llama


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="Once upon a time there was a cat who")
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    parser.add_argument("--seed", type=int, help="the same seed writes the same story")
    options = parser.parse_args()

    with Llama(options.model) as llm:
        print(options.prompt, end="")
        for chunk in llm.stream(options.prompt, max_tokens=64, seed=options.seed):
            print(chunk.text, end="", flush=True)
            if chunk.completion is not None:
                print(f"\n\n(seed {chunk.completion.seed}, {chunk.completion.timings.tokens_per_second:.1f} tokens/s)")


if __name__ == "__main__":
    main()
