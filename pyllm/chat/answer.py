"""An answer that grows: its text is read again and again, and what is new in the message goes on as deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pyllm.chat.types import ChatFinishReason, Delta, Message, ToolCall, ToolCallDelta, ToolFunction
from pyllm.errors import ChatParseError
from pyllm.types import FinishReason

# The parser has no memory: it reads the text from its start. It runs again when the text has grown by one part in so
# many, so that a character costs as much at the end of a long answer as at its start.
_SHARE = 1024


class Reader(Protocol):
    """Finds the message in the text of an answer."""

    @property
    def markers(self) -> Sequence[str]:
        """Texts that begin something else than content, such as "<tool_call>"."""

    @property
    def most_calls(self) -> int | None:
        """Calls that an answer may have at most, or None."""

    @property
    def given(self) -> dict[str, Any]:
        """What the prompt has of the message already, and what does not belong to the answer therefore."""

    def read(self, text: str, *, partial: bool, ids: list[str]) -> dict[str, Any]:
        """The message as a dict; `ids` are those of its calls, kept for the next time."""


class Answer:
    """The message of one choice.

    Args:
        reader: Finds it in the text.
        text: How the text begins.
    """

    def __init__(self, reader: Reader, text: str = "") -> None:
        self.reader = reader
        self._ids: list[str] = []
        self._pieces: list[str] = [text]
        self._size, self._read_size = len(text), 0
        self._content = self._reasoning = ""
        self._calls: list[ToolCall] = []
        self._announced = 0
        self._last: dict[str, Any] = {}

    def add(self, text: str) -> Delta:
        """Add text of the model, and give what is new in the message; that may be nothing yet."""
        self._pieces.append(text)
        self._size += len(text)
        if not text or self._size - self._read_size < max(1, self._size // _SHARE):
            return Delta()
        self._read_size = self._size
        return self._advance(self._message(self._read(partial=True)), final=False)

    def finish(self, reason: FinishReason) -> tuple[Message, ChatFinishReason, Delta]:
        """The message when there is no more text, why it ended, and what :meth:`add` has not given yet."""
        message = self._message(self._final(complete=reason == "stop"))
        delta = self._advance(message, final=True)
        calls = reason == "stop" and bool(message.tool_calls)
        return message, "tool_calls" if calls else reason, delta

    @property
    def text(self) -> str:
        """The text as the model wrote it."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    # ---- reading

    def _read(self, *, partial: bool) -> dict[str, Any]:
        found = self.reader.read(self.text, partial=partial, ids=self._ids)
        if _is_empty(found):
            # A place at which the parser is at a loss for a moment: what it knew before still holds.
            return self._last or found
        self._last = found
        return found

    def _final(self, *, complete: bool) -> dict[str, Any]:
        text = self.text
        found: dict[str, Any] = {}
        if complete:
            try:
                found = self.reader.read(text, partial=False, ids=self._ids)
            except ChatParseError:
                pass
        if _is_empty(found):
            found = self.reader.read(text, partial=True, ids=self._ids)
        if _is_empty(found) and text:
            found = self._salvaged(text)
        return self._with_tail(found, text)

    def _salvaged(self, text: str) -> dict[str, Any]:
        """What can be read of a text that fits no format; the rest of it is content."""
        low, high, found = 0, len(text), {}
        while low < high:
            middle = (low + high + 1) // 2
            part = self.reader.read(text[:middle], partial=True, ids=self._ids)
            if _is_empty(part):
                high = middle - 1
            else:
                low, found = middle, part
        if not (found.get("tool_calls") or found.get("reasoning_content")):
            return {"role": "assistant", "content": text}
        return {**found, "content": (found.get("content") or "") + text[low:]}

    def _with_tail(self, found: dict[str, Any], text: str) -> dict[str, Any]:
        """Text at the end that looked like the beginning of a marker, and is content because there is no more."""
        content = found.get("content") or ""
        at = text.rfind(content) + len(content) if content and content in text else -1
        tail = text[at:] if at >= 0 else ""
        if not tail or found.get("tool_calls"):
            return found
        begins = any(marker.startswith(tail) and marker != tail for marker in self.reader.markers)
        return {**found, "content": content + tail} if begins else found

    # ---- what is new

    def _message(self, found: dict[str, Any]) -> Message:
        calls = [
            ToolCall(call["id"], ToolFunction(call["function"]["name"], call["function"]["arguments"]))
            for call in found.get("tool_calls") or ()
        ][: self.reader.most_calls]
        content = _without(found.get("content") or "", self.reader.given.get("content"))
        reasoning = _without(found.get("reasoning_content") or "", self.reader.given.get("reasoning_content"))
        return Message(
            "assistant",
            None if calls and not content else content,
            reasoning_content=reasoning or None,
            tool_calls=tuple(calls),
        )

    def _advance(self, message: Message, *, final: bool) -> Delta:
        more_reasoning, self._reasoning = _more(self._reasoning, message.reasoning_content or "")
        more_content, self._content = _more(self._content, message.text)
        return Delta(None, more_content, more_reasoning, tuple(self._call_deltas(message.tool_calls, final)))

    def _call_deltas(self, calls: tuple[ToolCall, ...], final: bool) -> list[ToolCallDelta]:
        deltas = []
        for i, call in enumerate(calls):
            known = i < self._announced
            # A name may still grow until arguments, or another call, follow.
            if not known and not (call.function.arguments or final or i + 1 < len(calls)):
                break
            before = self._calls[i].function.arguments if known else ""
            more, arguments = _more(before, call.function.arguments)
            kept = ToolCall(call.id, ToolFunction(call.name, arguments))
            if known:
                self._calls[i] = kept
                if more:
                    deltas.append(ToolCallDelta(i, arguments=more))
            else:
                self._announced += 1
                self._calls.append(kept)
                deltas.append(ToolCallDelta(i, call.id, call.name, more))
        return deltas


def _is_empty(found: dict[str, Any]) -> bool:
    return not (found.get("content") or found.get("reasoning_content") or found.get("tool_calls"))


def _more(before: str, now: str) -> tuple[str, str]:
    """What came behind, and all; what was given already cannot be taken back."""
    return (now[len(before) :], now) if now.startswith(before) else ("", before)


def _without(text: str, given: str | None) -> str:
    return text.removeprefix(given) if given else text
