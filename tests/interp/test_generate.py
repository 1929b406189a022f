"""Text that is generated while hooks run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyllm import Llama, errors
from pyllm.core.model import Model
from pyllm.interp import Interp, NoActivationError
from pyllm.interp.passes import Hook

GREEDY = {"temperature": 0}


def by_hand(lab: Interp, text: str, hooks: list[Any], n: int) -> list[int]:
    """The same, computing everything anew for each token."""
    ids = lab.tokenize(text)
    found: list[int] = []
    for _ in range(n):
        token = int(lab.run_with_hooks(ids + found, hooks)[-1].argmax())
        if lab.vocab.is_eog(token):
            break
        found.append(token)
    return found


def steer(values: np.ndarray, hook: Hook) -> None:
    values += 3 * np.sin(np.arange(values.shape[-1], dtype=np.float32))


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3moe", "mamba", "jamba"])
@pytest.mark.parametrize("hooked", [False, True])
def test_it_is_the_text_of_runs_token_by_token(
    open_lab: Callable[..., Interp], text: str, arch: str, hooked: bool
) -> None:
    lab = open_lab(arch, n_ubatch=5)
    hooks = [("blocks.0.hook_resid_post", steer)] if hooked else []
    result = lab.generate(text, hooks, max_tokens=12, **GREEDY)
    assert list(result.tokens) == by_hand(lab, text, hooks, 12)
    assert result.text == lab.vocab.detokenize(result.tokens, unparse_special=False)


def test_hooks_change_the_text(lab: Interp, text: str) -> None:
    plain = lab.generate(text, max_tokens=12, **GREEDY)
    changed = lab.generate(text, [("blocks.1.hook_resid_post", steer)], max_tokens=12, **GREEDY)
    assert changed.tokens != plain.tokens
    with lab.hooks([("blocks.1.hook_resid_post", steer)]):
        assert lab.generate(text, max_tokens=12, **GREEDY).tokens == changed.tokens
    assert lab.generate(text, max_tokens=12, **GREEDY).tokens == plain.tokens


def test_without_hooks_it_is_what_a_llama_writes(lab: Interp, tiny_model: Model, text: str) -> None:
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}
    with Llama(tiny_model, n_ctx=64, n_threads=1, **exact) as llm:
        for arguments in ({"temperature": 0}, {"seed": 3, "temperature": 1.5}, {"seed": 1, "repeat_penalty": 1.5}):
            expected = llm(text, max_tokens=10, **arguments)
            found = lab.generate(text, max_tokens=10, **arguments)
            assert (found.text, found.tokens, found.finish_reason) == (
                expected.text, expected.tokens, expected.finish_reason
            )  # fmt: skip
            assert found.usage == expected.usage
            assert found.seed == arguments.get("seed", found.seed)
        stop = llm(text, max_tokens=10, **GREEDY).text[3:6]
        found = lab.generate(text, max_tokens=10, stop=stop, **GREEDY)
        assert (found.text, found.stop) == (llm(text, max_tokens=10, stop=stop, **GREEDY).text, stop)


def test_a_hook_is_told_where_it_is(lab: Interp, text: str) -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def look(values: np.ndarray, hook: Hook) -> None:
        assert values.shape == (len(hook.tokens), lab.model.n_embd) and hook.name == "blocks.0.hook_resid_post"
        seen.append((hook.positions.tolist(), hook.tokens.tolist()))

    tokens = lab.generate(text, [("blocks.0.hook_resid_post", look)], max_tokens=4, **GREEDY).tokens
    ids = lab.tokenize(text)
    n = len(ids)
    assert seen == [(list(range(n)), ids), ([n], [tokens[0]]), ([n + 1], [tokens[1]]), ([n + 2], [tokens[2]])]


def test_patterns_have_a_key_for_every_token_before(lab: Interp, text: str) -> None:
    shapes = []
    n = len(lab.tokenize(text))
    hook = ("blocks.1.attn.hook_pattern", lambda values, hook: shapes.append(values.shape))
    lab.generate(text, [hook], max_tokens=3, **GREEDY)
    assert shapes == [(4, n, n), (4, 1, n + 1), (4, 1, n + 2)]


def test_nothing_stays_behind(lab: Interp, text: str) -> None:
    before = lab.run(text)
    lab.generate(text, max_tokens=5, **GREEDY)
    assert np.array_equal(lab.run(text), before)

    def fail(values: np.ndarray, hook: Hook) -> None:
        if len(hook.tokens) == 1:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        lab.generate(text, [("blocks.0.hook_resid_post", fail)], max_tokens=5, **GREEDY)
    assert np.array_equal(lab.run(text), before)


def test_it_ends_where_the_context_does(lab: Interp, text: str) -> None:
    forbidden = dict.fromkeys(lab.vocab.eog_tokens, float("-inf"))
    result = lab.generate(text, max_tokens=None, logit_bias=forbidden, **GREEDY)
    assert len(lab.tokenize(text)) + len(result.tokens) == lab.n_ctx and result.finish_reason == "length"
    assert lab.generate(text, max_tokens=0).tokens == ()
    always = {lab.vocab.eog_tokens[0]: 1e9}
    assert lab.generate(text, max_tokens=5, logit_bias=always, **GREEDY).finish_reason == "stop"


def test_wrong_arguments(lab: Interp, open_lab: Callable[..., Interp], text: str) -> None:
    with pytest.raises(NoActivationError, match="near it are"):
        lab.generate(text, [("blocks.0.hook_resid_pots", steer)])
    with pytest.raises(errors.UnknownArgumentError, match="did you mean 'temperature'"):
        lab.generate(text, temprature=0)
    for wrong in (-1, 1.5, "5", True):
        with pytest.raises(errors.InvalidArgumentError, match="max_tokens must be"):
            lab.generate(text, max_tokens=wrong)
    with pytest.raises(errors.InvalidArgumentError):
        lab.generate([text, text])
    with pytest.raises(errors.InvalidArgumentError, match="tokens; this Interp takes"):
        lab.generate(list(range(5, 5 + lab.n_ctx + 1)))
    with pytest.raises(errors.InvalidArgumentError, match="embedding model generates no text"):
        open_lab("bert").generate(text)
