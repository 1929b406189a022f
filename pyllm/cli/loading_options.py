"""Flags about how a model is loaded and its context made that few need; their names are llama-server's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

_PANEL = "Loading"
# Names of tensors, as llama.cpp writes GGUF files.
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_FEED_FORWARD = r"\.ffn_(up|down|gate)\."
_LOAD_MODES = {"mmap+mlock": "mmap_mlock", "dio": "direct_io"}


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL, **settings)


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """What :class:`pyllm.cli.options.ModelOptions` leaves out."""

    load_mode: Annotated[
        str | None,
        _option("--load-mode", "-lm", envvar="LLAMA_ARG_LOAD_MODE", help="auto, none, mmap, mlock, mmap+mlock or dio."),
    ] = None
    mmap: Annotated[bool | None, _option("--mmap/--no-mmap", help="As --load-mode mmap, or none.")] = None
    mlock: Annotated[bool | None, _option("--mlock", help="As --load-mode mmap+mlock; with --no-mmap: mlock.")] = None
    lazy_mode: Annotated[
        str | None,
        _option("--lazy-mode", "-lzm", envvar="LLAMA_ARG_LAZY_MODE", help="Read tensors on demand: on, auto, off."),
    ] = None
    check_tensors: Annotated[bool | None, _option("--check-tensors", help="Look for invalid values.")] = None
    repack: Annotated[
        bool | None,
        _option("--repack/--no-repack", " /-nr", envvar="LLAMA_ARG_REPACK", help="Repack weights for speed."),
    ] = None
    no_host: Annotated[bool | None, _option("--no-host", envvar="LLAMA_ARG_NO_HOST", help="Bypass host buffers.")] = (
        None
    )
    device: Annotated[
        str | None, _option("--device", "-dev", envvar="LLAMA_ARG_DEVICE", help="Devices, with commas; none: the CPU.")
    ] = None
    split_mode: Annotated[
        str | None,
        _option("--split-mode", "-sm", envvar="LLAMA_ARG_SPLIT_MODE", help="Over GPUs: none, layer, row, tensor."),
    ] = None
    tensor_split: Annotated[
        str | None,
        _option("--tensor-split", "-ts", envvar="LLAMA_ARG_TENSOR_SPLIT", help="The share of each GPU, e.g. 3,1."),
    ] = None
    main_gpu: Annotated[
        int | None, _option("--main-gpu", "-mg", envvar="LLAMA_ARG_MAIN_GPU", min=0, help="The GPU, where it is one.")
    ] = None
    override_tensor: Annotated[
        str | None,
        _option(
            "--override-tensor",
            "-ot",
            envvar="LLAMA_ARG_OVERRIDE_TENSOR",
            metavar="NAME=BUFFER,…",
            help="Buffer types of tensors.",
        ),
    ] = None
    cpu_moe: Annotated[
        bool, _option("--cpu-moe", "-cmoe", envvar="LLAMA_ARG_CPU_MOE", help="Weights of all experts on the CPU.")
    ] = False
    n_cpu_moe: Annotated[
        int | None,
        _option(
            "--n-cpu-moe",
            "-ncmoe",
            envvar="LLAMA_ARG_N_CPU_MOE",
            min=0,
            help="Weights of the experts of the first N layers on the CPU.",
        ),
    ] = None
    n_cpu_ffn: Annotated[
        int | None,
        _option(
            "--n-cpu-ffn",
            "-ncffn",
            envvar="LLAMA_ARG_N_CPU_FFN",
            min=0,
            help="Weights of the feed-forward parts of the first N layers on the CPU.",
        ),
    ] = None
    override_kv: Annotated[
        str | None, _option("--override-kv", metavar="KEY=TYPE:VALUE,…", help="Metadata instead of the file's.")
    ] = None
    kv_offload: Annotated[
        bool | None,
        _option("--kv-offload/--no-kv-offload", "-kvo/-nkvo", envvar="LLAMA_ARG_KV_OFFLOAD", help="KV cache on GPUs."),
    ] = None
    op_offload: Annotated[
        bool | None, _option("--op-offload/--no-op-offload", help="Operations of the host on GPUs.")
    ] = None
    rope_scaling: Annotated[
        str | None,
        _option("--rope-scaling", envvar="LLAMA_ARG_ROPE_SCALING_TYPE", help="none, linear, yarn or longrope."),
    ] = None
    rope_scale: Annotated[
        float | None, _option("--rope-scale", envvar="LLAMA_ARG_ROPE_SCALE", min=0.001, help="Context times this.")
    ] = None
    rope_freq_base: Annotated[
        float | None, _option("--rope-freq-base", envvar="LLAMA_ARG_ROPE_FREQ_BASE", help="Base frequency of RoPE.")
    ] = None
    rope_freq_scale: Annotated[
        float | None, _option("--rope-freq-scale", envvar="LLAMA_ARG_ROPE_FREQ_SCALE", help="Context divided by this.")
    ] = None
    yarn_orig_ctx: Annotated[
        int | None, _option("--yarn-orig-ctx", envvar="LLAMA_ARG_YARN_ORIG_CTX", min=0, help="Context before YaRN.")
    ] = None
    yarn_ext_factor: Annotated[
        float | None, _option("--yarn-ext-factor", envvar="LLAMA_ARG_YARN_EXT_FACTOR", help="YaRN's extrapolation.")
    ] = None
    yarn_attn_factor: Annotated[
        float | None, _option("--yarn-attn-factor", envvar="LLAMA_ARG_YARN_ATTN_FACTOR", help="YaRN's magnitude.")
    ] = None
    yarn_beta_fast: Annotated[
        float | None, _option("--yarn-beta-fast", envvar="LLAMA_ARG_YARN_BETA_FAST", help="YaRN's low correction.")
    ] = None
    yarn_beta_slow: Annotated[
        float | None, _option("--yarn-beta-slow", envvar="LLAMA_ARG_YARN_BETA_SLOW", help="YaRN's high correction.")
    ] = None
    pooling: Annotated[
        str | None, _option("--pooling", envvar="LLAMA_ARG_POOLING", help="Vectors: none, mean, cls, last or rank.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Arguments of a model and its context; what was not given is not among them."""
        values: dict[str, Any] = {
            "load_mode": self._load_mode(),
            "lazy_mode": self.lazy_mode,
            "check_tensors": self.check_tensors,
            "use_extra_bufts": self.repack,
            "no_host": self.no_host,
            "devices": None if self.device is None else [] if self.device == "none" else _items(self.device),
            "split_mode": self.split_mode,
            "tensor_split": None if self.tensor_split is None else list(map(_share, _items(self.tensor_split))),
            "main_gpu": self.main_gpu,
            "tensor_buft_overrides": self._overrides() or None,
            "kv_overrides": None if self.override_kv is None else dict(map(_override, _items(self.override_kv))),
            "offload_kqv": self.kv_offload,
            "op_offload": self.op_offload,
            "rope_scaling_type": self.rope_scaling,
            "rope_freq_base": self.rope_freq_base,
            "rope_freq_scale": 1 / self.rope_scale if self.rope_scale is not None else self.rope_freq_scale,
            "yarn_orig_ctx": self.yarn_orig_ctx,
            "yarn_ext_factor": self.yarn_ext_factor,
            "yarn_attn_factor": self.yarn_attn_factor,
            "yarn_beta_fast": self.yarn_beta_fast,
            "yarn_beta_slow": self.yarn_beta_slow,
            "pooling_type": self.pooling,
        }
        return {name: value for name, value in values.items() if value is not None}

    def _load_mode(self) -> str | None:
        if self.load_mode is not None and (self.mmap is not None or self.mlock):
            raise typer.BadParameter("--load-mode says what --mmap and --mlock say: give one of them")
        if self.load_mode is not None:
            return _LOAD_MODES.get(self.load_mode, self.load_mode)
        if self.mlock:
            return "mlock" if self.mmap is False else "mmap_mlock"
        return None if self.mmap is None else "mmap" if self.mmap else "none"

    def _overrides(self) -> dict[str, str]:
        """Buffer types by patterns of tensors' names; the first that fits decides."""
        pairs = [_pair(item, "--override-tensor") for item in _items(self.override_tensor or "")]
        if self.cpu_moe:
            pairs.append((_EXPERTS, "CPU"))
        pairs += [(rf"blk\.{i}{_EXPERTS}", "CPU") for i in range(self.n_cpu_moe or 0)]
        pairs += [(rf"blk\.{i}{_FEED_FORWARD}", "CPU") for i in range(self.n_cpu_ffn or 0)]
        return dict(pairs)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"--tensor-split takes numbers with commas between them, not {text!r}") from None


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise typer.BadParameter(f"{flag} takes NAME=VALUE, not {text!r}")
    return name, value


def _override(text: str) -> tuple[str, int | float | bool | str]:
    key, rest = _pair(text, "--override-kv")
    kind, _, value = rest.partition(":")
    try:
        if kind == "bool" and value in ("true", "false"):
            return key, value == "true"
        if kind in ("int", "float"):
            return key, int(value) if kind == "int" else float(value)
        if kind == "str":
            return key, value
    except ValueError:
        pass
    raise typer.BadParameter(f"--override-kv takes KEY=TYPE:VALUE with int, float, bool or str as TYPE, not {text!r}")
