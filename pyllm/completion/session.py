"""A completion from the moment the Llama is held for it until it is let go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyllm.completion.batched import BatchedRun
from pyllm.completion.beams import BeamRun
from pyllm.completion.cache import OWNER
from pyllm.completion.host import Call
from pyllm.completion.outputs import FinishedSequence, as_chunk, as_completion
from pyllm.completion.request import CompletionRequest
from pyllm.completion.single import SingleRun
from pyllm.errors import ClosedError, InvalidArgumentError
from pyllm.types import Chunk, Completion, Speculation

if TYPE_CHECKING:
    from pyllm.completion.host import CompletionHost, Tokens


class CompletionSession:
    """One call of a Llama. ``with`` it the Llama is held.

    Args:
        llama: The Llama.
        prompt: Text or token ids.
        arguments: See :meth:`pyllm.Llama.create_completion`.
        streamed: Whether it is read delta by delta.
    """

    def __init__(
        self, llama: CompletionHost, prompt: str | bytes | Tokens, arguments: dict[str, Any], *, streamed: bool = False
    ) -> None:
        self.llama = llama
        self.request = CompletionRequest(llama, prompt, arguments)
        if streamed and self.request.best_of > self.request.n:
            raise InvalidArgumentError(
                f"best_of={self.request.best_of} with n={self.request.n} chooses when all texts are complete; "
                "it cannot be streamed",
                param="best_of",
            )
        if streamed and self.request.beams is not None:
            raise InvalidArgumentError(
                f"num_beams={self.request.beams.num_beams}: a beam search knows its texts when it is complete; "
                "it cannot be streamed",
                param="num_beams",
            )
        self.call = Call(OWNER.get())
        self.runs: list[SingleRun] = []

    def __enter__(self) -> CompletionSession:
        self.llama._calls.acquire(self.call)
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if self.runs and not self.runs[-1].results:
                # Of a Llama that was closed meanwhile there is nothing to note.
                with contextlib.suppress(ClosedError):
                    self.runs[-1].remember()
        finally:
            # They know the session: it would hold itself, and the Llama, until the garbage is collected.
            self.runs = []
            self.llama._cache.settle()
            self.llama._calls.release()

    def check_thread(self) -> None:
        """Refuse to be waited for by a thread that has an open stream of the Llama itself.

        Raises:
            StreamOpenError: It has.
        """
        self.llama._calls.refuse_open_stream()

    def abort(self) -> None:
        """End it as soon as possible; takes no lock that is held for long."""
        self.llama._calls.abort(self.call)

    def finish(self) -> Completion:
        """Generate all of it."""
        if self.request.beams is not None:
            return BeamRun(self.llama, self.request, self.call).finish()
        if BatchedRun.suits(self.request, self.llama.context):
            return BatchedRun(self.llama, self.request, self.call).finish()
        return self._completion([run.finish() for run in self._single_runs()])

    def tokens(self) -> Iterator[int]:
        """The ids of the first text's tokens, one after the other."""
        self.runs.append(SingleRun(self.llama, self.request, self.call))
        yield from self.runs[0].tokens()

    def chunks(self) -> Iterator[Chunk]:
        """Text as it becomes final; the last chunk has the completion."""
        request = self.request
        if BatchedRun.suits(request, self.llama.context):
            yield from BatchedRun(self.llama, request, self.call).chunks()
            return
        for run in self._single_runs():
            for delta in run.deltas():
                completion = None
                if delta.finish_reason is not None and run.index == request.n - 1:
                    completion = self._completion([one for each in self.runs for one in each.results])
                yield as_chunk(request, delta, completion)

    def _single_runs(self) -> Iterator[SingleRun]:
        for index in range(self.request.best_of):
            self.runs.append(SingleRun(self.llama, self.request, self.call, index))
            yield self.runs[-1]

    def _completion(self, texts: list[FinishedSequence]) -> Completion:
        parts = self.runs
        return as_completion(
            self.request,
            texts,
            parts[0].cached,
            sum(part.prompt_ms for part in parts),
            sum(part.generation_ms for part in parts),
            _total([run.speculation for run in self.runs]),
        )


def _total(parts: list[Speculation | None]) -> Speculation | None:
    given = [part for part in parts if part is not None]
    return sum(given[1:], given[0]) if given else None
