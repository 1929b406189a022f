"""Speculation: several tokens of a text are guessed, computed at once, and kept where the guess was right."""

from pyllm.speculation.params import SpeculationParams

__all__ = ["SpeculationParams"]
