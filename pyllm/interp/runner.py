"""Interp: a model with its lid off."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.core.batch import Batch
from pyllm.core.context import Context
from pyllm.core.model import Model
from pyllm.errors import ContextError, InvalidArgumentError
from pyllm.interp.cache import ActivationCache
from pyllm.interp.names import HookPoint, Layout, Names
from pyllm.interp.passes import Hook, HookFunction, Passes
from pyllm.interp.values import Array
from pyllm.llama import Llama
from pyllm.params import ContextParams, field_names, unknown_argument

Ids = Sequence[int] | NDArray[np.integer[Any]]
Text = str | bytes | Ids


Hooks = Iterable[tuple[Names, HookFunction]]


class Interp:
    """A model whose activations can be read and changed.

    It has a context of its own, whose caches are float32 and which is empty before every text. Every token is an
    output, because the last layer computes only those. Threads may share it; they wait for each other.

    Args:
        model: As for :class:`pyllm.Llama`: an alias, a path or a Model; or a Llama, whose model it shares.
        n_ctx: Longest text in tokens.
        n_sequences: How many texts are computed at once where no hook and no attention pattern is asked for. What is
            computed does not depend on it, up to rounding.
        flash_attn: Fuse attention: faster, and without patterns and scores.
        n_ubatch: Most tokens that are computed at once; a longer text comes to a hook in parts. None: a whole text.
        **context: More arguments of :class:`pyllm.core.context.Context`.

    Raises:
        UnknownArgumentError: A keyword is no argument of Context.
        InvalidArgumentError: A size is out of range.
        ContextError: The model has an encoder and a decoder; use :class:`pyllm.core.capture.Capture`.

    Example:
        >>> lab = Interp("smollm2")
        >>> logits, cache = lab.run_with_cache("Hello", "blocks.*.hook_resid_post")
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model | Llama = "smollm2",
        *,
        n_ctx: int = 512,
        n_sequences: int = 1,
        flash_attn: bool = False,
        n_ubatch: int | None = None,
        **context: Any,
    ) -> None:
        self._owns_model = not isinstance(model, (Model, Llama))
        if isinstance(model, Llama):
            self.model = model.model
        elif isinstance(model, Model):
            self.model = model
        else:
            from pyllm import hub  # only here: a model that is loaded already needs none of it

            self.model = Model(hub.resolve(model))
        try:
            self.context = self._open(n_ctx, n_sequences, flash_attn, n_ubatch, context)
        except BaseException:
            if self._owns_model:
                self.model.close()
            raise
        self.vocab = self.model.vocab
        self.n_ctx = n_ctx
        self.flash_attn = flash_attn
        self._passes = Passes(self.context, self._layout)
        self._layouts: dict[int, Layout] = {}
        self._hooks: list[tuple[Names, HookFunction]] = []
        self._lock = threading.RLock()

    def _open(
        self, n_ctx: int, n_sequences: int, flash_attn: bool, n_ubatch: int | None, arguments: dict[str, Any]
    ) -> Context:
        if self.model.has_encoder and self.model.has_decoder:
            raise ContextError(
                "this model has an encoder and a decoder, two graphs with the same names; "
                "use pyllm.core.capture.Capture on a context of your own"
            )
        for name in arguments:
            if name not in (known := field_names(ContextParams)) or name in ("n_batch", "n_seq_max"):
                raise unknown_argument(name, known, "Interp")
        if not _is_int(n_sequences) or n_sequences < 1:
            raise InvalidArgumentError(f"n_sequences must be at least 1, not {n_sequences}")
        if not _is_int(n_ctx) or n_ctx < 3:
            raise InvalidArgumentError(f"n_ctx must be an integer of at least 3, not {n_ctx}")
        n_ubatch = n_ctx if n_ubatch is None else n_ubatch
        if n_ctx < n_ubatch or n_ubatch < max(3, n_sequences):
            raise InvalidArgumentError(
                f"n_ubatch must be at least {max(3, n_sequences)} and at most n_ctx={n_ctx}, not {n_ubatch}"
            )
        given: dict[str, Any] = {
            "n_ctx": n_ctx * n_sequences,
            "n_batch": n_ctx,
            "n_ubatch": n_ubatch,
            "n_seq_max": n_sequences,
            "flash_attn_type": "enabled" if flash_attn else "disabled",
            "type_k": "f32",
            "type_v": "f32",
            # In a full-size cache the cell of a key is its position.
            "swa_full": True,
            "capture": True,
        }
        made = Context(self.model, **(given | arguments))
        if made.has_memory:
            return made
        # An encoder: what it gives are embeddings.
        made.close()
        return Context(self.model, **(given | {"embeddings": True, "pooling_type": "none"} | arguments))

    def close(self) -> None:
        """Free the context, and the model if it was loaded here. Closing twice is allowed."""
        self.context.close()
        if self._owns_model:
            self.model.close()

    def __enter__(self) -> Interp:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Interp of {self.model!r}>"

    # ---- what there is

    def names(self) -> list[str]:
        """The names of TransformerLens that this model has, in the order of computation."""
        return list(self._layout(3).points)

    def tensors(self) -> dict[str, HookPoint]:
        """Every tensor of the graph by llama.cpp's name. The n-th of several of one name, save the last, is name#n."""
        return dict(self._layout(3).raw)

    def point(self, name: str) -> HookPoint:
        """What is known of a name: its shape, its layer, the tensor behind it.

        Raises:
            NoActivationError: There is none; the message says why, or names the nearest ones.
        """
        return self._layout(3).find(name)

    def _layout(self, n_tokens: int) -> Layout:
        """The layout of a graph. Some models compute a single token in another way than many."""
        n = 1 if n_tokens == 1 or self.context.n_ubatch < 3 else 3
        if n not in self._layouts:
            nodes = {count: self._nodes(count) for count in {n, 3 if n == 1 else 2}}
            others = nodes[3 if n == 1 else 2]
            self._layouts[n] = Layout(nodes[n], others, n, self.model.n_layer, self.flash_attn)
        return self._layouts[n]

    def _nodes(self, n_tokens: int) -> list[Any]:
        self._passes.clear()
        ids = np.zeros(n_tokens, np.int32)
        try:
            return self._passes.capture.nodes(Batch.from_arrays(ids, pos=np.arange(n_tokens), seq_ids=0, outputs="all"))
        finally:
            self._passes.clear()

    # ---- running

    def tokenize(self, text: Text) -> NDArray[np.int32]:
        """The tokens of a text as they are computed: special tokens added, control tokens in the text counting.

        Raises:
            InvalidArgumentError: There are none, or more than n_ctx.
        """
        ids: NDArray[np.int32] = (
            self.vocab.tokenize(text, add_special=True, parse_special=True)
            if isinstance(text, (str, bytes))
            else self.vocab.as_tokens(text)
        )
        if not 1 <= len(ids) <= self.n_ctx:
            raise InvalidArgumentError(f"a text has {len(ids)} tokens; this Interp takes from 1 to n_ctx={self.n_ctx}")
        return ids

    def run(self, text: Any) -> Any:
        """The logits of every token of a text: float32, shape (pos, n_vocab); of an embedding model its embeddings.

        Args:
            text: Text, token ids, or a list of these; of a list a list comes back.
        """
        return self._one_or_many(text, lambda texts: [logits for logits, _ in self._run(texts, None, ())])

    def run_with_cache(
        self,
        text: Any,
        names_filter: Names = None,
        *,
        layers: Iterable[int] | int | None = None,
        positions: int | slice | Sequence[int] | None = None,
        fwd_hooks: Hooks = (),
    ) -> Any:
        """Compute a text, and keep activations.

        Args:
            text: Text or token ids; or a list of these.
            names_filter: Which activations: a name, a glob, a list of these, or a function from a name to a bool;
                None keeps all of :meth:`names`. Names are TransformerLens' or llama.cpp's.
            layers: Only those of these layers; negative numbers count from the end.
            positions: Only the rows of these positions: an int, a slice or several; negative ones count from the end.
            fwd_hooks: As for :meth:`run_with_hooks`; activations are kept as the hooks left them.

        Returns:
            tuple: The logits, float32 of shape (pos, n_vocab), and an :class:`ActivationCache`, both of their own
            memory. There is no batch dimension: for a list of texts there is a list of such pairs.

        Raises:
            NoActivationError: There is no such activation; the message says why, or names the nearest ones.
        """
        selection = _Selection(names_filter, layers, positions)
        return self._one_or_many(text, lambda texts: self._run(texts, selection, fwd_hooks))

    def capture(
        self,
        text: Any,
        names: Names = None,
        *,
        layers: Iterable[int] | int | None = None,
        positions: int | slice | Sequence[int] | None = None,
    ) -> Any:
        """The activations alone: as :meth:`run_with_cache`, without a copy of the logits.

        Where only inputs of layers are asked for (``hook_resid_pre``, or ``hook_resid_post`` of all layers but the
        last) and no hook is there, llama.cpp hands them out without a stop at each layer, on architectures that do.

        Returns:
            ActivationCache: Or a list of them for a list of texts.
        """
        selection = _Selection(names, layers, positions, logits=False)
        return self._one_or_many(text, lambda texts: [cache for _, cache in self._run(texts, selection, ())])

    def run_with_hooks(self, text: Any, fwd_hooks: Hooks = ()) -> Any:
        """Compute a text while functions read, replace or edit activations.

        Args:
            text: Text or token ids; or a list of these, which are then computed one by one.
            fwd_hooks: Pairs of names, as in :meth:`run_with_cache`, and a function ``f(values, hook)``. It gets the
                values as float32 and a :class:`Hook`; it may edit them in place, or return others of the same
                shape, and the model goes on with those. What it raises ends the run and is raised from here.

        Returns:
            numpy.ndarray: The logits, as of :meth:`run`.

        A hook may not use this Interp: it is busy computing.
        """
        return self._one_or_many(text, lambda texts: [logits for logits, _ in self._run(texts, None, fwd_hooks)])

    @contextmanager
    def hooks(self, fwd_hooks: Hooks) -> Iterator[Interp]:
        """Have hooks in every run inside a ``with`` block; see :meth:`run_with_hooks`."""
        added = _pairs(fwd_hooks)
        for names, _ in added:
            self._layout(3).select(names)
        before = self._hooks
        self._hooks = [*before, *added]
        try:
            yield self
        finally:
            self._hooks = before

    def _one_or_many(self, text: Any, run: Callable[[list[NDArray[np.int32]]], list[Any]]) -> Any:
        known = isinstance(text, (str, bytes, np.ndarray, Sequence))
        if not known:
            raise InvalidArgumentError(f"a text, token ids or a list of these is needed, not {type(text).__name__}")
        several = (
            not isinstance(text, (str, bytes, np.ndarray))
            and len(text) > 0
            and not isinstance(text[0], (int, np.integer))
        )
        if several:
            return run([self.tokenize(each) for each in text])
        return run([self.tokenize(text)])[0]

    def _run(
        self, texts: list[NDArray[np.int32]], selection: _Selection | None, hooks: Hooks
    ) -> list[tuple[Array | None, ActivationCache | None]]:
        with self._lock:
            return self._run_locked(texts, selection, hooks)

    def _run_locked(
        self, texts: list[NDArray[np.int32]], selection: _Selection | None, hooks: Hooks
    ) -> list[tuple[Array | None, ActivationCache | None]]:
        all_hooks = [*self._hooks, *_pairs(hooks)]
        layouts = [self._layout(len(ids)) for ids in texts]
        points = [[] if selection is None else layout.select(selection.names, selection.layers) for layout in layouts]
        hooked = [
            [(point, function) for names, function in all_hooks for point in layout.select(names)] for layout in layouts
        ]
        keep_logits = selection is None or selection.logits
        results: list[tuple[Array | None, dict[str, Array]]]
        together = self.context.n_seq_max > 1 and len(texts) > 1 and self._passes.can_go_together(points, hooked, texts)
        try:
            fast = None
            if selection is not None and not all_hooks:
                fast = self._passes.layer_inputs(texts, points, keep_logits)
            if fast is not None:
                results = fast
            elif together:
                results = self._passes.together(texts, points[0], keep_logits)
            else:
                results = [self._passes.one(ids, points[i], hooked[i], keep_logits, i) for i, ids in enumerate(texts)]
        finally:
            self._passes.clear()
        return [
            (logits, None if selection is None else selection.cache(values, points[i], texts[i]))
            for i, (logits, values) in enumerate(results)
        ]


