"""What the KV cache of a Llama holds, so that the beginning of the next prompt need not be computed again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.context import Context
from pyllm.core.outputs import Outputs
from pyllm.errors import PyllmError


class PromptCache:
    """Knows the tokens in sequence 0 of a context, for as long as nobody else decodes there.

    Args:
        context: The context.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.forget()

    def forget(self) -> None:
        """Reuse nothing the next time."""
        self._tokens: NDArray[np.int32] = np.empty(0, np.int32)
        self._outputs: Outputs | None = None
        self._settings: Any = None

    def remember(self, tokens: NDArray[np.int32]) -> None:
        """Note what was computed into sequence 0.

        Args:
            tokens: Prompt and generated tokens, of which the last ones need not have been decoded.
        """
        self.forget()
        try:
            self._outputs = self.context.logits
            n = self.context.memory.pos_max(0) + 1
        except PyllmError:
            return  # the last decode failed
        if 0 < n <= len(tokens):
            self._tokens = tokens[:n].copy()
            self._settings = self._current_settings()

    def reuse(self, ids: NDArray[np.int32]) -> int:
        """Cut the memory back to what it has in common with a prompt, or clear it.

        Returns:
            int: How many tokens of the prompt need not be computed; always less than all of them.
        """
        memory = self.context.memory
        n = self._common(ids)
        if n > 0 and self._cut(n):
            if self.context.n_seq_max > 1:
                memory.keep(0)
            return n
        memory.clear(data=False)
        return 0

    def _common(self, ids: NDArray[np.int32]) -> int:
        n = min(len(ids) - 1, len(self._tokens))
        if n <= 0 or not self._is_untouched():
            return 0
        different = np.flatnonzero(ids[:n] != self._tokens[:n])
        return int(different[0]) if len(different) else n

    def _cut(self, n: int) -> bool:
        memory = self.context.memory
        if n == len(self._tokens):
            return True
        # With a sliding window, tokens that fell out of it are gone: all that the next one looks at must be there.
        window = self.context.model.n_swa
        if window and memory.pos_min(0) > max(0, n - window - 1):
            return False
        # Recurrent memory holds the state after the last token only, and says that it cannot go back.
        return memory.rm(0, n) and memory.pos_max(0) == n - 1

    def _is_untouched(self) -> bool:
        """Whether the memory is as it was left: no decode or load since, and nothing that changes what is computed."""
        if self._outputs is None or self._settings != self._current_settings():
            return False
        try:
            np.asarray(self._outputs)
        except PyllmError:
            return False
        return self.context.memory.pos_max(0) == len(self._tokens) - 1

    def _current_settings(self) -> Any:
        context = self.context
        # A control vector, or a capture, which may change activations, cannot be compared.
        if context.control_vector or context.capture:
            return object()
        return context.adapters, context.causal_attn
