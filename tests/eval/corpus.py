"""A text to score: sentences of our own, put together anew each time around."""

from __future__ import annotations

import random

SENTENCES = (
    "The harbour lay still under a sky the colour of slate.",
    "Nobody had told the baker that the mill was closed.",
    "In spring the river carries branches down from the hills.",
    "A clock on the landing struck eleven, though it was barely ten.",
    "She counted the coins twice and put them back into the jar.",
    "Iron expands when it is heated, and a bridge must leave room for that.",
    "The children had drawn a map of the garden, with treasure under the plum tree.",
    "For a long time the two villages shared one school and one well.",
    "When the wind turned, the smoke of the kilns drifted over the fields.",
    "He read the letter aloud, slowly, as if each word had a price.",
    "Salt was once worth a journey of many weeks across the desert.",
    "The carpenter measured the door, shook his head, and measured it again.",
    "Light from a distant star shows us how it looked long ago.",
    "On market days the square was full of geese, rope and argument.",
    "A good lens is ground by hand for the last thousandth of its shape.",
    "The old road follows the ridge because the valley used to flood.",
    "They named the ship after an aunt who had never seen the sea.",
    "Two prime numbers were enough to keep the message secret.",
    "The cat slept on the warm stones until the shadow of the wall reached her.",
    "Every map is wrong somewhere, but this one was wrong where it mattered.",
    "The gardener planted beans beside the maize, as her mother had done.",
    "After the concert the hall smelled of wax and wet coats.",
    "A pendulum of one metre takes about a second for each swing.",
    "The judge asked the witness to describe the lamp once more.",
)


def text(n_sentences: int, seed: int = 0) -> str:
    """So many sentences in random order, with names and numbers that do not repeat."""
    chooser = random.Random(seed)
    parts = []
    for _ in range(n_sentences):
        sentence = chooser.choice(SENTENCES)
        if chooser.random() < 0.5:
            sentence = f"In the year {chooser.randrange(1500, 2000)}, {sentence[0].lower()}{sentence[1:]}"
        parts.append(sentence)
        if chooser.random() < 0.1:
            parts.append("\n\n")
    return " ".join(parts)
