"""pyllm as a model of lm-evaluation-harness (``pip install lm-eval``).

    python -m pyllm.eval.lm_eval run --model pyllm --model_args model=smollm2,n_threads=4 --tasks hellaswag

is the harness's own program with this model known to it. In Python, importing this module is enough:

    >>> import lm_eval, pyllm.eval.lm_eval
    >>> lm_eval.simple_evaluate("pyllm", model_args="model=smollm2", tasks=["hellaswag"])

Log-likelihoods are computed in the process, in batches, logits for the continuations only; the beginnings that requests
share (a task's examples, the question of four answers) are computed once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pyllm.core.model import Model
from pyllm.errors import InvalidArgumentError
from pyllm.eval.contexts import model_of, scoring_context
from pyllm.eval.generate import Prompt, generate
from pyllm.eval.scorer import DEFAULT_N_BATCH, DEFAULT_N_SEQ, Scorer
from pyllm.eval.windows import padded
from pyllm.params import ContextParams, ModelParams, SamplingParams, given, split_arguments
from pyllm.sampling import build_chain, new_seed

NAME = "pyllm"
DEFAULT_MAX_LENGTH = 4096
DEFAULT_BATCH_SIZE = 16
_IGNORED_GENERATION_ARGUMENTS = {"until", "max_gen_toks", "do_sample"}


class PyllmLM(TemplateLM):  # type: ignore[misc]
    """A GGUF model for lm-evaluation-harness.

    Args:
        model: An alias ("smollm2"), the path of a GGUF file, or a :class:`pyllm.core.model.Model`, which stays open.
        max_length: Most tokens of a request; a longer context loses its beginning, as with the harness's other
            models. None: the length the model was trained with, at most 4096.
        max_gen_toks: Tokens to generate where the task does not say.
        batch_size: How many requests are generated at once; "auto" is 16. Log-likelihoods fill their batches by
            themselves.
        add_bos_token: Whether BOS stands before every text. None: if the model wants it.
        seed: For tasks that sample. None: a random one.
        device: Not used; say ``n_gpu_layers`` or ``devices`` instead. The harness's program names "cuda:0" unless told
            otherwise, which is let pass.
        max_batch_size: Not used.
        **params: Every argument of :class:`pyllm.core.model.Model` and :class:`pyllm.core.context.Context`, e.g.
            ``n_threads=4``.

    Raises:
        UnknownArgumentError: A keyword exists in neither.
        InvalidArgumentError: The model is an encoder; or another device was named.
    """

    def __init__(
        self,
        model: str | Path | Model = "smollm2",
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        add_bos_token: bool | None = None,
        seed: int | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        **params: Any,
    ) -> None:
        super().__init__()
        if device not in (None, "cuda:0"):
            raise InvalidArgumentError(
                f"device={device!r} means nothing to llama.cpp; use n_gpu_layers=… or devices=… in model_args"
            )
        of_model, of_context = split_arguments(params, "--model pyllm", ModelParams, ContextParams)
        if isinstance(model, Model):
            if of_model:
                raise InvalidArgumentError(f"the model is loaded already; {', '.join(of_model)} would do nothing")
            self.model = model
        else:
            from pyllm import hub

            self.model = Model(hub.resolve(model), **given(ModelParams(**of_model)))
        self.vocab = model_of(self.model).vocab
        self.context_arguments = given(ContextParams(**of_context))
        self.max_length = max_length or min(self.model.n_ctx_train or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
        self.max_gen_toks = max_gen_toks
        chosen = DEFAULT_BATCH_SIZE if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        # A batch size of 1 is the harness's default, and would be slow for nothing.
        self.batch_size = chosen if chosen > 1 else DEFAULT_BATCH_SIZE
        self.add_bos = self.vocab.add_bos if add_bos_token is None else add_bos_token
        self.seed = seed

    # ---- tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        for token in (self.vocab.eos, self.vocab.eot):
            if token is not None:
                return token
        raise InvalidArgumentError("this model has no token that ends a text")

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context: BOS, or else the one that ends texts."""
        return self.vocab.bos if self.vocab.bos is not None else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text; BOS before it if `add_special_tokens` (None: if the model wants it), never twice."""
        tokens = self.vocab.tokenize(string, add_special=False, parse_special=True)
        bos = self.vocab.bos if (self.add_bos if add_special_tokens is None else add_special_tokens) else None
        return [bos, *tokens] if bos is not None and tokens[:1] != [bos] else tokens

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of tokens."""
        return self.vocab.detokenize(tokens, unparse_special=not skip_special_tokens)

    # ---- what tasks ask for

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        sequences = []
        for _, context, continuation in requests:
            tokens = np.array([*context, *continuation][-(self.max_length + 1) :], np.int32)
            sequences.append((tokens, len(tokens) - len(continuation)))
        results = [(score.logprob, score.is_greedy) for score in self._score(sequences)]
        for (key, _, _), result in zip(requests, results, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows where they are longer than ``max_length``."""
        sequences, owners = [], []
        for i, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                sequences.append((np.array([*context, *continuation], np.int32), len(context)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self._score(sequences), strict=True):
            totals[owner] += score.logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, several at once."""
        prompts = [self._prompt(*request.args) for request in requests]
        if not prompts:
            return []
        longest = max(len(prompt.tokens) + prompt.max_tokens for prompt in prompts)
        n_seq = min(self.batch_size, len(prompts))
        with scoring_context(
            self.model, n_seq * padded(longest), self.context_arguments, n_seq_max=n_seq, kv_unified=False
        ) as context:
            texts = generate(context, prompts)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _score(self, sequences: list[Any]) -> list[Any]:
        # Made anew for each kind of request: a context is cheap beside what it is made for.
        suited = {"n_batch": DEFAULT_N_BATCH, "n_seq_max": max(1, min(DEFAULT_N_SEQ, len(sequences)))}
        longest = max((len(tokens) - 1 for tokens, _ in sequences), default=1)
        with Scorer(self.model, n_ctx=max(1, longest), **{**suited, **self.context_arguments}) as scorer:
            return scorer.score_tokens(sequences)

    def _prompt(self, text: str, arguments: dict[str, Any]) -> Prompt:
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(arguments, self.max_gen_toks))
        max_tokens = wanted["max_gen_toks"]
        room = self.max_length - max_tokens
        if room < 1:
            raise InvalidArgumentError(
                f"max_gen_toks={max_tokens} leaves no room for a prompt in max_length={self.max_length}"
            )
        chosen = {key: value for key, value in wanted.items() if key not in _IGNORED_GENERATION_ARGUMENTS}
        params = SamplingParams(
            **{"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": self.seed, **_renamed(chosen)}
        )
        sampler = build_chain(params, self.vocab, new_seed() if params.seed is None else params.seed)
        tokens = self.tok_encode(text)[-room:] or [self.prefix_token_id]
        return Prompt(np.array(tokens, np.int32), sampler, max_tokens, tuple(stop for stop in wanted["until"] if stop))

    # ---- chats

    @property
    def tokenizer_name(self) -> str:
        """What distinguishes this model's templates from another's in the harness's caches."""
        return Path(self.model.path).name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Source of the model's chat template: True takes the default one, a text that of this name."""
        if chat_template is False or chat_template is None:
            return None
        return self._template(None if chat_template is True else chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as one text, by the model's own template, which jinja2 renders as transformers does.

        llama.cpp's own engine has no part in it: jinja2 comes with the harness.

        Raises:
            InvalidArgumentError: The model has none, or the template refuses the messages.
        """
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = time.strftime
        try:
            return environment.from_string(self._template(None)).render(
                messages=chat_history,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._text(self.vocab.bos),
                eos_token=self._text(self.vocab.eos),
            )
        except TemplateError as error:
            raise InvalidArgumentError(f"the chat template of {self.model.path!r} failed: {error}") from error

    def _template(self, name: str | None) -> str:
        template = self.model.chat_template(name)
        if template is None:
            which = "" if name is None else f" named {name!r}"
            raise InvalidArgumentError(f"{self.model.path!r} has no chat template{which}")
        return template

    def _text(self, token: int | None) -> str:
        return "" if token is None else self.vocab.text(token)


def _renamed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Sampling arguments under our names; one that is not known is refused."""
    names = {"repetition_penalty": "repeat_penalty"}
    known = set(SamplingParams.__dataclass_fields__)
    found = {}
    for key, value in arguments.items():
        name = names.get(key, key)
        if value is None:
            continue
        if name not in known:
            raise InvalidArgumentError(f"the task asks for {key}={value!r}, which pyllm does not have")
        found[name] = value
    return found


def register() -> None:
    """Make the name "pyllm" known to the harness; importing this module does it."""
    if NAME not in model_registry:
        model_registry.register(NAME, target="pyllm.eval.lm_eval:PyllmLM")


def main() -> None:
    """The harness's program, with ``--model pyllm``."""
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


register()

if __name__ == "__main__":
    main()
