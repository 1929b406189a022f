"""The arguments of a completion, checked before anything is computed."""

from __future__ import annotations

import contextlib
import functools
import numbers
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllm.completion.beam_params import DEFAULTS as BEAM_DEFAULTS
from pyllm.completion.beam_params import beam_params, check_request
from pyllm.completion.overflow import ENDLESS, Overflow
from pyllm.core.sampler import Chain, Sampler
from pyllm.core.text_stream import TextStream
from pyllm.core.vocab import Vocab
from pyllm.errors import InvalidArgumentError, PromptTooLongError
from pyllm.params import SamplingParams, field_names, unknown_argument
from pyllm.processors.base import as_processors
from pyllm.sampling import build_chain, new_seed

if TYPE_CHECKING:
    from pyllm.completion.host import GenerationHost, Tokens
    from pyllm.structured import Form

StoppingCriterion = Callable[[NDArray[np.int32], NDArray[np.float32]], object]

_N_SEEDS = 2**32 - 1
_DEFAULTS: dict[str, Any] = {
    "max_tokens": None,
    "stop": None,
    "echo": False,
    "logprobs": None,
    "n": 1,
    "best_of": None,
    "suffix": None,
    "spm_infill": False,
    "logits_processor": None,
    "stopping_criteria": None,
    "sampler": None,
    "cache_prompt": None,
    "json_schema": None,
    "response_format": None,
    "regex": None,
    "choices": None,
    "special": False,
    "speculative": None,
    "overflow": "error",
    "n_keep": None,
    "num_return_sequences": None,
    **BEAM_DEFAULTS,
}


def argument_names() -> list[str]:
    """Names of all arguments of a completion."""
    return [*field_names(SamplingParams), *_DEFAULTS]


