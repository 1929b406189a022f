"""Talk with a model; an empty line ends it.

python examples/chat.py [--system TEXT] [QUESTION ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from pyllm import Llama
from pyllm.chat.types import Message


def questions(given: list[str]) -> Iterator[str]:
    """Those of the command line, or those that are typed."""
    if given or not sys.stdin.isatty():
        yield from given or ["What is the capital of Italy?", "And of France?"]
        return
    while line := input("> "):
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="*")
    parser.add_argument("--system", default="You are a helpful assistant who answers briefly.")
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    options = parser.parse_args()

    # Each turn computes only what is new: the KV cache has what was said before.
    with Llama(options.model, cache_prompt=True) as llm:
        messages = [Message("system", options.system)]
        llm.preload(messages)
        for question in questions(options.question):
            print(f"You: {question}\nModel: ", end="")
            messages.append(Message("user", question))
            for chunk in llm.stream_chat(messages, max_tokens=48):
                print(chunk.text, end="", flush=True)
            if chunk.completion is not None:
                messages.append(chunk.completion.message)
                usage = chunk.completion.usage
                print(f"\n({usage.prompt_tokens} tokens of prompt, {usage.cached_tokens} computed before)")


if __name__ == "__main__":
    main()
