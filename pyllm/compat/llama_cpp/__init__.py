"""The high-level names of llama-cpp-python 0.3.36, on pyllm.

What is the same, what differs and why is in docs/migration.md. Results are plain dicts, tokens are lists of ints, texts
go in as bytes where they do there.
"""

from pyllm.compat.llama_cpp import (
    llama_cache,
    llama_chat_format,
    llama_cpp,
    llama_grammar,
    llama_speculative,
    llama_tokenizer,
    llama_types,
)
from pyllm.compat.llama_cpp.llama import Llama
from pyllm.compat.llama_cpp.llama_cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from pyllm.compat.llama_cpp.llama_cpp import *  # noqa: F403
from pyllm.compat.llama_cpp.llama_grammar import LlamaGrammar
from pyllm.compat.llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding
from pyllm.compat.llama_cpp.llama_tokenizer import BaseLlamaTokenizer, LlamaHFTokenizer, LlamaTokenizer
from pyllm.compat.llama_cpp.processors import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from pyllm.compat.llama_cpp.state import LlamaState

#: The version of llama-cpp-python whose names these are.
__version__ = "0.3.36"

__all__ = [
    "BaseLlamaCache",
    "BaseLlamaTokenizer",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaDraftModel",
    "LlamaGrammar",
    "LlamaHFTokenizer",
    "LlamaPromptLookupDecoding",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "llama_cache",
    "llama_chat_format",
    "llama_cpp",
    "llama_grammar",
    "llama_speculative",
    "llama_tokenizer",
    "llama_types",
]
