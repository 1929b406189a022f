"""Which models ``pyllm serve`` has: one, or several by their names."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from pyllm.cli.config import config_of

_DEFAULT = "smollm2"
_PANEL = "Server"
_VARIABLES = ("LLAMA_ARG_MODEL", "LLAMA_ARG_HF_REPO")
_LATER = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Where models come from."""

    hf_file: Annotated[
        str | None,
        typer.Option(
            "--hf-file",
            "-hff",
            envvar="LLAMA_ARG_HF_FILE",
            metavar="FILE",
            rich_help_panel=_PANEL,
            help="The file in the repository that --hf-repo names.",
        ),
    ] = None
    hf_token: Annotated[
        str | None,
        typer.Option("--hf-token", "-hft", envvar="HF_TOKEN", rich_help_panel=_PANEL, help="For Hugging Face."),
    ] = None
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", envvar="LLAMA_ARG_OFFLINE", rich_help_panel=_PANEL, help="Take only what is here already."
        ),
    ] = False

    def apply(self) -> None:
        """Set what the rest of the program reads from the environment."""
        if self.hf_token:
            os.environ["HF_TOKEN"] = self.hf_token
        if self.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"

    def file_of(self, reference: str) -> str:
        """The reference of the file in a repository, where one is named."""
        if self.hf_file is None:
            return reference
        repository = reference.removeprefix("hf:").partition(":")[0]
        if repository.count("/") != 1 or Path(reference).exists():
            raise typer.BadParameter(f"--hf-file names a file of --hf-repo OWNER/REPO, and the model is {reference!r}")
        return f"hf:{repository}/{self.hf_file}"


@dataclass(frozen=True)
class WantedModel:
    """A model to serve.

    Attributes:
        reference: A file, an alias or a reference.
        name: What requests call it. None: nobody said.
        table: What the config file says about it, by the names of parameters.
        kept: Parameters that flags or the environment gave, which come before the table.
    """

    reference: str
    name: str | None = None
    table: Mapping[str, Any] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()

    @property
    def load(self) -> str:
        """When it is loaded: "start" or "demand"."""
        return str(self.table.get("load", "demand"))

    @property
    def default_name(self) -> str | None:
        """What requests call it where nobody named it: its alias or reference. None: the name of its file."""
        from pyllm.hub.resolve import is_reference

        if os.path.isfile(self.reference) or "://" in self.reference or not is_reference(self.reference):
            return None
        return self.reference

    def over(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of all parameters, with those of its table."""
        result = dict(values)
        for name, value in self.table.items():
            if name in self.kept or name in ("load", "model"):
                continue
            if name in result:
                result[name] = value
                continue
            for group, options in result.items():
                if dataclasses.is_dataclass(options) and not isinstance(options, type) and hasattr(options, name):
                    result[group] = dataclasses.replace(options, **{name: value})
        return result


@dataclass(frozen=True)
class Wanted:
    """The models to serve.

    Attributes:
        models: At least one.
        several: Whether requests choose among them by their names.
    """

    models: list[WantedModel]
    several: bool


def wanted_models(ctx: typer.Context, named: str | None, flags: list[str] | None, folder: Path | None = None) -> Wanted:
    """The models that a command line names, or the environment, or the config file.

    Args:
        ctx: The command.
        named: What stands for MODEL.
        flags: What was given with ``--model``, there or in the file.
        folder: A folder with models, which come besides where no model is named by MODEL.

    Raises:
        typer.BadParameter: A model is named twice, or one of several has no name.
    """
    config = config_of(ctx)
    by_flag = _source(ctx, "model") == "COMMANDLINE"
    if named is not None and by_flag:
        raise typer.BadParameter("the model is named twice: as MODEL and by --model")
    tables = config.models if config is not None else {}
    if named is not None or by_flag:
        tables = {}  # whoever names models on the command line means these
        given = [named] if named is not None else flags or []
    elif by_environment := [os.environ[name] for name in _VARIABLES if os.environ.get(name)]:
        tables, given = {}, by_environment[:1]
    else:
        given = flags or []
    wanted = [WantedModel(reference, name) for name, reference in map(_named, given)]
    kept = frozenset(name for name in ctx.params if _source(ctx, name) in ("COMMANDLINE", "ENVIRONMENT"))
    files = {} if folder is None or named is not None else models_in(folder)
    for name, table in tables.items():
        references = table.get("model") or [str(files.get(name, name))]
        if len(references) > 1:
            raise typer.BadParameter(f"{config and config.path}: [models.{name}] names {len(references)} models")
        wanted.append(WantedModel(references[0], name, table, kept))
    known = {model.name for model in wanted}
    wanted += [WantedModel(str(path), name) for name, path in files.items() if name not in known]
    several = len(wanted) > 1 or any(model.name is not None for model in wanted)
    if several and any(model.name is None for model in wanted):
        unnamed = next(model.reference for model in wanted if model.name is None)
        raise typer.BadParameter(f"of several models each needs a name: --model NAME={unnamed}")
    for flag in ("alias", "hf_file"):
        if several and ctx.params.get(flag):
            raise typer.BadParameter(
                f"--{flag.replace('_', '-')} is about one model, and there are several: --model NAME=MODEL names each"
            )
    return Wanted(wanted or [WantedModel(_DEFAULT)], several)


def models_in(folder: Path) -> dict[str, Path]:
    """The models in a folder, by their names: files, and folders with the parts of one.

    Raises:
        typer.BadParameter: It cannot be read, or has none.
    """
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise typer.BadParameter(f"--models-dir: cannot read {folder}: {error.strerror or error}") from error
    found: dict[str, Path] = {}
    for path in inside:
        files = sorted(path.glob("*.gguf")) if path.is_dir() else [path] if path.suffix == ".gguf" else []
        # Of one in parts llama.cpp is given the first; projectors of pictures are no models.
        first = next(
            (file for file in files if not file.name.startswith("mmproj") and not _LATER.search(file.name)), None
        )
        if first is not None:
            found[path.name if path.is_dir() else path.stem] = first
    if not found:
        raise typer.BadParameter(f"--models-dir: there is no model in {folder}: files that end in .gguf")
    return found


def parse_bytes(text: str, flag: str) -> int:
    """A number of bytes: "8GiB", "500MB", "8G" or plain digits. K, M, G and T alone count in 1024.

    Raises:
        typer.BadParameter: It is something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"{flag} must be a size such as 8GiB or 500MB, not {text!r}")
    base = 1000 if match[2] and (match[3] or "").lower() == "b" else 1024
    return int(float(match[1]) * base ** _UNITS[match[2].lower()])


def _named(text: str) -> tuple[str | None, str]:
    """NAME=MODEL, or MODEL alone; names of files may have the sign, too."""
    name, sign, reference = text.partition("=")
    if not sign or Path(text).exists() or "/" in name or os.sep in name:
        return None, text
    if not name or not reference:
        raise typer.BadParameter(f"--model takes MODEL or NAME=MODEL, not {text!r}")
    return name, reference


def _source(ctx: typer.Context, name: str) -> str:
    source = ctx.get_parameter_source(name)
    return "" if source is None else source.name