class CompletionRequest:
    """What a call asks for.

    Args:
        host: The Llama or the Engine that it asks.
        prompt: Text or token ids.
        arguments: See :meth:`pyllm.Llama.create_completion`.

    Raises:
        InvalidArgumentError: The prompt does not fit the context, or an argument is out of range.
        UnknownArgumentError: There is no such argument.
    """

    def __init__(self, host: GenerationHost, prompt: str | bytes | Tokens, arguments: dict[str, Any]) -> None:
        known = field_names(SamplingParams)
        for name in arguments:
            if name not in known and name not in _DEFAULTS:
                raise unknown_argument(name, [*known, *_DEFAULTS, "stream"], "a call of Llama")
        sampling = {name: value for name, value in arguments.items() if name in known}
        own = {**_DEFAULTS, **{name: value for name, value in arguments.items() if name in _DEFAULTS}}

        self.beams = beam_params(own, sampling)
        self.form = _form(sampling, own)
        self.sampler: Sampler | None = own["sampler"]
        if self.sampler is not None and sampling:
            raise InvalidArgumentError(
                f"a sampler was given, which would leave {', '.join(sorted(sampling))} without effect; "
                "put such samplers into its chain instead"
            )
        self.vocab = host.vocab
        self.params = SamplingParams(**sampling)
        seed = self.params.seed if self.params.seed is not None else host.seed
        self.seed = new_seed() if seed is None else seed
        self.max_tokens = _max_tokens(own["max_tokens"])
        self.stop = _stop(own["stop"])
        self.echo = bool(own["echo"])
        special = own["special"]
        self.special: bool | tuple[int, ...] = (
            special if isinstance(special, bool) else tuple(host.vocab.as_token_array(special).tolist())
        )
        self.processors = as_processors(own["logits_processor"])
        self.stopping_criteria = _criteria(own["stopping_criteria"])
        # Prompts that are computed in other portions are rounded otherwise: by default nobody must be able to tell.
        greedy = self.params.temperature == 0 or self.beams is not None
        repeatable = seed is not None or greedy or self.sampler is not None
        wanted: bool | None = host.cache_prompt if own["cache_prompt"] is None else own["cache_prompt"]
        self.cache_prompt = not repeatable if wanted is None else bool(wanted)
        self.logprobs: int | None = own["logprobs"]
        if self.logprobs is not None:
            _check_count("logprobs", self.logprobs, 0, len(host.vocab))
        most = None if self.beams is None else self.beams.num_beams
        self.n: int = _check_count(*_number_of_texts(own), 1, most)
        self.best_of: int = self.n if own["best_of"] is None else _check_count("best_of", own["best_of"], self.n, None)
        if self.best_of > 1 and self.sampler is not None:
            raise InvalidArgumentError("several texts need a seed for each: describe the sampler by arguments instead")

        with _encoded("the prompt"):
            ids = _prompt_ids(host, prompt, own["suffix"], own["spm_infill"])
        self.overflow = Overflow(host.context, own["overflow"], own["n_keep"])
        self.ids = self.overflow.fit(ids, self.max_tokens)
        if own["suffix"] is not None and len(self.ids) < len(ids):
            raise InvalidArgumentError(
                f"prompt and suffix are {len(ids)} tokens and the context has room for {len(self.ids)} of them; "
                f"overflow={self.overflow.rule!r} would cut off the tokens that say what is which: shorten them"
            )
        # Beams branch at every token: nothing is drafted for them.
        self.speculation = None if self.beams is not None else host.speculation_params(own["speculative"])
        self.room = _room(host, len(self.ids))
        if self.beams is not None:
            check_request(self.beams, self.limit, self.processors, host.model)
        self.prompt_text = _prompt_text(host, prompt, self.ids) if self.echo else ""
        with _encoded("a parameter of sampling"):
            self.first_chain = self.chain(0) if self.sampler is None else None  # its errors are raised now
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = os.path.basename(host.model.path)

    @property
    def limit(self) -> int:
        """Tokens that can be generated: the last one need not be decoded."""
        most = ENDLESS if self.overflow.rule == "shift" else self.room + 1
        return most if self.max_tokens is None else min(self.max_tokens, most)

    @property
    def records(self) -> int | None:
        """How many of the likeliest tokens to note beside each; None: nothing is noted."""
        if self.logprobs is None and self.best_of > self.n:
            return 0
        return self.logprobs

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are asked for."""
        return self.echo and self.logprobs is not None

    def parser(self, text: str, *, complete: bool) -> Callable[[], Any] | None:
        """What makes the value that a text stands for; None where there is none, or the model has not ended it."""
        if self.form is None or self.form.parser is None or not complete:
            return None
        return functools.partial(self.form.parse, text[len(self.prompt_text) :])

    def seed_of(self, index: int) -> int:
        """The seed of one of the texts."""
        return (self.seed + index) % _N_SEEDS

    def chain(self, index: int) -> Chain:
        """The samplers of one of the texts."""
        return build_chain(self.params, self.vocab, self.seed_of(index))


def _form(sampling: dict[str, Any], own: dict[str, Any]) -> Form | None:
    """The form that the text must have; its grammar becomes one of the arguments of sampling."""
    asked = {name: own[name] for name in ("json_schema", "response_format", "regex", "choices")}
    if all(value is None for value in asked.values()):
        return None
    from pyllm.structured import form_of  # only here: most texts have none

    form = form_of(grammar=sampling.get("grammar"), **asked)
    if form is not None:
        sampling["grammar"] = form.grammar
    return form


def _max_tokens(value: int | None) -> int | None:
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise InvalidArgumentError(
            f"max_tokens must be at least 0, or None or -1 for no limit, not {value!r}", param="max_tokens"
        )
    return int(value)


def _number_of_texts(own: dict[str, Any]) -> tuple[str, Any]:
    """How many texts are asked for, and the name of the argument that says it: transformers has another one."""
    if own["num_return_sequences"] is None:
        return "n", own["n"]
    if own["n"] not in (1, own["num_return_sequences"]):
        raise InvalidArgumentError(
            f"n={own['n']!r} and num_return_sequences={own['num_return_sequences']!r} are two names of one number: "
            "give one of them",
            param="n",
        )
    return "num_return_sequences", own["num_return_sequences"]


def _check_count(name: str, value: Any, low: int, high: int | None) -> int:
    accepted = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not accepted or value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidArgumentError(f"{name} must be an integer, {limits}, not {value!r}", param=name)
    return int(value)


def _criteria(value: Any) -> list[StoppingCriterion]:
    if value is not None and not callable(value) and not isinstance(value, Iterable):
        raise InvalidArgumentError(
            f"stopping_criteria must be a function or several, not {value!r}", param="stopping_criteria"
        )
    criteria = [] if value is None else [value] if callable(value) else list(value)
    for criterion in criteria:
        if not callable(criterion):
            raise InvalidArgumentError(f"a stopping criterion must be callable, not {criterion!r}")
    return criteria


def _stop(value: Any) -> tuple[str | bytes, ...]:
    stop = () if value is None else (value,) if isinstance(value, (str, bytes)) else value
    if not isinstance(stop, Iterable):
        raise InvalidArgumentError(f"stop must be a text or a list of texts, not {value!r}", param="stop")
    result = tuple(stop)
    with _encoded("stop"):
        TextStream(result)  # its errors are raised now
    return result


@contextlib.contextmanager
def _encoded(what: str) -> Iterator[None]:
    """Text that cannot be encoded is the caller's mistake."""
    try:
        yield
    except UnicodeEncodeError as cause:
        raise InvalidArgumentError(f"{what} holds half of a surrogate pair, which is no character: {cause}") from None


