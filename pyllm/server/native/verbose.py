"""What OpenAI's answers say besides when ``verbose: true`` is asked for: all that llama-server's own would say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyllm.engine import Request
from pyllm.server.native.answer import NativeAnswer
from pyllm.server.native.protocol import NativeAsk
from pyllm.server.sampling import Sizes
from pyllm.server.state import ServerState
from pyllm.types import Completion


def verbose(state: ServerState, job: Request, completion: Completion, *, wanted: bool) -> dict[str, Any]:
    """The field ``__verbose`` of an answer: prompt, text and settings as they were, of the first of its texts.

    Args:
        state: The server's.
        job: The request.
        completion: What came of it.
        wanted: Whether the request asks for it; where neither it nor the settings do, there is nothing.
    """
    if not (wanted or state.settings.verbose):
        return {}
    request, vocab = job.completion_request, state.model.vocab
    sizes = Sizes(len(request.ids) + request.room, len(vocab))
    ask, most = NativeAsk({"return_tokens": True}, state.settings, sizes, vocab), request.max_tokens
    ask.n_predict, ask.arguments["max_tokens"] = -1 if most is None else most, most
    answer = NativeAnswer(0, state.alias, ask, None)
    return {"__verbose": answer.whole(job, replace(completion, choices=completion.choices[:1]))}
