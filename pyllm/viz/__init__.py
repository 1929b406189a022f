"""Pictures: scored texts, logits, logit lenses and activations, as matplotlib figures and as HTML.

    >>> from pyllm import Llama, viz
    >>> from pyllm import eval as scoring
    >>> scored = scoring.logprobs(Llama("smollm2"), "The capital of France is cheese.")
    >>> viz.html.token_map(scored).save("map.html")  # what a notebook shows by itself
    >>> viz.token_map(scored).savefig("map.svg")  # with matplotlib, the extra "viz"

The functions here make figures; those of the same names in :mod:`pyllm.viz.html` make HTML and need no package.
"""

from __future__ import annotations

from pyllm.viz import html
from pyllm.viz.figures import activations, lens_table, token_map, top_tokens

__all__ = ["activations", "html", "lens_table", "token_map", "top_tokens"]
