"""The flags that several commands share: of the model, its context and sampling. Their names are llama.cpp's own.

A command asks for them with one parameter for each group::

    @with_options
    def run(prompt: ..., model_options: ModelOptions, sampling: SamplingOptions) -> None: ...
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from pyllm.params import Parameter, sampling_numbers

# llama.cpp takes the largest 32-bit number for "choose one".
MAX_SEED = 2**32 - 2
_AUTO = -2  # layers: as many as fit
_ANY = 1e30  # a limit that is none
_MODEL = "Model and context"
_SAMPLING = "Sampling"
_STRUCTURE = "Structure"


def _layers(text: str) -> int:
    """A number of layers: digits, "all" or "auto"."""
    named = {"all": -1, "auto": _AUTO}
    try:
        return named[text] if text in named else int(text)
    except ValueError:
        raise typer.BadParameter(f"--gpu-layers takes a number, all or auto, not {text!r}") from None


def _model(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_MODEL, **settings)


def _sampling(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_SAMPLING, **settings)


def _structure(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_STRUCTURE, **settings)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How the model is loaded and its context made."""

    ctx_size: Annotated[
        int | None, _model("--ctx-size", "-c", min=0, help="Context length in tokens; 0: as trained.")
    ] = None
    batch_size: Annotated[int | None, _model("--batch-size", "-b", min=1, help="Tokens per call of decode.")] = None
    ubatch_size: Annotated[
        int | None, _model("--ubatch-size", "-ub", min=1, help="Tokens computed at once, physically.")
    ] = None
    threads: Annotated[int | None, _model("--threads", "-t", min=1, help="CPU threads.")] = None
    threads_batch: Annotated[int | None, _model("--threads-batch", "-tb", min=1, help="CPU threads for prompts.")] = (
        None
    )
    gpu_layers: Annotated[
        int | None,
        _model(
            "--gpu-layers", "-ngl", "--n-gpu-layers", metavar="N", parser=_layers, help="Layers on GPUs; all; auto."
        ),
    ] = None
    rpc: Annotated[
        str | None,
        _model(
            "--rpc",
            envvar="LLAMA_ARG_RPC",
            metavar="HOST:PORT,...",
            help="RPC servers that compute layers.",
        ),
    ] = None
    cache_type_k: Annotated[str | None, _model("--cache-type-k", "-ctk", help="Type of the keys in the cache.")] = None
    cache_type_v: Annotated[str | None, _model("--cache-type-v", "-ctv", help="Type of the values in the cache.")] = (
        None
    )
    flash_attn: Annotated[str | None, _model("--flash-attn", "-fa", metavar="on|off|auto", help="Flash attention.")] = (
        None
    )
    lora: Annotated[list[str] | None, _model("--lora", metavar="FILE", help="A LoRA adapter; may be repeated.")] = None
    lora_scaled: Annotated[
        list[str] | None, _model("--lora-scaled", metavar="FILE:SCALE", help="A LoRA adapter and its scale.")
    ] = None
    model_draft: Annotated[
        str | None,
        _model(
            "--model-draft",
            "-md",
            "--spec-draft-model",
            "--draft",
            "--spec-draft-hf",
            "-hfd",
            "-hfrd",
            "--hf-repo-draft",
            metavar="MODEL",
            help="A small model that drafts tokens.",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of :class:`pyllm.Llama`; what was not given is not among them."""
        values: dict[str, Any] = {
            "n_ctx": self.ctx_size,
            "n_batch": self.batch_size,
            "n_ubatch": self.ubatch_size,
            "n_threads": self.threads,
            "n_threads_batch": self.threads_batch,
            "n_gpu_layers": None if self.gpu_layers == _AUTO else self.gpu_layers,
            "rpc": self.rpc,
            "type_k": self.cache_type_k,
            "type_v": self.cache_type_v,
            "flash_attn_type": None if self.flash_attn is None else _flash_attn(self.flash_attn),
            "lora": self._adapters() or None,
            "draft": self.model_draft,
        }
        return {name: value for name, value in values.items() if value is not None}

    def _adapters(self) -> list[tuple[str, float]]:
        adapters = [(path, 1.0) for item in self.lora or () for path in item.split(",") if path]
        for item in self.lora_scaled or ():
            for part in item.split(","):
                path, separator, scale = part.rpartition(":")
                if not separator or not path:
                    raise typer.BadParameter(f"--lora-scaled takes FILE:SCALE, not {part!r}")
                adapters.append((path, _number(scale, "--lora-scaled")))
        return adapters


def _field(one: Parameter) -> str:
    """The name of a number among the options: its first flag."""
    return one.flags[0].lstrip("-").replace("-", "_")


def _number_options() -> type[Any]:
    """The flags of all numbers of :class:`pyllm.SamplingParams`, from their declarations."""
    fields: list[tuple[str, Any, Any]] = []
    for one in sampling_numbers().values():
        if not one.flags:
            continue
        # llama.cpp's flags take 0 where a number must be greater than that: it is off then.
        low = None if one.low <= -_ANY else math.floor(one.low)
        high = None if one.high >= 2**31 - 1 else one.high
        option = _sampling(*one.flags, min=low, max=high, help=one.help)
        fields.append((_field(one), Annotated[one.kind | None, option], None))
    return dataclasses.make_dataclass("_NumberOptions", fields, frozen=True, kw_only=True)


if TYPE_CHECKING:

    class _NumberOptions:
        pass

else:
    _NumberOptions = _number_options()


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(_NumberOptions):
    """How tokens are chosen."""

    dry_sequence_breaker: Annotated[
        list[str] | None,
        _sampling("--dry-sequence-breaker", help="A text that ends a repetition for DRY; may be repeated; none."),
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        _sampling("--logit-bias", "-l", metavar="ID+BIAS", help="15043+1: likelier; 15043-inf: never."),
    ] = None
    samplers: Annotated[str | None, _sampling("--samplers", metavar="A;B;C", help="The samplers and their order.")] = (
        None
    )
    sampler_seq: Annotated[
        str | None,
        _sampling("--sampler-seq", "--sampling-seq", metavar="LETTERS", help="The same, by letters: edskypmxt."),
    ] = None
    seed: Annotated[
        int | None,
        _sampling("--seed", "-s", min=-1, max=MAX_SEED, help="Same seed, same text; -1 is random."),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Fields of :class:`pyllm.SamplingParams`; what was not given is not among them."""
        values: dict[str, Any] = {
            **{one.name: getattr(self, _field(one)) for one in sampling_numbers().values() if one.flags},
            "dry_sequence_breakers": _breakers(self.dry_sequence_breaker),
            "logit_bias": dict(map(_bias, self.logit_bias)) if self.logit_bias else None,
            "samplers": self._samplers(),
            "seed": None if self.seed == -1 else self.seed,
        }
        return {name: value for name, value in values.items() if value is not None}

    def _samplers(self) -> list[str] | None:
        if self.sampler_seq is None:
            return None if self.samplers is None else self.samplers.split(";")
        if self.samplers is not None:
            raise typer.BadParameter("--samplers and --sampler-seq say the same: give one of them")
        from pyllm.params import SAMPLER_LETTERS

        for letter in self.sampler_seq:
            if letter not in SAMPLER_LETTERS:
                known = ", ".join(f"{one} {name}" for one, name in SAMPLER_LETTERS.items())
                raise typer.BadParameter(f"--sampler-seq has no letter {letter!r}; there are {known}")
        return [SAMPLER_LETTERS[letter] for letter in self.sampler_seq]


def sampling_variables() -> dict[str, str]:
    """Variables of the environment for the fields of :class:`SamplingOptions`; llama-server reads them."""
    return {_field(one): one.variable for one in sampling_numbers().values() if one.flags and one.variable is not None}


@dataclass(frozen=True, kw_only=True)
class StructureOptions:
    """What form the text must have."""

    grammar: Annotated[str | None, _structure("--grammar", help="A GBNF grammar that the text must follow.")] = None
    grammar_file: Annotated[Path | None, _structure("--grammar-file", metavar="FILE", help="A grammar's file.")] = None
    json_schema: Annotated[
        str | None, _structure("--json-schema", "-j", help="A JSON schema that the text must follow; {}: any JSON.")
    ] = None
    json_schema_file: Annotated[
        Path | None, _structure("--json-schema-file", "-jf", metavar="FILE", help="A schema's file.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """``grammar`` or ``json_schema``, or nothing."""
        given = [
            (flag, value)
            for flag, value in (
                ("--grammar", self.grammar),
                ("--grammar-file", self.grammar_file),
                ("--json-schema", self.json_schema),
                ("--json-schema-file", self.json_schema_file),
            )
            if value is not None
        ]
        if not given:
            return {}
        if len(given) > 1:
            raise typer.BadParameter(f"give only one of {' and '.join(flag for flag, _ in given)}")
        flag, value = given[0]
        text = read_text(value, flag) if isinstance(value, Path) else value
        return {"grammar" if "grammar" in flag else "json_schema": text}


def read_text(path: Path, flag: str) -> str:
    """The text of a file that was named by a flag, without its last line end.

    Raises:
        typer.BadParameter: It cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{flag}: cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{flag}: {path} is not UTF-8: {error}") from error
    return text.removesuffix("\n").removesuffix("\r")


def with_options(
    function: Callable[..., None], variables: Mapping[str, str | list[str]] | None = None
) -> Callable[..., None]:
    """Let a command have each parameter of a type above as one flag for each of its fields.

    Args:
        function: The command.
        variables: Names of variables of the environment that stand for flags that are not given, by field.
    """
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        kind: Any = hints[name]
        is_group = dataclasses.is_dataclass(kind)
        if not is_group:
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[name] = kind
        fields = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            annotation = _with_variable(fields[field.name], (variables or {}).get(field.name))
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation
                )
            )

    @functools.wraps(function)
    def command(**arguments: Any) -> None:
        for name, kind in groups.items():
            arguments[name] = kind(**{field.name: arguments.pop(field.name) for field in dataclasses.fields(kind)})
        function(**arguments)

    command.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__  # typer must not look behind it
    return command


def _with_variable(annotation: Any, variable: str | list[str] | None) -> Any:
    if variable is None:
        return annotation
    kind, option = get_args(annotation)
    option = copy.copy(option)  # the class is for all commands
    option.envvar = variable
    return Annotated[kind, option]


def _breakers(texts: list[str] | None) -> list[str] | None:
    return [text for text in texts if text != "none"] if texts else None


def _bias(text: str) -> tuple[int, float]:
    match = re.fullmatch(r"\s*(\d+)\s*([+-])\s*(inf|[\d.eE+-]+)\s*", text)
    if match is None:
        raise typer.BadParameter(f"--logit-bias takes TOKEN_ID+BIAS or TOKEN_ID-BIAS, not {text!r}")
    value = _number(match[3], "--logit-bias")
    return int(match[1]), -value if match[2] == "-" else value


def _number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{flag}: {text!r} is not a number") from None


def _flash_attn(text: str) -> str:
    names = {"on": "enabled", "off": "disabled", "auto": "auto", "1": "enabled", "0": "disabled", "-1": "auto"}
    if text.lower() not in names:
        raise typer.BadParameter(f"--flash-attn takes on, off or auto, not {text!r}")
    return names[text.lower()]