def _prompt_ids(
    host: GenerationHost, prompt: str | bytes | Tokens, suffix: Any, suffix_first: Any
) -> NDArray[np.int32]:
    if suffix_first and suffix is None:
        raise InvalidArgumentError("spm_infill=True would have no effect: it belongs to a suffix", param="spm_infill")
    if suffix is not None:
        if not isinstance(prompt, (str, bytes)) or not isinstance(suffix, (str, bytes)):
            raise InvalidArgumentError("with a suffix, prompt and suffix must be texts")
        ids = infill_prompt(host.vocab, prompt, suffix, suffix_first=bool(suffix_first))
    elif isinstance(prompt, (str, bytes)):
        ids = host.vocab.tokenize_array(prompt, add_special=True, parse_special=True)
    else:
        ids = host.vocab.as_token_array(prompt)
    if len(ids) == 0:
        raise InvalidArgumentError("the prompt is empty, and this model has no token to begin a text with")
    return ids


def _room(host: GenerationHost, n_prompt: int) -> int:
    n_ctx = host.context.n_ctx_seq
    if n_prompt > n_ctx:
        raise PromptTooLongError(
            f"the prompt has {n_prompt} tokens and the context holds n_ctx={n_ctx}; "
            "shorten it, or make the Llama with a larger n_ctx",
            n_tokens=n_prompt,
            n_ctx=n_ctx,
        )
    # An encoder-decoder's answer begins with a token of its own.
    return n_ctx - 1 if host.model.has_encoder else n_ctx - n_prompt


def _prompt_text(host: GenerationHost, prompt: Any, ids: NDArray[np.int32]) -> str:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, bytes):
        return prompt.decode("utf-8", "replace")
    return host.vocab.detokenize(ids, unparse_special=True)


def infill_prompt(
    vocab: Vocab, prefix: str | bytes, suffix: str | bytes, *, suffix_first: bool = False
) -> NDArray[np.int32]:
    """The tokens after which a model writes what belongs between two texts.

    Control tokens do not count in them: code may contain their names.

    Args:
        vocab: The tokenizer of the model.
        prefix: The text before the gap.
        suffix: The text behind it.
        suffix_first: Put the suffix before the prefix, for models that were trained so. Some of them, such as
            Codestral, have no token for the middle: it follows the prefix then.

    Raises:
        InvalidArgumentError: The model has no such tokens.
    """
    tokens = {"prefix": vocab.fim_pre, "suffix": vocab.fim_suf, "middle": vocab.fim_mid}
    missing = [name for name, token in tokens.items() if token is None and not (name == "middle" and suffix_first)]
    if missing:
        hint = "call it without suffix"
        if missing == ["middle"]:
            hint += ", or with spm_infill=True if it was trained to see the suffix before the prefix"
        raise InvalidArgumentError(f"this model cannot fill in: it has no tokens for {', '.join(missing)}; {hint}")
    before = [vocab.fim_pre, *vocab.tokenize(prefix, add_special=False)]
    behind = [vocab.fim_suf, *vocab.tokenize(suffix, add_special=False)]
    begin = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    end = [] if vocab.fim_mid is None else [vocab.fim_mid]
    parts = [*behind, *before] if suffix_first else [*before, *behind]
    return np.array([*begin, *parts, *end], np.int32)
