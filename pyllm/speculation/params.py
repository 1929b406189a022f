"""How a text is guessed ahead."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyllm.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationParams:
    """How drafts are made.

    Attributes:
        types: llama.cpp's name of a way to draft, or several that are asked in this order; see
            :class:`pyllm.core.speculative.Drafter`. None: "draft-simple" with a draft model, else "ngram-simple".
        n_max: Most tokens of a draft. None: llama.cpp's default.
        n_min: Shorter drafts of a model are dropped. None: llama.cpp's default.
        p_min: A model's draft ends before a token less likely than this.
        ngram_size: How many tokens must have been at an earlier place of the text already. None: llama.cpp's default.
        min_hits: How often "ngram-map-k4v" must have seen them. None: llama.cpp's default.
        adaptive: Shorter drafts where they are rejected, longer ones where they are accepted, and for a while none
            where they take more time than they save. This is decided by the clock, so that the same call may compute
            in other batches each time; False takes `n_max` always.

    Example:
        >>> SpeculationParams(types="ngram-map-k", n_max=8)
        SpeculationParams(types=('ngram-map-k',), n_max=8, ...
    """

    types: str | Sequence[str] | None = None
    n_max: int | None = None
    n_min: int | None = None
    p_min: float = 0.0
    ngram_size: int | None = None
    min_hits: int | None = None
    adaptive: bool = True

    def __post_init__(self) -> None:
        # A tuple, so that equal parameters are the same key.
        if self.types is not None:
            types = (self.types,) if isinstance(self.types, str) else self.types
            if not isinstance(types, Sequence) or not all(isinstance(name, str) for name in types):
                raise InvalidArgumentError(
                    f"types must be the name of a way to draft, or several, not {self.types!r}", param="types"
                )
            object.__setattr__(self, "types", tuple(types))

    @property
    def needs_model(self) -> bool:
        """Whether a draft model, or layers of the model for this, take part."""
        return self.types is not None and any(name.startswith("draft-") for name in self.types)

    def options(self) -> dict[str, Any]:
        """The arguments of a :class:`pyllm.core.speculative.Drafter`."""
        return {
            "types": self.types,
            "n_max": self.n_max,
            "n_min": self.n_min,
            "p_min": self.p_min,
            "ngram_size": self.ngram_size,
            "min_hits": self.min_hits,
        }


#: What the short names mean. llama.cpp's own numbers for n-grams are meant for long texts that are written again.
NAMES = {
    "ngram": SpeculationParams(types="ngram-simple", ngram_size=3, n_max=16),
    "draft": SpeculationParams(types="draft-simple"),
    "mtp": SpeculationParams(types="draft-mtp"),
}


def as_params(value: Any, *, has_draft: bool) -> SpeculationParams | None:
    """What `speculative=` says.

    Args:
        value: None, a bool, a name, or SpeculationParams.
        has_draft: Whether there is a draft model.

    Returns:
        SpeculationParams | None: With ``types`` filled in; None: no drafts.

    Raises:
        InvalidArgumentError: It says nothing of the kind, or a draft model that is not there.
    """
    if value is None or value is False:
        return None
    if value is True:
        value = "draft" if has_draft else "ngram"
    params = NAMES.get(value) or SpeculationParams(types=value) if isinstance(value, str) else value
    if not isinstance(params, SpeculationParams):
        raise InvalidArgumentError(
            f"speculative must be True, False, a name ({', '.join(map(repr, NAMES))}, or one of llama.cpp's), or "
            f"SpeculationParams, not {value!r}",
            param="speculative",
        )
    if params.types is None:
        params = dataclasses.replace(params, types=("draft-simple",) if has_draft else ("ngram-simple",))
    if params.types is not None and "draft-simple" in params.types and not has_draft:
        raise InvalidArgumentError("there is no draft model: give one to Llama as draft=, or use speculative='ngram'")
    return params


def arguments_for(speculative: Any) -> dict[str, Any]:
    """What a model must be loaded with for `speculative=`: the layers that draft are left out else."""
    params = None if isinstance(speculative, bool) else speculative
    types = getattr(params, "types", None) or (params if isinstance(params, str) else ())
    return {"load_mtp": True} if types == "mtp" or "draft-mtp" in types else {}
