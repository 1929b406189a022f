"""A completion from the moment the Llama is held for it until it is let go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyllm.completion.beams import BeamRun
from pyllm.completion.cache import OWNER
from pyllm.completion.parallel import ParallelRun
from pyllm.completion.pieces import Finished, Piece, as_chunk, as_completion
from pyllm.completion.request import CompletionRequest
from pyllm.completion.single import SingleRun
from pyllm.errors import ClosedError, InvalidArgumentError
from pyllm.types import Chunk, Completion, Speculation

if TYPE_CHECKING:
    from pyllm.llama import Llama, Tokens


class CompletionSession:
    """One call of a Llama. ``with`` it the Llama is held.

    Args:
        llama: The Llama.
        prompt: Text or token ids.
        arguments: See :meth:`pyllm.Llama.create_completion`.
        streamed: Whether it is read piece by piece.
    """

    def __init__(
        self, llama: Llama, prompt: str | bytes | Tokens, arguments: dict[str, Any], *, streamed: bool = False
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
        self.owner = OWNER.get()
        self.aborted = False
        self.runs: list[SingleRun] = []
        self.parallel: ParallelRun | BeamRun | None = None

    def __enter__(self) -> CompletionSession:
        self.llama._acquire(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if self.runs and not self.runs[-1].results:
                # Of a Llama that was closed meanwhile there is nothing to note.
                with contextlib.suppress(ClosedError):
                    self.runs[-1].remember()
        finally:
            # They know the session: it would hold itself, and the Llama, until the garbage is collected.
            self.runs, self.parallel = [], None
            self.llama._cache.settle()
            self.llama._release()

    def check_thread(self) -> None:
        """Refuse to be waited for by a thread that has an open stream of the Llama itself.

        Raises:
            StreamOpenError: It has.
        """
        self.llama._refuse_open_stream()

    def abort(self) -> None:
        """End it as soon as possible; takes no lock that is held for long."""
        self.llama._abort(self)

    def finish(self) -> Completion:
        """Generate all of it."""
        if self.request.beams is not None or ParallelRun.suits(self):
            self.parallel = ParallelRun(self) if self.request.beams is None else BeamRun(self)
            return self._completion(self.parallel.finish())
        return self._completion([run.finish() for run in self._single_runs()])

    def tokens(self) -> Iterator[int]:
        """The ids of the first text's tokens, one after the other."""
        self.runs.append(SingleRun(self))
        yield from self.runs[0].tokens()

    def chunks(self) -> Iterator[Chunk]:
        """Pieces of the texts as they become final; the last chunk has the completion."""
        request = self.request
        open_choices = request.n
        for piece in self._pieces():
            completion = None
            if piece.finish_reason is not None:
                open_choices -= 1
                if open_choices == 0:
                    completion = self._completion(self._finished())
            yield as_chunk(request, piece, completion)

    def _single_runs(self) -> Iterator[SingleRun]:
        for index in range(self.request.best_of):
            self.runs.append(SingleRun(self, index))
            yield self.runs[-1]

    def _pieces(self) -> Iterator[Piece]:
        if ParallelRun.suits(self):
            parallel = self.parallel = ParallelRun(self)
            yield from parallel.pieces()
            return
        for run in self._single_runs():
            yield from run.pieces()

    def _finished(self) -> list[Finished]:
        parts: list[Any] = [self.parallel] if self.parallel is not None else list(self.runs)
        return [one for part in parts for one in part.results]

    def _completion(self, texts: list[Finished]) -> Completion:
        parts: list[Any] = [self.parallel] if self.parallel is not None else list(self.runs)
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
