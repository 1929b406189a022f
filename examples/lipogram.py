"""Write without a letter: a logits processor that edits llama.cpp's memory in place.

python examples/lipogram.py [LETTER]
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from pyllm import Llama


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("letter", nargs="?", default="e")
    parser.add_argument("--prompt", default="My dog is a good dog, and")
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a known model")
    options = parser.parse_args()

    with Llama(options.model) as llm:
        # All pieces of the vocabulary in one call; the mask is made once and used for each token.
        letter = options.letter.lower().encode()
        forbidden = np.array([letter in piece.lower() for piece in llm.vocab.pieces()])

        def processor(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
            logits[forbidden] = -np.inf

        answer = llm(options.prompt, max_tokens=48, seed=1, logits_processor=processor)
        print(options.prompt + answer.text)
        print(f"\n{forbidden.sum()} of {len(forbidden)} tokens were forbidden.")


if __name__ == "__main__":
    main()
