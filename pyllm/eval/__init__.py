"""Scoring: how probable texts are, and what that says about a model.

    >>> from pyllm import Llama
    >>> from pyllm.eval import score
    >>> llm = Llama("smollm2")
    >>> score(llm, "The capital of France is", [" Paris", " Rome"])

Everything is computed in batches, logits only where they are needed, beginnings that texts share once, and read where
llama.cpp wrote them.
"""

from __future__ import annotations

from pyllm.eval.choices import ChoiceResult, hellaswag, multiple_choice, winogrande
from pyllm.eval.contexts import Scorable, Text
from pyllm.eval.kl import KL, kl
from pyllm.eval.kl_file import LogitsFile, LogitsFileError, save_logits
from pyllm.eval.perplexity import Perplexity, perplexity
from pyllm.eval.scorer import Scorer
from pyllm.eval.tasks import (
    MultipleChoice,
    TaskFileError,
    Winogrande,
    read_hellaswag,
    read_multiple_choice,
    read_winogrande,
    write_multiple_choice,
)
from pyllm.eval.texts import logprobs, logprobs_many, score
from pyllm.eval.types import Score, TokenLogprobs

__all__ = [
    "KL",
    "ChoiceResult",
    "LogitsFile",
    "LogitsFileError",
    "MultipleChoice",
    "Perplexity",
    "Scorable",
    "Score",
    "Scorer",
    "TaskFileError",
    "Text",
    "TokenLogprobs",
    "Winogrande",
    "hellaswag",
    "kl",
    "logprobs",
    "logprobs_many",
    "multiple_choice",
    "perplexity",
    "read_hellaswag",
    "read_multiple_choice",
    "read_winogrande",
    "save_logits",
    "score",
    "winogrande",
    "write_multiple_choice",
]
