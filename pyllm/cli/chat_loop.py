"""The conversation of ``pyllm chat``: read, answer, and do what `/` commands say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.cli import chat_commands
from pyllm.cli.chat_screen import Screen
from pyllm.cli.chat_session import Session, session_path
from pyllm.errors import PyllmError

if TYPE_CHECKING:
    from pyllm import Llama


class Chat:
    """A conversation with a model.

    Args:
        llm: The model.
        screen: Where to read and write.
        model: What to call the model.
        system: The system prompt; None keeps that of the session.
        settings: Arguments of every answer.
        session: Name of a conversation to go on with, which is saved after each answer.
    """

    def __init__(
        self,
        llm: Llama,
        screen: Screen,
        *,
        model: str,
        system: str | None = None,
        settings: dict[str, Any] | None = None,
        session: str | None = None,
    ) -> None:
        self.llm, self.screen, self.model = llm, screen, model
        self.name = session
        self.path: Path | None = None if session is None else session_path(session)
        self.session = Session.load(self.path) if self.path is not None and self.path.exists() else Session()
        if system is not None:
            self.session.system = system
        # What the command line says holds for this run; what /set has said is kept with the conversation.
        self.given = dict(settings or {})
        self.ended = False
        self.used = 0
        self.rate = 0.0
        self.answers = self.generated = 0
        self.last: dict[str, float] = {}
        screen.status = self.status
        screen.complete = lambda line: chat_commands.candidates(self, line)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of every answer."""
        return {**self.given, **self.session.settings}

    def run(self, prompt: str | None = None, *, single_turn: bool = False) -> None:
        """Talk until the input ends.

        Args:
            prompt: The first message, instead of asking for one.
            single_turn: End after one answer.
        """
        if self.screen.is_terminal and not single_turn:
            self._greet()
        while not self.ended:
            text = self.screen.read() if prompt is None else prompt
            prompt = None
            if text is None:
                break
            if not text.strip():
                continue
            if text.startswith("/"):
                self._guarded(chat_commands.execute, self, text)
                continue
            self._guarded(self.ask, text)
            if single_turn:
                break

    def ask(self, text: str) -> None:
        """Put a question and show the answer. Without any answer the question is taken back."""
        self.session.add("user", text)
        said = False
        try:
            said = self._answer()
        finally:
            if not said:
                self.session.undo()
        self.keep()

    def retry(self) -> None:
        """Answer the last question anew; the old answer stays if nothing new comes."""
        before = list(self.session.messages)
        question = self.session.undo()
        if question is None:
            self.screen.show("there is no question to answer again")
            return
        try:
            self.ask(question)
        finally:
            if len(self.session.messages) < len(before):
                self.session.messages = before

    def keep(self) -> None:
        """Save the conversation if it has a name."""
        if self.path is not None:
            self.session.save(self.path)

    def rename(self, name: str) -> None:
        """Keep the conversation under this name from now on."""
        self.path, self.name = session_path(name), name

    def _answer(self) -> bool:
        """Show the answer to the messages; whether there was any. Ctrl-C at a terminal keeps what has been said."""
        text: list[str] = []
        reasoning: list[str] = []
        started = time.perf_counter()
        first = 0.0
        completion = None
        stream = self.llm.stream_chat(self.session.messages, **self.settings)
        try:
            for chunk in stream:
                if chunk.reasoning:
                    reasoning.append(chunk.reasoning)
                    self.screen.write(chunk.reasoning, dim=True)
                if chunk.text:
                    if reasoning and not text and self.screen.is_terminal:
                        self.screen.write("\n", dim=True)
                    text.append(chunk.text)
                    self.screen.write(chunk.text)
                first = first or time.perf_counter() - started
                completion = chunk.completion or completion
        except KeyboardInterrupt:
            if not self.screen.is_terminal:
                raise
            self.screen.warn("stopped")
        finally:
            # Whatever happened, the model is free for the next question.
            close = getattr(stream, "close", None)
            if close is not None:
                close()
            self.screen.end()
        if completion is not None:
            self._count(completion, first, time.perf_counter() - started)
        if text or reasoning:
            self.session.add("assistant", "".join(text), "".join(reasoning))
        return bool(text or reasoning)

    def _count(self, completion: Any, first: float, whole: float) -> None:
        usage = completion.usage
        self.used = usage.total_tokens
        self.answers += 1
        self.generated += usage.completion_tokens
        self.rate = usage.completion_tokens / max(whole - first, 1e-9) if usage.completion_tokens > 1 else 0.0
        self.last = {
            "prompt tokens": usage.prompt_tokens,
            "of these reused": usage.cached_tokens,
            "answer tokens": usage.completion_tokens,
            "seconds to the first": round(first, 3),
            "seconds in all": round(whole, 3),
            "tokens per second": round(self.rate, 1),
        }

    def _guarded(self, function: Any, *arguments: Any) -> None:
        """Call it; at a terminal an error is told and the conversation goes on."""
        try:
            function(*arguments)
        except PyllmError as error:
            if not self.screen.is_terminal:
                raise
            self.screen.warn(f"error: {error.message}")
        except KeyboardInterrupt:
            if not self.screen.is_terminal:
                raise
            self.screen.warn("stopped")

    def status(self) -> str:
        """The status line."""
        parts = [self.model]
        if self.name is not None:
            parts.append(self.name)
        parts.append(f"{self.used}/{self.llm.context.n_ctx_seq} tokens")
        if self.rate:
            parts.append(f"{self.rate:.1f} tokens/s")
        return " · ".join(parts)

    def _greet(self) -> None:
        self.screen.show(f"{self.model}: /help shows the commands, Ctrl-C stops an answer, Ctrl-D ends")
        if self.session.n_said:
            self.screen.show(f"going on with {self.name}: {self.session.n_said} messages")
