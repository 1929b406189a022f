"""llama-server's flags that have no effect here, each with its reason: one table for the parser, the page and the docs.

Scripts for llama-server give many flags that say how it computes and change no answer. Those are taken, with a warning
that has the reason. A flag is an error where ignoring it would change answers, or would leave out what was asked for.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

Effect = Literal["ignored", "accepted", "refused"]


@dataclass(frozen=True)
class Flag:
    """A flag of llama-server.

    Attributes:
        names: All its names, those of its opposite included.
        effect: "accepted": it says what holds here anyway. "ignored": a warning says why it has no effect. "refused":
            it is an error.
        reason: Why, or what to give in its place.
        takes_value: Whether a value follows it.
        variable: The variable of the environment that stands for it.
        taken: Values that say what holds here anyway.
    """

    names: tuple[str, ...]
    effect: Effect
    reason: str
    takes_value: bool = False
    variable: str | None = None
    taken: tuple[str, ...] = ()

    @property
    def field(self) -> str:
        """Its name in Python and in config files."""
        longest = next(name for name in self.names if name.startswith("--"))
        return re.sub(r"\W", "_", longest.lstrip("-"))


def _flags(effect: Effect, reason: str, *rows: str) -> list[Flag]:
    """Flags with one reason.

    Args:
        effect: See :class:`Flag`.
        reason: See :class:`Flag`.
        *rows: For each flag its names, ``=`` where a value follows it, values that hold anyway (``:on``), and the
            variable of the environment that stands for it.
    """
    flags = []
    for row in rows:
        words = row.split()
        names = tuple(word for word in words if word.startswith("-"))
        taken = tuple(word[1:] for word in words if word.startswith(":"))
        variable = next((word for word in words if word[0].isalpha()), None)
        flags.append(Flag(names, effect, reason, "=" in words, variable, taken))
    return flags


_TEXT_ONLY = "this server takes text only: a picture or a recording in a request is a clear error"
_DRAFT = "the draft model is computed as the model is"
_OTHER_PAGE = "the page of this server is another one, with settings of its own"
_NO_TOOLS = "this server runs no tools: clients run theirs"
_MODEL_BY_NAME = "name the model: --model FILE, an alias of `pyllm list`, or owner/repo:Q4_K_M"
_REMOVED = "llama-server has removed it, too"

FLAGS: tuple[Flag, ...] = (
    # ---- what holds anyway
    *_flags("accepted", "the SWA cache always has its full size", "--swa-full LLAMA_ARG_SWA_FULL"),
    *_flags("accepted", "a reranker answers /rerank without it", "--rerank --reranking LLAMA_ARG_RERANKING"),
    *_flags("accepted", "requests need no threads", "--threads-http = LLAMA_ARG_THREADS_HTTP"),
    *_flags("accepted", "chat templates are Jinja", "--jinja LLAMA_ARG_JINJA"),
    *_flags("accepted", "requests are always computed together", "-cb --cont-batching LLAMA_ARG_CONT_BATCHING"),
    *_flags("accepted", "a text that fills the context ends", "--no-context-shift"),
    *_flags("accepted", "there is no empty run at the start", "--no-warmup"),
    *_flags("accepted", "there are no projectors for pictures", "--no-mmproj --no-mmproj-auto"),
    *_flags(
        "accepted",
        "idle sequences stay in the KV cache while there is room",
        "--cache-idle-slots LLAMA_ARG_CACHE_IDLE_SLOTS",
    ),
    *_flags("accepted", "times are measured in the engine: see /metrics", "--no-perf"),
    *_flags("accepted", "there is no prompt on the command line", "-e --escape --no-escape"),
    *_flags(
        "accepted",
        "each line of the log has its level and its time",
        "--log-prefix LLAMA_ARG_LOG_PREFIX",
        "--log-timestamps LLAMA_ARG_LOG_TIMESTAMPS",
    ),
    *_flags("accepted", "embeddings have the length 1", "--embd-normalize = :2"),
    *_flags(
        "accepted", "a last message of the assistant is continued", "--prefill-assistant LLAMA_ARG_PREFILL_ASSISTANT"
    ),
    *_flags("accepted", "chats are parsed", "--no-skip-chat-parsing"),
    *_flags("accepted", "no tools are run", "-no-ag --no-agent", "--no-ui-mcp-proxy --no-webui-mcp-proxy"),
    # ---- what has no effect here
    *_flags("ignored", "chat templates are always Jinja here", "--no-jinja"),
    *_flags("ignored", "requests are always computed together here", "-nocb --no-cont-batching"),
    *_flags(
        "ignored",
        "a text that fills the context ends here, with finish_reason 'length'",
        "--context-shift LLAMA_ARG_CONTEXT_SHIFT",
        "--keep =",
    ),
    *_flags("ignored", "there is no empty run at the start: the first request makes it", "--warmup"),
    *_flags(
        "ignored",
        "set the CPUs of the whole process: taskset",
        "-C --cpu-mask =",
        "-Cr --cpu-range =",
        "--cpu-strict =",
        "-Cb --cpu-mask-batch =",
        "-Crb --cpu-range-batch =",
        "--cpu-strict-batch =",
    ),
    *_flags("ignored", "set the priority of the whole process: nice", "--prio =", "--prio-batch ="),
    *_flags("ignored", "threads wait as llama.cpp has it by default", "--poll =", "--poll-batch ="),
    *_flags("ignored", "place the whole process: numactl", "--numa = LLAMA_ARG_NUMA"),
    *_flags("ignored", "times are measured in the engine: see /metrics", "--perf LLAMA_ARG_PERF"),
    *_flags("ignored", "llama.cpp defragments nothing any more", "-dt --defrag-thold = LLAMA_ARG_DEFRAG_THOLD"),
    *_flags(
        "ignored",
        "what was not set is fitted to the free memory by pyllm's own rules",
        "-fit --fit = :on LLAMA_ARG_FIT",
        "-fitt --fit-target = LLAMA_ARG_FIT_TARGET",
        "-fitc --fit-ctx = LLAMA_ARG_FIT_CTX",
    ),
    *_flags(
        "ignored",
        "drafts come from the text itself, and no file of n-grams is read",
        "-lcs --lookup-cache-static =",
        "-lcd --lookup-cache-dynamic =",
    ),
    *_flags(
        "ignored",
        "each sequence may have what is free; -c says how much there is",
        "--kv-unified-per-slot = LLAMA_ARG_KV_UNIFIED_PER_SLOT",
    ),
    *_flags(
        "ignored",
        "whole sequences are kept, and no checkpoints of them",
        "-ctxcp --ctx-checkpoints --swa-checkpoints = LLAMA_ARG_CTX_CHECKPOINTS",
        "-cms --checkpoint-min-step = LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT",
    ),
    *_flags(
        "ignored",
        "idle sequences stay in the KV cache while there is room; --cache-ram 0 keeps none elsewhere",
        "--no-cache-idle-slots",
    ),
    *_flags(
        "ignored",
        "common beginnings are reused, and not what is in the middle",
        "--cache-reuse = LLAMA_ARG_CACHE_REUSE",
    ),
    *_flags(
        "ignored", "a request takes the longest common beginning, of whichever slot", "-sps --slot-prompt-similarity ="
    ),
    *_flags(
        "ignored",
        "sampling is done on the CPU",
        "-bs --backend-sampling LLAMA_ARG_BACKEND_SAMPLING",
        "--spec-draft-backend-sampling --no-spec-draft-backend-sampling LLAMA_ARG_SPEC_DRAFT_BACKEND_SAMPLING",
    ),
    *_flags(
        "ignored",
        _TEXT_ONLY,
        "-mm --mmproj = LLAMA_ARG_MMPROJ",
        "-mmu --mmproj-url = LLAMA_ARG_MMPROJ_URL",
        "--mmproj-auto LLAMA_ARG_MMPROJ_AUTO",
        "--mmproj-offload --no-mmproj-offload LLAMA_ARG_MMPROJ_OFFLOAD",
        "-mmdev --mmproj-device = MTMD_BACKEND_DEVICE",
        "--image-min-tokens = LLAMA_ARG_IMAGE_MIN_TOKENS",
        "--image-max-tokens = LLAMA_ARG_IMAGE_MAX_TOKENS",
        "--mtmd-batch-max-tokens = LLAMA_ARG_MTMD_BATCH_MAX_TOKENS",
        "--video-fps = LLAMA_ARG_VIDEO_FPS",
        "--video-timestamp-interval = LLAMA_ARG_VIDEO_TIMESTAMP_INTERVAL",
        "--video-ffmpeg-dir = LLAMA_ARG_VIDEO_FFMPEG_DIR",
        "--media-path =",
    ),
    *_flags(
        "ignored",
        _OTHER_PAGE,
        "--ui-config --webui-config = LLAMA_ARG_UI_CONFIG",
        "--ui-config-file --webui-config-file = LLAMA_ARG_UI_CONFIG_FILE",
    ),
    *_flags(
        "ignored",
        _NO_TOOLS,
        "--ui-mcp-proxy --webui-mcp-proxy LLAMA_ARG_UI_MCP_PROXY",
        "--tools = LLAMA_ARG_TOOLS",
        "--tools-runtime = LLAMA_ARG_TOOLS_RUNTIME",
        "--mcp-servers-config = LLAMA_ARG_MCP_SERVERS_CONFIG",
        "--mcp-servers-json = LLAMA_ARG_MCP_SERVERS_JSON",
        "-ag --agent LLAMA_ARG_AGENT",
    ),
    *_flags(
        "ignored",
        "the template decides which reasoning of earlier turns stays",
        "--reasoning-preserve --no-reasoning-preserve LLAMA_ARG_REASONING_PRESERVE",
    ),
    *_flags("ignored", "a model stays loaded until another one needs its memory", "--sleep-idle-seconds = :-1"),
    *_flags("ignored", "prompts are not written to files", "--log-prompts-dir ="),
    *_flags("ignored", "the log has no colours", "--log-colors = :off :auto LLAMA_ARG_LOG_COLORS"),
    *_flags("ignored", "each line of the log has its level and its time", "--no-log-prefix", "--no-log-timestamps"),
    *_flags(
        "ignored",
        _DRAFT,
        "--spec-draft-type-k -ctkd --cache-type-k-draft = LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K",
        "--spec-draft-type-v -ctvd --cache-type-v-draft = LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V",
        "--spec-draft-threads -td --threads-draft =",
        "--spec-draft-threads-batch -tbd --threads-batch-draft =",
        "--spec-draft-cpu-mask -Cd --cpu-mask-draft =",
        "--spec-draft-cpu-range -Crd --cpu-range-draft =",
        "--spec-draft-cpu-strict --cpu-strict-draft =",
        "--spec-draft-prio --prio-draft =",
        "--spec-draft-poll --poll-draft =",
        "--spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft =",
        "--spec-draft-cpu-strict-batch --cpu-strict-batch-draft =",
        "--spec-draft-prio-batch --prio-batch-draft =",
        "--spec-draft-poll-batch --poll-batch-draft =",
        "--spec-draft-override-tensor -otd --override-tensor-draft =",
        "--spec-draft-cpu-moe -cmoed --cpu-moe-draft LLAMA_ARG_SPEC_DRAFT_CPU_MOE",
        "--spec-draft-n-cpu-moe --spec-draft-ncmoe -ncmoed --n-cpu-moe-draft = LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE",
        "--spec-draft-device -devd --device-draft =",
        "--spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft = LLAMA_ARG_N_GPU_LAYERS_DRAFT",
    ),
    *_flags(
        "ignored", "one draft is made at a time", "--spec-draft-p-split --draft-p-split = LLAMA_ARG_SPEC_DRAFT_P_SPLIT"
    ),
    *_flags("ignored", "one occurrence is enough", "--spec-ngram-simple-min-hits = :1"),
    # ---- what must not be ignored
    *_flags("refused", "run `pyllm list`", "-cl --cache-list"),
    *_flags("refused", "run `pyllm devices`", "--list-devices"),
    *_flags("refused", "there are no completions for shells", "--completion-bash"),
    *_flags(
        "refused",
        "the model would answer without it; in Python: pyllm.interp has steering vectors",
        "--control-vector =",
        "--control-vector-scaled =",
        "--control-vector-layer-range =",
    ),
    *_flags(
        "refused",
        _MODEL_BY_NAME,
        "-mu --model-url = LLAMA_ARG_MODEL_URL",
        "-dr --docker-repo = LLAMA_ARG_DOCKER_REPO",
        "--embd-gemma-default",
        "--fim-qwen-1.5b-default",
        "--fim-qwen-3b-default",
        "--fim-qwen-7b-default",
        "--fim-qwen-7b-spec",
        "--fim-qwen-14b-spec",
        "--fim-qwen-30b-default",
        "--gpt-oss-20b-default",
        "--gpt-oss-120b-default",
        "--vision-gemma-4b-default",
        "--vision-gemma-12b-default",
    ),
    *_flags("refused", "give the same as TOML or YAML: --config FILE", "--models-preset = LLAMA_ARG_MODELS_PRESET"),
    *_flags("refused", "texts would end all the same; a request says it: ignore_eos", "--ignore-eos"),
    *_flags(
        "refused",
        "texts would not have the form; a request says it: grammar, json_schema, response_format",
        "--grammar =",
        "--grammar-file =",
        "-j --json-schema =",
        "-jf --json-schema-file =",
    ),
    *_flags("refused", "texts would not end there; a request says it: stop", "-r --reverse-prompt ="),
    *_flags("refused", "texts would not have them: special tokens are not shown", "-sp --special"),
    *_flags("refused", "/ would be another page; serve files by a web server", "--path = LLAMA_ARG_STATIC_PATH"),
    *_flags(
        "refused",
        "reasoning that is cut off ends without a message",
        "--reasoning-budget-message = LLAMA_ARG_THINK_BUDGET_MESSAGE",
    ),
    *_flags(
        "refused",
        "chats would be parsed all the same; /v1/completions gives the text as it is",
        "--skip-chat-parsing LLAMA_ARG_SKIP_CHAT_PARSING",
    ),
    *_flags("refused", "a last message of the assistant would be continued all the same", "--no-prefill-assistant"),
    *_flags(
        "refused",
        "it makes up acceptance rates, for benchmarks of llama.cpp",
        "--spec-synth-len = LLAMA_ARG_SPEC_SYNTH_LEN",
        "--spec-synth-rates = LLAMA_ARG_SPEC_SYNTH_RATES",
    ),
    *_flags("refused", f"{_REMOVED}; give --spec-draft-n-max", "--draft-n --draft-max = LLAMA_ARG_DRAFT_MAX"),
    *_flags("refused", f"{_REMOVED}; give --spec-draft-n-min", "--draft-min --draft-n-min = LLAMA_ARG_DRAFT_MIN"),
    *_flags(
        "refused",
        f"{_REMOVED}; give the flag of a way to draft, such as --spec-ngram-mod-n-match",
        "--spec-ngram-size-n =",
        "--spec-ngram-size-m =",
        "--spec-ngram-min-hits =",
    ),
)


class _Given:
    """What a command line gave of the flags; base of :data:`AcceptedOptions`."""

    def check(self) -> list[str]:
        """Warnings, one for each flag that has no effect here.

        Raises:
            typer.BadParameter: A flag is given that must not be ignored.
        """
        warnings = []
        for flag in FLAGS:
            value = getattr(self, flag.field)
            if value in (None, False) or (flag.taken and value in flag.taken):
                continue
            name = next(name for name in flag.names if name.startswith("--"))
            # A value that was not expected says something else than what holds here.
            effect = "refused" if flag.effect == "accepted" and flag.taken else flag.effect
            if effect == "refused":
                raise typer.BadParameter(f"{name}: {flag.reason}")
            if effect == "ignored":
                warnings.append(f"{name} has no effect: {flag.reason}")
        return warnings


def _field(flag: Flag) -> tuple[str, Any, Any]:
    kind: Any = str | None if flag.takes_value else bool
    option = typer.Option(*flag.names, envvar=flag.variable, hidden=True, help=flag.reason)
    return flag.field, Annotated[kind, option], dataclasses.field(default=None if flag.takes_value else False)


AcceptedOptions: Any = dataclasses.make_dataclass(
    "AcceptedOptions", map(_field, FLAGS), bases=(_Given,), frozen=True, kw_only=True
)


__all__ = ["FLAGS", "AcceptedOptions", "Flag"]