@dataclass(frozen=True, slots=True)
class _Selection:
    """What is to be kept."""

    names: Names
    layers: Iterable[int] | int | None
    positions: int | slice | Sequence[int] | None
    logits: bool = True

    def cache(self, values: dict[str, Array], points: list[HookPoint], ids: NDArray[np.int32]) -> ActivationCache:
        positions = self._rows(len(ids))
        if self.positions is not None:
            for point in points:
                if point.axis is not None:
                    values[point.name] = np.take(values[point.name], positions, axis=point.axis)
        return ActivationCache(values, {point.name: point for point in points}, ids, positions)

    def _rows(self, n: int) -> NDArray[np.int32]:
        every = np.arange(n, dtype=np.int32)
        if self.positions is None:
            return every
        if isinstance(self.positions, slice):
            return every[self.positions]
        one = isinstance(self.positions, (str, bytes)) or not isinstance(self.positions, (Sequence, np.ndarray))
        wanted: list[Any] = [self.positions] if one else list(self.positions)  # type: ignore[arg-type]
        for position in wanted:
            if not _is_int(position):
                raise InvalidArgumentError(f"positions are integers or a slice, not {position!r}")
            if not -n <= position < n:
                raise InvalidArgumentError(f"the text has {n} tokens, and there is no position {position}")
        return every[wanted]


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _pairs(hooks: Any) -> list[tuple[Names, HookFunction]]:
    """Hooks, checked: a hook alone, not in a list, is the usual mistake."""
    pairs = []
    for pair in hooks:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidArgumentError(f"hooks are a list of pairs (names, function), and {pair!r} is no such pair")
        names, function = pair
        if not callable(function):
            raise TypeError(f"a hook must be callable, not {function!r}")
        pairs.append((names, function))
    return pairs


__all__ = ["Hook", "HookFunction", "Interp"]
