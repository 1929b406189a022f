"""A model that calls Python functions.

python examples/tools.py [QUESTION]
"""

from __future__ import annotations

import argparse
import datetime
from typing import Literal

from pyllm import Llama

HOURS = {"London": 0, "Paris": 1, "Tokyo": 9}


def get_time(city: Literal["London", "Paris", "Tokyo"]) -> str:
    """Get the time of day in a city.

    Args:
        city: Name of the city.
    """
    zone = datetime.timezone(datetime.timedelta(hours=HOURS[city]))
    return f"It is {datetime.datetime.now(zone):%H:%M} in {city}."


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="What time is it in Tokyo?")
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    options = parser.parse_args()

    with Llama(options.model) as llm:
        question = {"role": "user", "content": options.question}
        # A model as small as the default one does not think of calling: it must.
        run = llm.run_tools([question], tools=[get_time, add], tool_choice="required", temperature=0, max_tokens=64)
        for message in run.messages:
            for call in message.get("tool_calls", []):
                print(f"calls {call['function']['name']}({call['function']['arguments']})")
            if message["content"]:
                print(f"{message['role']}: {message['content']}")


if __name__ == "__main__":
    main()
