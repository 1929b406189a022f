"""Llama, by the names of llama-cpp-python."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pyllm
from pyllm import hub
from pyllm.compat.llama_cpp import llama_cpp as api
from pyllm.compat.llama_cpp.arguments import llama_arguments, numa_strategy, outdated, seed_of
from pyllm.compat.llama_cpp.chats import Chats
from pyllm.compat.llama_cpp.llama_cache import BaseLlamaCache
from pyllm.compat.llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding
from pyllm.compat.llama_cpp.llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer
from pyllm.compat.llama_cpp.pretrained import fetch
from pyllm.compat.llama_cpp.processors import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from pyllm.compat.llama_cpp.state import LlamaState
from pyllm.core import backend
from pyllm.core.model import Model
from pyllm.errors import ClosedError, InvalidArgumentError

_POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


class Llama(Chats):
    """A model and its context, as llama-cpp-python has them, on a :class:`pyllm.Llama`.

    Threads may share it: a call waits until the one before it is done.

    Args:
        model_path: A GGUF file; or whatever else :class:`pyllm.Llama` takes for a model.
        n_ctx: Size of the context in tokens; 0: the length that the model was trained with. None: chosen as
            :class:`pyllm.Llama` does.
        seed: Seed of everything random. -1 or the default: another one each time.
        logits_all: Whether :meth:`eval` keeps the logits of every token.
        last_n_tokens_size: How many tokens back the penalties look.
        lora_path: A LoRA adapter, applied with `lora_scale`.
        flash_attn: True, False, or None for llama.cpp's own choice.
        chat_format: Name of a format for chats, see :mod:`pyllm.compat.llama_cpp.llama_chat_format`; None: the
            template in the file.
        chat_handler: A function that answers chats instead.
        draft_model: Guesses tokens that the model then checks several at once.
        tokenizer: A tokenizer in place of the model's own.
        numa: How threads are spread over NUMA nodes, for the whole process: a number of ggml's strategies, or True for
            "distribute".
        verbose: Whether llama.cpp's log is written to stderr.
        embedding: Accepted; embeddings can be computed in any case.
        **legacy: Arguments of older versions, which are accepted where they mean nothing.

    The other arguments are those of :class:`pyllm.Llama` by the names they have there. Arguments that this class has in
    common with it can be given by its names too.

    Raises:
        UnknownArgumentError: There is no such argument; the message names the nearest one.
        ModelLoadError: The file cannot be loaded; the message holds llama.cpp's own words.

    Attributes:
        llm: The :class:`pyllm.Llama` behind it, which can do more.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_gpu_layers: int | None = None,
        split_mode: int | None = None,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        seed: int = api.LLAMA_DEFAULT_SEED,
        n_ctx: int | None = None,
        n_batch: int | None = None,
        n_ubatch: int | None = None,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = -1,
        pooling_type: int = -1,
        attention_type: int = -1,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool | None = None,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_scale: float = 1.0,
        lora_path: str | os.PathLike[str] | None = None,
        chat_format: str | None = None,
        chat_handler: Any = None,
        draft_model: LlamaDraftModel | None = None,
        tokenizer: BaseLlamaTokenizer | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        numa: bool | int | None = False,
        verbose: bool = False,
        **legacy: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "legacy", "__class__")}
        self._given = {**given, **legacy}
        outdated(legacy, [name for name in given if name != "model_path"])
        if chat_format is not None and chat_handler is None:
            from pyllm.compat.llama_cpp.llama_chat_format import get_chat_completion_handler

            get_chat_completion_handler(chat_format)  # a wrong name is an error now
        if verbose:
            _show_log()
        if strategy := numa_strategy(numa):
            backend.numa_init(strategy)
        self.model_path = os.fspath(model_path)
        self.verbose = verbose
        self.last_n_tokens_size = last_n_tokens_size
        self.draft_model = draft_model
        self._logits_all = logits_all
        self._seed = seed_of(seed)
        self.cache: BaseLlamaCache | None = None
        self._llm: pyllm.Llama | None = None
        if vocab_only:
            self.core_model = Model(hub.resolve(model_path), vocab_only=True)
        else:
            arguments = llama_arguments(given)
            if isinstance(draft_model, LlamaPromptLookupDecoding):
                arguments["speculative"] = _speculation(draft_model)
            # What a call has in common with the one before is never computed twice.
            self._llm = pyllm.Llama(model_path, cache_prompt=True, **arguments)
            self.core_model = self._llm.model
        api.register(self.core_model)
        self._start_evaluation()
        self.tokenizer_: BaseLlamaTokenizer = tokenizer if tokenizer is not None else LlamaTokenizer(self)
        self._has_own_tokenizer = tokenizer is not None
        self.chat_format = chat_format
        self.chat_handler = chat_handler
        self._chat_handlers: dict[str, Any] = {}

    # ---- the objects behind it

    @property
    def llm(self) -> pyllm.Llama:  # type: ignore[override]
        """The :class:`pyllm.Llama` behind it.

        Raises:
            InvalidArgumentError: There is only a vocabulary.
        """
        if self._llm is None:
            raise InvalidArgumentError("only the vocabulary was loaded: make the Llama without vocab_only=True")
        return self._llm

    @property
    def model(self) -> int:
        """The handle of the model, for functions of :mod:`pyllm.compat.llama_cpp.llama_cpp`."""
        return self.core_model.address

    @property
    def ctx(self) -> int:
        """The handle of the context."""
        return self.llm.context.address

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the file."""
        return self.core_model.metadata

    @property
    def context_params(self) -> SimpleNamespace:
        """Sizes of the context."""
        context = self.llm.context
        return SimpleNamespace(
            n_ctx=context.n_ctx, n_batch=context.n_batch, n_ubatch=context.n_ubatch, n_seq_max=context.n_seq_max
        )

    def n_ctx(self) -> int:
        """Size of the context in tokens."""
        return self.llm.context.n_ctx_seq

    def n_embd(self) -> int:
        """Size of the model's vectors."""
        return self.core_model.n_embd

    def n_vocab(self) -> int:
        """How many tokens there are."""
        return len(self.core_model.vocab)

    def token_eos(self) -> int:
        """The token that ends a text, or -1."""
        return _or_none(self.core_model.vocab.eos)

    def token_bos(self) -> int:
        """The token that begins a text, or -1."""
        return _or_none(self.core_model.vocab.bos)

    def token_nl(self) -> int:
        """The token of a line's end, or -1."""
        return _or_none(self.core_model.vocab.nl)

    def pooling_type(self) -> str:
        """How vectors of tokens become one, in words."""
        return _POOLING.get(int(self.llm.context.pooling_type), "unspecified")

    def tokenizer(self) -> LlamaTokenizer:
        """The model's tokenizer."""
        return LlamaTokenizer(self)

    def close(self) -> None:
        """Free everything. Closing twice is allowed; what is called afterwards raises ClosedError."""
        if self._llm is not None:
            self._llm.close()
        elif not self.core_model.closed:
            self.core_model.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return dict(self._given)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def set_seed(self, seed: int) -> None:
        """The seed from now on; -1 is another one each time."""
        self._seed = self.llm.seed = seed_of(seed)
        self._chain = None

    # ---- text and tokens

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """The tokens of a text.

        Args:
            text: UTF-8.
            add_bos: Whether the token comes first that begins texts, if the model has it so.
            special: Whether names of control tokens in the text are such tokens.
        """
        self._require()
        return self.tokenizer_.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The text of tokens, every byte of it.

        Args:
            tokens: The tokens.
            prev_tokens: Those that stand before them.
            special: Whether control tokens are written out.
        """
        self._require()
        return self.tokenizer_.detokenize(list(tokens), prev_tokens=prev_tokens, special=special)

    def _require(self) -> None:
        if self.core_model.closed:
            raise ClosedError("the Llama is closed")

    # ---- embeddings

    def embed(
        self,
        input: str | Sequence[str],
        normalize: bool | int = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """Vectors of texts.

        Args:
            input: A text, or several.
            normalize: Whether to bring them to length 1.
            truncate: Whether to read only as much of a text as the model can; else a longer one is an error.
            return_count: Whether to give the number of tokens too.

        Returns:
            A list of floats, or for several texts a list of these; without pooling a list for each token. With
            `return_count` a tuple of that and the number of tokens that were read.
        """
        vectors, count, alone = self.llm._embedded(
            input, normalize=bool(normalize), overflow="truncate" if truncate else "error"
        )
        lists = [vector.tolist() for vector in vectors]
        shaped = lists[0] if alone else lists
        return (shaped, count) if return_count else shaped

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> dict[str, Any]:
        """Vectors of texts, as a dict in the shape of OpenAI's API."""
        texts = [input] if isinstance(input, str) else list(input)
        vectors, count = self.embed(texts, return_count=True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)],
            "model": self.model_path if model is None else model,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    # ---- models from a hub

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """A Llama with a model of the Hugging Face hub.

        Args:
            repo_id: Owner and name of the repository.
            filename: The file in it, or a pattern such as ``"*Q4_K_M.gguf"`` that fits one file.
            additional_files: Other files to fetch with it, the further parts of a split model for example.
            local_dir: Where to put them; None: the hub's own cache.
            local_dir_use_symlinks: Has no meaning any more.
            cache_dir: Another cache.
            **kwargs: Arguments of the constructor.

        Raises:
            MissingDependencyError: huggingface_hub is not installed.
            InvalidArgumentError: No file fits, or several do.
        """
        paths = fetch(
            repo_id, [filename or "*.gguf", *(additional_files or ())], local_dir=local_dir, cache_dir=cache_dir
        )
        return cls(model_path=paths[0], **kwargs)


def _or_none(token: int | None) -> int:
    return api.LLAMA_TOKEN_NULL if token is None else token


def _speculation(draft: LlamaPromptLookupDecoding) -> Any:
    from pyllm.speculation import SpeculationParams

    return SpeculationParams(types="ngram-simple", ngram_size=draft.max_ngram_size, n_max=draft.num_pred_tokens)


class _Handler(logging.StreamHandler[Any]):
    """Writes llama.cpp's log to whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _show_log() -> None:
    """Let llama.cpp's log be written to stderr, once for the process."""
    logger = logging.getLogger("pyllm.llama")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        handler = _Handler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


__all__ = [
    "Llama",
    "LlamaState",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
]
