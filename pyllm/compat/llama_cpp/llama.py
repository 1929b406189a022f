"""Llama, by the names of llama-cpp-python."""

from __future__ import annotations

import fnmatch
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import pyllm
from pyllm.compat.llama_cpp import llama_cpp as api
from pyllm.compat.llama_cpp.arguments import llama_arguments, outdated, seed_of
from pyllm.compat.llama_cpp.calls import (
    call_arguments,
    chat_dict,
    chat_messages,
    completion_dict,
    response_format_of,
    tools_of,
)
from pyllm.compat.llama_cpp.evaluation import Evaluation
from pyllm.compat.llama_cpp.llama_cache import BaseLlamaCache, common_prefix
from pyllm.compat.llama_cpp.llama_grammar import LlamaGrammar
from pyllm.compat.llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding
from pyllm.compat.llama_cpp.llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer
from pyllm.compat.llama_cpp.processors import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from pyllm.compat.llama_cpp.state import LlamaState
from pyllm.core.model import Model
from pyllm.errors import ClosedError, InvalidArgumentError, MissingDependencyError

_POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


class Llama(Evaluation):
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
        verbose: bool = False,
        **legacy: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "legacy", "__class__")}
        self._given = {**given, **legacy}
        outdated(legacy, [name for name in given if name != "model_path"])
        if verbose:
            _show_log()
        self.model_path = os.fspath(model_path)
        self.verbose = verbose
        self.last_n_tokens_size = last_n_tokens_size
        self.draft_model = draft_model
        self._logits_all = logits_all
        self._seed = seed_of(seed)
        self.cache: BaseLlamaCache | None = None
        self._llm: pyllm.Llama | None = None
        if vocab_only:
            self.core_model = Model(self.model_path, vocab_only=True)
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
        if chat_format is not None and chat_handler is None:
            from pyllm.compat.llama_cpp.llama_chat_format import get_chat_completion_handler

            get_chat_completion_handler(chat_format)  # a wrong name is an error now

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
        try:
            self.close()
        except BufferError:
            # As of a Context: an exception that passes through is not hidden behind the view in its traceback.
            if not any(exc_info):
                raise

    def __getstate__(self) -> dict[str, Any]:
        return dict(self._given)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def set_seed(self, seed: int) -> None:
        """The seed from now on; -1 is another one each time."""
        self._seed = self.llm.seed = seed_of(seed)
        self._chain = None

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Keep what completions compute, and begin with what has been computed already; None: no more."""
        self.cache = cache

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

    # ---- completions

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: Any = None,
        logits_processor: Any = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
        **more: Any,
    ) -> Any:
        """Continue a prompt. Calling the Llama is the same.

        Args:
            max_tokens: Tokens at most; None, 0 and less: until the text or the context ends.
            model: What the result calls the model; None: its path.
            **more: Every other argument of :meth:`pyllm.Llama.create_completion`.

        The other arguments are those of :meth:`pyllm.Llama.create_completion`.

        Returns:
            A dict in the shape of OpenAI's API; with `stream` an iterator of such dicts.

        Raises:
            InvalidArgumentError: The prompt is longer than the context, or an argument is out of range.
            UnknownArgumentError: There is no such argument.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "more")}
        arguments = call_arguments(given, {"repeat_last_n": self.last_n_tokens_size, **more})
        for name in ("suffix", "logprobs", "echo"):
            if given[name] is not None:
                arguments.setdefault(name, given[name])
        text: Any = prompt
        if isinstance(prompt, str) and self._has_own_tokenizer:
            text = self.tokenize(prompt.encode(), add_bos=True, special=True)
        elif not isinstance(prompt, (str, bytes)):
            text = list(prompt)
        name = self.model_path if model is None else model
        self._recall(text)
        if stream:
            return self._streamed(self.llm.stream(text, **arguments), name)
        result = self.llm.create_completion(text, **arguments)
        self._done()
        return completion_dict(result, name)

    __call__ = create_completion

    def _streamed(self, chunks: Iterator[Any], name: str) -> Iterator[dict[str, Any]]:
        try:
            for chunk in chunks:
                shaped = completion_dict(chunk, name)
                shaped.pop("usage", None)  # chunks have none there
                yield shaped
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
            self._done()

    def _recall(self, prompt: Any) -> None:
        """Begin with a state of the cache if it has more of the prompt than the context."""
        if self.cache is None:
            return
        ids = self.llm.tokenize(prompt) if isinstance(prompt, (str, bytes)) else prompt
        wanted = np.asarray(ids, np.int64)
        try:
            state = self.cache[tuple(wanted.tolist())]
        except KeyError:
            return
        self._follow()
        if common_prefix(wanted, state.input_ids) > common_prefix(wanted, self._tokens):
            self.load_state(state)

    def _done(self) -> None:
        """Take over what a completion has computed."""
        if self.llm.context.closed:
            return
        with self._guard:
            self._follow()
            if self.cache is not None and len(self._tokens):
                self.cache[tuple(self._tokens.tolist())] = self.save_state()

    # ---- chats

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: Any = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: Any = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        **more: Any,
    ) -> Any:
        """Answer the last message of a chat.

        Args:
            functions: Tools, as they were called before.
            function_call: Which of them.
            model: What the result calls the model; None: its path.
            **more: Every other argument of :meth:`pyllm.Llama.create_chat_completion`, `chat_template_kwargs` and
                `enable_thinking` for example.

        The other arguments are those of :meth:`pyllm.Llama.create_chat_completion`.

        Returns:
            A dict in the shape of OpenAI's API; with `stream` an iterator of such dicts.

        Raises:
            InvalidArgumentError: Messages or arguments are not what they must be.
            UnknownArgumentError: There is no such argument.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "more")}
        handler = self.chat_handler
        if handler is None and self.chat_format is not None:
            from pyllm.compat.llama_cpp.llama_chat_format import get_chat_completion_handler

            handler = self._chat_handlers.get(self.chat_format) or get_chat_completion_handler(self.chat_format)
        if handler is not None:
            return handler(llama=self, **given, **more)
        return self.answer(given, more)

    def answer(self, given: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
        """As :meth:`create_chat_completion`, by the template in the file or one in `more`.

        Args:
            given: Arguments by their names there.
            more: Arguments by pyllm's names.
        """
        arguments = call_arguments(given, {"repeat_last_n": self.last_n_tokens_size, **more})
        tools, choice, functions = tools_of(given)
        if tools is not None:
            arguments["tools"] = tools
            if choice is not None:
                arguments["tool_choice"] = choice
        form = response_format_of(given.get("response_format"))
        if form is not None:
            arguments["response_format"] = form
        if given.get("logprobs"):
            arguments["logprobs"] = True
            if given.get("top_logprobs") is not None:
                arguments["top_logprobs"] = given["top_logprobs"]
        messages = chat_messages(given["messages"])
        name = self.model_path if given.get("model") is None else str(given["model"])
        if given.get("stream"):
            chunks = self.llm.create_chat_completion(messages, stream=True, **arguments)
            return self._streamed_answer(chunks, name, functions)
        result = self.llm.create_chat_completion(messages, **arguments)
        self._done()
        return chat_dict(result, name, functions=functions)

    def _streamed_answer(self, chunks: Any, name: str, functions: bool) -> Iterator[dict[str, Any]]:
        try:
            for chunk in chunks:
                shaped = chat_dict(chunk, name, functions=functions)
                shaped.pop("usage", None)
                if shaped["choices"]:
                    yield shaped
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
            self._done()

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`create_chat_completion`, with the types of the package `openai`."""
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError as error:
            raise MissingDependencyError("these types are those of openai: pip install openai") from error
        result = self.create_chat_completion(*args, **kwargs)
        if isinstance(result, dict):
            return ChatCompletion(**result)
        return (ChatCompletionChunk(**chunk) for chunk in result)

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
            `return_count` a tuple of that and the number of tokens.
        """
        vectors = self.llm.embed(input, normalize=bool(normalize), overflow="truncate" if truncate else "error")
        lists = vectors.tolist() if isinstance(vectors, np.ndarray) else [vector.tolist() for vector in vectors]
        if not return_count:
            return lists
        texts = [input] if isinstance(input, str) else list(input)
        return lists, sum(len(self.tokenize(text.encode(), special=True)) for text in texts)

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
        try:
            hub: Any = importlib.import_module("huggingface_hub")
        except ImportError as error:
            raise MissingDependencyError('from_pretrained needs huggingface_hub: pip install "pyllm[hf]"') from error
        files = [sibling.rfilename for sibling in hub.HfApi().model_info(repo_id).siblings or ()]
        names = [_the_one(files, pattern, repo_id) for pattern in (filename or "*.gguf", *(additional_files or ()))]
        places = {
            name: os.fspath(folder)
            for name, folder in (("local_dir", local_dir), ("cache_dir", cache_dir))
            if folder is not None
        }
        if places:
            paths = [Path(hub.hf_hub_download(repo_id, name, **places)) for name in names]
        else:
            from pyllm.hub import resolve  # which goes on where a download was cut off

            paths = [resolve(f"hf:{repo_id}/{name}") for name in names]
        return cls(model_path=paths[0], **kwargs)


def _the_one(files: Sequence[str], pattern: str, repo_id: str) -> str:
    found = [name for name in files if fnmatch.fnmatch(name, pattern)]
    if len(found) == 1:
        return found[0]
    what = "several files fit" if found else "no file fits"
    choices = ", ".join(found or [name for name in files if name.endswith(".gguf")])
    raise InvalidArgumentError(f"{what} {pattern!r} in {repo_id}: {choices or 'it has no .gguf files'}")


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
