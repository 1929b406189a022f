"""What the KV cache of a Llama holds, so that the beginning of the next prompt need not be computed again."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.checkpoints import Checkpoint, Checkpoints, restore
from pyllm.completion.kept import KeptText, KeptTexts
from pyllm.core.context import Context
from pyllm.core.generation import Generation
from pyllm.errors import NoKVSlotError, StateError

#: Bytes of the host's memory for texts that are not in the context.
HOST_BYTES = 2**30

#: The conversation that calls belong to which are made now; None: to none.
OWNER: ContextVar[str | None] = ContextVar("pyllm conversation", default=None)


class PromptCache:
    """Knows the tokens in sequence 0 of a context, where calls compute, and keeps texts of conversations beside it.

    All methods are called by whoever holds the Llama.

    Args:
        context: The context.
        host_bytes: Bytes of the host's memory that texts may take for which the context has no sequence.
    """

    def __init__(self, context: Context, host_bytes: int = HOST_BYTES) -> None:
        self.context = context
        self.kept = KeptTexts(context, host_bytes)
        self.active: KeptText | None = None  # what sequence 0 holds, between two calls
        self._skip = False
        self._decode_id = context.decode_id
        # Of the call that is running:
        self._saves = False
        self._owner: str | None = None
        self._branch = 0
        self._checkpoints = Checkpoints()

    # ---- what a call does: reuse, prefill, remember

    def forget(self) -> None:
        """Reuse nothing the next time."""
        self._skip = True

    def reuse(self, ids: NDArray[np.int32], owner: str | None = None) -> int:
        """Bring into sequence 0 what the memory has in common with a prompt, or nothing.

        What stands there for another owner is kept for it.

        Args:
            ids: The prompt.
            owner: The conversation it belongs to.

        Returns:
            int: How many tokens of the prompt need not be computed; always less than all of them.
        """
        self._check()
        skip, self._skip = self._skip, False
        before, self.active = self.active, None
        self._owner, self._branch, self._checkpoints = owner, 0, Checkpoints()
        source, n = (None, 0) if skip else self._best(ids, owner, before)
        if before is not None and before.owner != owner:
            self.kept.park(before)
        memory = self.context.memory
        if source is not before:
            memory.rm(0)
            if source is not None and not self.kept.restore(source):
                source, n = None, 0
        if source is not None:
            if self._cut(source, n):
                self._checkpoints = source.checkpoints.until(n)
                self.kept.touch(source.owner)
            else:
                source, n = None, 0
        # What the owner had is in sequence 0 now, as far as it is needed; other sequences may be somebody else's.
        self.kept.drop(owner)
        if n == 0 and not any(text.seq_id is not None for text in self.kept):
            memory.clear(data=False)
        else:
            self._tidy(n)
        self._saves = not skip and self._needs_checkpoints
        return n

    def prefill(self, generation: Generation, ids: NDArray[np.int32], start: int) -> None:
        """Compute a prompt from `start`, and take checkpoints where the next prompt may begin to differ.

        Raises:
            NoKVSlotError: It does not fit, though nothing else is kept in the context any more.
        """
        ends = [len(ids)]
        if self._saves:
            if start > 0:
                self._take(start)
            ends = sorted({end for end in (self._branch, len(ids) - 1) if start < end < len(ids)}) + ends
        for end in ends:
            while generation.n_past < end:
                try:
                    generation.prefill(ids[generation.n_past : end])
                except NoKVSlotError:
                    if not self.make_room():
                        raise
            if end < len(ids):
                self._take(end)

    def remember(self, tokens: NDArray[np.int32]) -> None:
        """Note what was computed into sequence 0.

        Args:
            tokens: Prompt and generated tokens, of which the last ones need not have been decoded.
        """
        self._skip = False
        self.settle()
        # A recurrent state may be that of half a micro-batch after a decode that failed.
        if self.context.n_outputs > 0 or not self._is_recurrent:
            self._note(tokens, self._owner, self._checkpoints)

    def settle(self) -> None:
        """The call is over, whether or not it came to :meth:`remember`: what was computed until now was its doing."""
        if not self.context.closed:
            self._decode_id = self.context.decode_id

    def make_room(self) -> bool:
        """Move a text from the context to the host; False when sequence 0 is all that is left."""
        return self.kept.make_room()

    def vacate(self) -> None:
        """Move all texts to the host: the call needs the other sequences."""
        while self.kept.make_room():
            pass

    # ---- what conversations do

    def find(self, owner: str | None) -> KeptText | None:
        """What is kept of an owner's text."""
        if self.active is not None and self.active.owner == owner:
            return self.active
        return self.kept.get(owner)

    def drop(self, owner: str | None) -> None:
        """Free what an owner has."""
        self._check()
        self.kept.drop(owner)
        if self.active is not None and self.active.owner == owner:
            self.active = None
            self.context.memory.rm(0)
        self._decode_id = self.context.decode_id

    def state_of(self, text: KeptText) -> bytes:
        """The KV cache of a kept text as :meth:`pyllm.core.state.State.save` gives it."""
        if text.data is not None:
            return text.data
        return self.context.state.save(0 if text.seq_id is None else text.seq_id)

    def believed(self, owner: str | None) -> KeptText | None:
        """As :meth:`find`, when nobody else has changed it."""
        self._check()
        text = self.find(owner)
        return text if text is not None and text.settings == self.settings() else None

    def adopt(self, owner: str | None, tokens: NDArray[np.int32], data: bytes) -> None:
        """Make a saved state the text of an owner.

        Raises:
            StateError: It does not fit the context. What others have is there as before.
        """
        self._check()
        if self.active is not None and self.active.owner != owner:
            self.kept.park(self.active)
        self.active, self._skip = None, False
        self.kept.drop(owner)
        self._tidy(0)
        try:
            while True:
                try:
                    self.context.state.load(data, 0)
                    break
                except StateError:
                    # There may be no room for it: what is kept in the context can go.
                    if not self.make_room():
                        raise
            self._note(tokens, owner, Checkpoints())
            if self.active is None or len(self.active.tokens) != len(tokens):
                self.active = None
                raise StateError(f"the state does not end where its {len(tokens)} tokens do")
        finally:
            self.settle()

    def close(self) -> None:
        """Let go of everything."""
        self.kept.clear()
        self.active = None

    def settings(self) -> Any:
        """What a KV cache depends on beside its tokens."""
        context = self.context
        # A control vector, or a capture, which may change activations, cannot be compared.
        if context.control_vector or context.capture:
            return object()
        return context.adapters, context.causal_attn

    def problems(self) -> list[str]:
        """Contradictions between what is kept and what the memory holds, as sentences."""
        active = 0 if self.active is None else self.active.host_bytes
        found = self.kept.problems(active)
        if self.context.closed or self.context.decode_id != self._decode_id:
            return found  # other decodes have used the context: nothing there is believed
        memory = self.context.memory
        for text in (self.active, *self.kept):
            if text is not None and text.data is None:
                n = memory.pos_max(text.seq_id or 0) + 1
                if n != len(text.tokens):
                    found.append(f"sequence {text.seq_id or 0} has {n} tokens, and {len(text.tokens)} are known")
        for seq_id in {*range(1, self.context.n_seq_max)} - {text.seq_id for text in self.kept}:
            if memory.pos_max(seq_id) >= 0:
                found.append(f"sequence {seq_id} has {memory.pos_max(seq_id) + 1} tokens, and belongs to no text")
        return found

    # ---- inside

    def _take(self, n: int) -> None:
        self._checkpoints = self._checkpoints.taken(self.context, n, self.kept.limit)

    def _note(self, tokens: NDArray[np.int32], owner: str | None, checkpoints: Checkpoints) -> None:
        self.active = None
        if self.context.closed:
            return
        memory = self.context.memory
        n = memory.pos_max(0) + 1
        if 0 < n <= len(tokens):
            self.active = KeptText(
                owner,
                tokens[:n].copy(),
                self.settings(),
                checkpoints.until(n),
            )
            self.active.ends = self._ends(self.active)
            self.kept.trim(self.active.host_bytes)

    def _check(self) -> None:
        """Believe nothing of the context any more when somebody else has computed or changed something there."""
        memory = self.context.memory
        texts = [text for text in (self.active, *self.kept) if text is not None and text.data is None]
        untouched = self.context.decode_id == self._decode_id and all(self._ends(text) == text.ends for text in texts)
        if not untouched:
            self.active = None
            self.kept.lose_sequences()
            memory.clear(data=False)

    def _ends(self, text: KeptText) -> tuple[int, int]:
        """First and last position of a text in the memory. What fell out of a window may go without its doing."""
        memory, seq_id = self.context.memory, text.seq_id or 0
        return 0 if self.context.model.n_swa else memory.pos_min(seq_id), memory.pos_max(seq_id)

    def _tidy(self, n: int) -> None:
        """Empty the sequences that hold nothing of ours; sequence 0 too when nothing of it is reused."""
        memory = self.context.memory
        ours = {text.seq_id for text in self.kept}
        for seq_id in range(0 if n == 0 else 1, self.context.n_seq_max):
            if seq_id not in ours and memory.pos_max(seq_id) >= 0:
                memory.rm(seq_id)

    def _best(self, ids: NDArray[np.int32], owner: str | None, active: KeptText | None) -> tuple[KeptText | None, int]:
        """The text with the most to reuse for a prompt, and how many tokens that is."""
        settings = self.settings()
        best: tuple[KeptText | None, int] = (None, 0)
        # Of equal ones the first counts: it is there already, or it is the owner's own.
        texts = [active, self.kept.get(owner), *self.kept]
        for text in texts:
            if text is None or text.settings != settings:
                continue
            common = common_length(ids, text.tokens)
            self._branch = max(self._branch, common)
            n = self._usable(text, common)
            if n > best[1]:
                best = (text, n)
        return best

    def _usable(self, text: KeptText, common: int) -> int:
        """How many of the first `common` tokens of a text its memory can be cut back to."""
        if common in (0, len(text.tokens)) or not self._needs_checkpoints or self._reaches_back(text, common):
            return common
        checkpoint = self._checkpoint(text, common)
        return 0 if checkpoint is None else checkpoint.n

    def _reaches_back(self, text: KeptText, n: int) -> bool:
        """Whether the memory of a text can be cut back to `n` tokens without a checkpoint."""
        if self._is_recurrent:
            # Some snapshots of the last tokens, where the context was made with them.
            return text.data is None and len(text.tokens) - n <= self.context.n_rs_seq
        # A saved state has no more than the window of its end.
        if text.data is not None:
            return len(text.tokens) <= self.context.model.n_swa
        return self._window_reaches_back(text.seq_id or 0, n)

    def _window_reaches_back(self, seq_id: int, n: int) -> bool:
        """Whether a sequence still has all that the token behind its first `n` looks at.

        Tokens that fell out of a sliding window are gone.
        """
        return self.context.memory.pos_min(seq_id) <= max(0, n - self.context.model.n_swa - 1)

    @staticmethod
    def _checkpoint(text: KeptText, n: int) -> Checkpoint | None:
        checkpoint = text.checkpoints.best(n)
        return checkpoint if checkpoint is not None and checkpoint.n > 0 else None

    def _cut(self, text: KeptText, n: int) -> bool:
        """Cut sequence 0, which holds a text, back to its first `n` tokens."""
        memory = self.context.memory
        if n == len(text.tokens):
            return memory.pos_max(0) == n - 1
        # Where a copy of the text is kept by now makes no difference to what sequence 0 has.
        reaches = self._reaches_back(text, n) if self._is_recurrent else self._window_reaches_back(0, n)
        if (reaches or not self._needs_checkpoints) and memory.rm(0, n) and memory.pos_max(0) == n - 1:
            return True
        checkpoint = self._checkpoint(text, n)
        return checkpoint is not None and checkpoint.n == n and restore(self.context, checkpoint)

    @property
    def _is_recurrent(self) -> bool:
        return self.context.model.is_recurrent or self.context.model.is_hybrid

    @property
    def _needs_checkpoints(self) -> bool:
        return self._is_recurrent or self.context.model.n_swa > 0


def common_length(ids: NDArray[np.int32], tokens: NDArray[np.int32]) -> int:
    """How many tokens a prompt begins with that a text begins with too; the prompt's last one does not count."""
    n = min(len(ids) - 1, len(tokens))
    different = np.flatnonzero(ids[:n] != tokens[:n])
    return int(different[0]) if len(different) else max(n, 0)
