"""What a Llama does with messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from pyllm.types import Usage

if TYPE_CHECKING:
    from pyllm.chat.messages import Messages
    from pyllm.chat.run import ToolRun
    from pyllm.chat.tools import Tool
    from pyllm.chat.types import ChatChunk, ChatCompletion
    from pyllm.completion.host import CompletionHost


class ChatMethods:
    """The chat of a :class:`pyllm.Llama`."""

    @overload
    def create_chat_completion(
        self, messages: Messages, *, stream: Literal[False] = False, **arguments: Any
    ) -> ChatCompletion: ...

    @overload
    def create_chat_completion(
        self, messages: Messages, *, stream: Literal[True], **arguments: Any
    ) -> Iterator[ChatChunk]: ...

    def create_chat_completion(
        self, messages: Messages, *, stream: bool = False, **arguments: Any
    ) -> ChatCompletion | Iterator[ChatChunk]:
        """Answer the last of some messages.

        The messages become a prompt by the model's chat template, as llama.cpp's own programs do it. Nothing in their
        contents counts as a control token.

        Args:
            messages: Dicts in OpenAI's shape or :class:`pyllm.chat.types.Message`: role ("system", "developer",
                "user", "assistant", "tool"), content, tool_calls, tool_call_id, reasoning_content. Other keys are
                left aside. Arguments of a call that was cut off are closed where they end, and a line of text takes
                the place of a picture in the result of a tool. Messages of the system are joined into one at the
                beginning where the template writes only that.
            stream: Give an iterator of chunks instead, as :meth:`stream_chat` does.
            tools: What the model may call: dicts in OpenAI's shape, or Python functions, which are described by
                their type hints and docstring. They are not carried out; see :meth:`run_tools`. A model whose
                template knows no tools is told about them in the system message.
            tool_choice: "auto": the model decides. "none": no calls. "required": it must call one.
                ``{"type": "function", "function": {"name": …}}``: it must call this one. ``{"type": "allowed_tools",
                "allowed_tools": {"mode": "auto" | "required", "tools": […]}}``: of those that are described, these may
                be called. The arguments follow the JSON schema of the tool.
            parallel_tool_calls: Whether an answer may have several calls. None: where the template is made for it.
            response_format, json_schema, grammar, regex, choices: The form of the content; see
                :meth:`create_completion`. Reasoning comes before it.
            logprobs: Report the log-probability of each token.
            top_logprobs: And of so many of the likeliest at its place.
            chat_template: Another template: Jinja source, a pathlib.Path, or "chatml".
            chat_template_kwargs: Variables for the template, by name.
            enable_thinking: Let the model reason, where its template has a switch for that.
            reasoning_format: "auto" takes reasoning out of the content, "none" leaves it there.
            reasoning_budget: So many tokens of reasoning at most; then its end is forced. 0 forces it at once.
            continue_final_message: Go on with the last message, an assistant's; the result has only what is new.
                "content" or "reasoning" says which part of it goes on. None: yes, where the last message is an
                assistant's without calls. False: begin another message behind it.
            response_prefix: How the answer begins; it is part of the result.
            add_generation_prompt: End the prompt with what begins an answer. None: yes, unless a message goes on.
            **arguments: Those of :meth:`create_completion` but echo and suffix: max_tokens, stop, n, seed,
                temperature, cache_prompt, … An `overflow` other than "error" leaves out the oldest exchanges
                behind the system's messages when not all fit.

        Returns:
            ChatCompletion: The answers and all about them; with ``stream=True`` an iterator of chunks.

        Raises:
            InvalidArgumentError: Something is wrong with a message, a tool or another argument; or the prompt is
                longer than the context.
            UnknownArgumentError: There is no such argument.
            ChatTemplateError: The template cannot be read, or refuses the messages.
            KeyboardInterrupt: Ctrl-C.

        Example:
            >>> llm.create_chat_completion([{"role": "user", "content": "Hello!"}]).text
        """
        if stream:
            return self.stream_chat(messages, **arguments)
        from pyllm.chat.session import ChatSession

        with ChatSession(cast("CompletionHost", self), messages, arguments) as session:
            return session.finish()

    def stream_chat(self, messages: Messages, **arguments: Any) -> Iterator[ChatChunk]:
        """As :meth:`create_chat_completion`, piece by piece.

        Returns:
            Iterator[ChatChunk]: Content, reasoning and calls as soon as they are final; the last chunk holds
            finish_reason and the completion.
        """
        from pyllm.chat.session import ChatSession

        session = ChatSession(cast("CompletionHost", self), messages, arguments, streamed=True)

        def chunks() -> Iterator[ChatChunk]:
            with session:
                yield from session.chunks()

        return chunks()

    async def achat(self, messages: Messages, **arguments: Any) -> ChatCompletion:
        """As :meth:`create_chat_completion`, for asyncio; a cancelled task aborts it within a step."""
        from pyllm.chat.session import ChatSession
        from pyllm.completion import asynchronous

        return await asynchronous.complete(ChatSession(cast("CompletionHost", self), messages, arguments))

    def astream_chat(self, messages: Messages, **arguments: Any) -> AsyncIterator[ChatChunk]:
        """As :meth:`stream_chat`, for ``async for``; a cancelled task aborts it within a step."""
        from pyllm.chat.session import ChatSession
        from pyllm.completion import asynchronous

        return asynchronous.stream(ChatSession(cast("CompletionHost", self), messages, arguments, streamed=True))

    def run_tools(
        self,
        messages: Messages,
        *,
        tools: Sequence[Callable[..., Any] | Tool | Mapping[str, Any]],
        max_rounds: int = 8,
        **arguments: Any,
    ) -> ToolRun:
        """Answer the last message, and carry out the calls of tools that the model asks for on the way.

        Only Python functions that are among `tools` are called, with the arguments that the model gave. An exception
        of one becomes the text of its result. A call of a tool that is described by a dict ends the run: it is for
        the caller to carry out.

        Args:
            messages: The chat so far; the list itself is not changed.
            tools: Python functions, and others.
            max_rounds: After so many answers with calls, the model has to answer without.
            **arguments: As of :meth:`create_chat_completion`. A `tool_choice` that demands a call is for the first
                answer; the model decides after that.

        Returns:
            ToolRun: The last completion, and all messages with calls and results.

        Raises:
            InvalidArgumentError: A function cannot be described, or see :meth:`create_chat_completion`.
        """
        from pyllm.chat.run import run_tools

        return run_tools(self.create_chat_completion, messages, tools, max_rounds, arguments)

    def preload(self, prompt: str | Messages, **arguments: Any) -> Usage:
        """Compute the beginning of what will be asked, so that the next call has less to do.

        Args:
            prompt: Text, or messages, such as a system message that all chats begin with.
            **arguments: What the messages are written with: tools, chat_template, chat_template_kwargs,
                enable_thinking.

        Returns:
            Usage: How many tokens there are, and how many had been computed before.

        Note:
            The next call uses it under the rule of `cache_prompt`: by default only without a seed and at a
            temperature above 0. ``Llama(…, cache_prompt=True)`` uses it always.
        """
        from pyllm.chat.preload import preload

        return preload(cast("CompletionHost", self), prompt, arguments)
