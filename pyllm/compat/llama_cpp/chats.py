"""Chats by their old names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyllm.compat.llama_cpp.calls import call_arguments, chat_dict, chat_messages, response_format_of, tools_of
from pyllm.compat.llama_cpp.completions import Completions
from pyllm.compat.llama_cpp.llama_grammar import LlamaGrammar
from pyllm.extras import missing


class Chats(Completions):
    """The part of :class:`Llama` that answers chats."""

    chat_format: str | None
    chat_handler: Any
    _chat_handlers: dict[str, Any]

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
            raise missing("these types are those of openai", "openai") from error
        result = self.create_chat_completion(*args, **kwargs)
        if isinstance(result, dict):
            return ChatCompletion(**result)
        return (ChatCompletionChunk(**chunk) for chunk in result)


__all__ = ["Chats"]
