"""A chat completion: a completion of the prompt that messages make, whose text is read as messages again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyllm.chat.messages import Messages
from pyllm.chat.reading import Reading
from pyllm.chat.request import ChatRequest
from pyllm.chat.types import ChatChunk, ChatCompletion
from pyllm.completion.session import CompletionSession
from pyllm.conversation.fit import told_messages

if TYPE_CHECKING:
    from pyllm.completion.host import CompletionHost


class ChatSession:
    """One call of a Llama. ``with`` it the Llama is held.

    Args:
        llama: The Llama.
        messages: The chat so far.
        arguments: See :meth:`pyllm.Llama.create_chat_completion`.
        streamed: Whether it is read piece by piece.
    """

    def __init__(
        self, llama: CompletionHost, messages: Messages, arguments: dict[str, Any], *, streamed: bool = False
    ) -> None:
        self.request = ChatRequest(llama, told_messages(llama, messages, arguments), arguments)
        self.session = CompletionSession(llama, self.request.ids, self.request.completion_arguments, streamed=streamed)
        self.reading = Reading(self.request)

    def __enter__(self) -> ChatSession:
        self.session.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.session.__exit__(*exc_info)

    def check_thread(self) -> None:
        """See :meth:`pyllm.completion.session.CompletionSession.check_thread`."""
        self.session.check_thread()

    def abort(self) -> None:
        """End it as soon as possible."""
        self.session.abort()

    def finish(self) -> ChatCompletion:
        """Generate all of it."""
        return self.reading.completion(self.session.finish())

    def chunks(self) -> Iterator[ChatChunk]:
        """Pieces of the answers as they become final; the last chunk has the completion."""
        for chunk in self.session.chunks():
            read = self.reading.chunk(chunk)
            if read is not None:
                yield read
