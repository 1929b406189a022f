"""Many steps at once: texts that nobody in Python looks at go on without the GIL, until something happens to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from pyllm.core.context import Context
from pyllm.core.round import Flag, Round
from pyllm.errors import PyllmError

if TYPE_CHECKING:
    from pyllm.engine.channel import Post, Reader
    from pyllm.engine.job import Job
    from pyllm.engine.texts import Text

# After so long the engine looks up, so that its counts are not older.
_MS = 100.0


class Rounds:
    """Computes the same texts again and again.

    Args:
        context: Where.
        called: Set when somebody wants something of the engine; it ends the steps.
    """

    def __init__(self, context: Context, called: Flag) -> None:
        self._context, self._called = context, called
        self._round: Round | None = None
        self._posts: list[Post] = []
        self._refused = False

    def begin(self, texts: Sequence[Text], jobs: Mapping[Text, Job]) -> bool:
        """These texts are the next ones, and stay the same until :meth:`end`; whether they can be computed here.

        Args:
            texts: The texts.
            jobs: The requests that they belong to.
        """
        if self._round is not None or self._refused:
            return not self._refused
        posts: dict[Post, list[Reader]] = {}
        for text in texts:
            job = jobs[text]
            post = None if job.channel is None else job.channel.post
            if text.watched or (job.streamed and (post is None or post.bell is None)):
                self._refused = True
                return False
            if job.streamed and post is not None:
                posts.setdefault(post, []).append((job.read, text))
        for post, heard in posts.items():
            post.look_after(self, heard)
        self._posts = list(posts)
        ordered = sorted(texts, key=lambda text: text.seq)
        try:
            self._round = Round(
                self._context,
                [text.row for text in ordered],
                [text.seq for text in ordered],
                [text.task.n_computed for text in ordered],
                [text.limit for text in ordered],
                stop=self._called,
                bells=[cast("int", post.bell) for post in posts],
            )
        except PyllmError:
            # Two samplers are members of one chain, say.
            self.refuse()
        return not self._refused

    def run(self, most: int) -> None:
        """Compute up to so many steps."""
        assert self._round is not None
        self._round.run(most, _MS)

    @property
    def n_steps(self) -> int:
        """How many steps the last :meth:`run` has computed, also where it has failed."""
        assert self._round is not None
        return self._round.n_steps

    def refuse(self) -> None:
        """These texts cannot be computed here, until :meth:`end`."""
        self.end()
        self._refused = True

    def end(self) -> None:
        """Other texts are the next ones."""
        self._round, self._refused = None, False
        for post in self._posts:
            post.look_after(self, ())
        self._posts = []
