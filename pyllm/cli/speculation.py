"""The flags of speculation, named as llama-server's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pyllm.speculation import SpeculationParams

_SPECULATION = "Speculation"
_MOST = 1024
# What --spec-default says of ngram-mod.
_DEFAULT = {"ngram_size": 24, "n_min": 48, "n_max": 64}


def _speculation(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_SPECULATION, **settings)


def _ngram(way: str, what: str, help: str) -> Any:
    return _speculation(f"--spec-{way}-{what}", min=0 if what == "n-min" else 1, max=_MOST, help=help)


@dataclass(frozen=True, kw_only=True)
class SpeculationOptions:
    """How texts are guessed ahead; the draft model is one of :class:`pyllm.cli.options.ModelOptions`."""

    spec_type: Annotated[
        str | None,
        _speculation(
            "--spec-type",
            envvar="LLAMA_ARG_SPEC_TYPE",
            metavar="TYPES",
            help="How: ngram-simple, ngram-map-k, ngram-map-k4v, ngram-mod, ngram-cache, draft-simple; several: with "
            "commas; none.",
        ),
    ] = None
    spec_default: Annotated[
        bool, _speculation("--spec-default", help="Draft from the text itself, with llama-server's numbers: ngram-mod.")
    ] = False
    spec_draft_n_max: Annotated[
        int | None,
        _speculation(
            "--spec-draft-n-max",
            envvar="LLAMA_ARG_SPEC_DRAFT_N_MAX",
            min=0,
            max=_MOST,
            help="Most tokens that a draft model guesses; 0: none.",
        ),
    ] = None
    spec_draft_n_min: Annotated[
        int | None,
        _speculation(
            "--spec-draft-n-min",
            envvar="LLAMA_ARG_SPEC_DRAFT_N_MIN",
            min=0,
            max=_MOST,
            help="A draft model's shorter guesses are dropped.",
        ),
    ] = None
    spec_draft_p_min: Annotated[
        float | None,
        _speculation(
            "--spec-draft-p-min",
            "--draft-p-min",
            envvar="LLAMA_ARG_SPEC_DRAFT_P_MIN",
            min=0,
            max=1,
            help="A guess ends before a token less likely than this.",
        ),
    ] = None
    spec_ngram_simple_size_n: Annotated[int | None, _ngram("ngram-simple", "size-n", "Tokens to look for.")] = None
    spec_ngram_simple_size_m: Annotated[int | None, _ngram("ngram-simple", "size-m", "Tokens of a guess.")] = None
    spec_ngram_map_k_size_n: Annotated[int | None, _ngram("ngram-map-k", "size-n", "Tokens to look for.")] = None
    spec_ngram_map_k_size_m: Annotated[int | None, _ngram("ngram-map-k", "size-m", "Tokens of a guess.")] = None
    spec_ngram_map_k_min_hits: Annotated[int | None, _ngram("ngram-map-k", "min-hits", "Least times seen.")] = None
    spec_ngram_map_k4v_size_n: Annotated[int | None, _ngram("ngram-map-k4v", "size-n", "Tokens to look for.")] = None
    spec_ngram_map_k4v_size_m: Annotated[int | None, _ngram("ngram-map-k4v", "size-m", "Tokens of a guess.")] = None
    spec_ngram_map_k4v_min_hits: Annotated[int | None, _ngram("ngram-map-k4v", "min-hits", "Least times seen.")] = None
    spec_ngram_mod_n_match: Annotated[int | None, _ngram("ngram-mod", "n-match", "Tokens to look for.")] = None
    spec_ngram_mod_n_min: Annotated[int | None, _ngram("ngram-mod", "n-min", "Shorter guesses are dropped.")] = None
    spec_ngram_mod_n_max: Annotated[int | None, _ngram("ngram-mod", "n-max", "Most tokens of a guess.")] = None
    speculate_up_to: Annotated[
        int, _speculation("--speculate-up-to", min=1, help="Guess while so many texts are computed at once.")
    ] = 1

    def arguments(self, *, has_draft: bool) -> dict[str, Any]:
        """Arguments of :class:`pyllm.engine.Engine`; what was not given is not among them.

        Args:
            has_draft: Whether there is a draft model.

        Raises:
            typer.BadParameter: There is no such way, or two ways are given numbers of their own.
        """
        result: dict[str, Any] = {"speculate_up_to": self.speculate_up_to} if self.speculate_up_to != 1 else {}
        params = self._params(has_draft)
        if params is not None:
            result["speculative"] = params
        elif has_draft and (self.spec_type is not None or self.spec_draft_n_max == 0):
            result["speculative"] = False
        return result

    def _params(self, has_draft: bool) -> SpeculationParams | None:
        from pyllm.core.speculative import DRAFT_TYPES, NGRAM_TYPES
        from pyllm.speculation import SpeculationParams

        named = [name.strip() for name in (self.spec_type or "").split(",") if name.strip() not in ("", "none")]
        if self.spec_default and "ngram-mod" not in named:
            named.append("ngram-mod")
        known = (*NGRAM_TYPES, *DRAFT_TYPES)
        for name in named:
            if name not in known:
                raise typer.BadParameter(f"--spec-type: there is no {name!r}; there are none, {', '.join(known)}")
        if self.spec_type is None and has_draft:
            named.insert(0, "draft-simple")
        if self.spec_draft_n_max == 0:
            named = [name for name in named if name not in DRAFT_TYPES]
        if not named:
            return None
        if "draft-simple" in named and not has_draft:
            raise typer.BadParameter("--spec-type draft-simple needs a draft model: name it by --model-draft")
        given = {name: numbers for name in named if (numbers := self._numbers(name))}
        if len(given) > 1:
            raise typer.BadParameter(f"numbers can be given for one way to guess, not for {' and '.join(given)}")
        numbers = next(iter(given.values()), {})
        return SpeculationParams(types=named, **numbers)

    def _numbers(self, name: str) -> dict[str, Any]:
        """What was said about a way to guess."""
        numbers: dict[str, Any]
        if name.startswith("draft-"):
            numbers = {
                "n_max": self.spec_draft_n_max,
                "n_min": self.spec_draft_n_min,
                "p_min": self.spec_draft_p_min,
            }
        elif name == "ngram-mod":
            numbers = {
                "ngram_size": self.spec_ngram_mod_n_match,
                "n_min": self.spec_ngram_mod_n_min,
                "n_max": self.spec_ngram_mod_n_max,
            }
            if self.spec_default:
                numbers = {name: _DEFAULT[name] if value is None else value for name, value in numbers.items()}
        else:
            prefix = f"spec_{name.replace('-', '_')}_"
            numbers = {
                "ngram_size": getattr(self, prefix + "size_n", None),
                "n_max": getattr(self, prefix + "size_m", None),
                "min_hits": getattr(self, prefix + "min_hits", None),
            }
        return {key: value for key, value in numbers.items() if value is not None}


__all__ = ["SpeculationOptions"]
