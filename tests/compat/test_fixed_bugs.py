"""What is wrong in llama-cpp-python 0.3.36, and right here."""

from __future__ import annotations

import json
import logging
import threading

import numpy as np
import pytest
from support import isolation

from pyllm import errors
from pyllm.compat import llama_cpp
from pyllm.compat.llama_cpp import (
    Llama,
    LlamaDiskCache,
    LlamaGrammar,
    LlamaPromptLookupDecoding,
    LlamaRAMCache,
    LogitsProcessorList,
    StoppingCriteriaList,
)

PROMPT = "the number of the people"


def text_of(result) -> str:
    return result["choices"][0]["text"]


@pytest.mark.model
def test_detokenize_gives_every_byte_back(make, smollm2_path):
    llm = make(smollm2_path)
    longest = max(llm.llm.vocab.pieces(), key=len)
    for text in (b"def f():\n" + 120 * b" " + b"return 1\n" + 32 * b"\n", b"=" * 100, longest * 3, "naïve 🙂".encode()):
        assert llm.detokenize(llm.tokenize(text, add_bos=False)) == text


@pytest.mark.parametrize("logits_all", [False, True])
def test_stopping_criteria_see_the_newest_token_and_its_row(make, logits_all):
    llm = make(logits_all=logits_all)
    seen = []

    def criterion(ids, logits):
        seen.append((ids.tolist(), int(np.argmax(logits)), logits.shape))
        return len(seen) == 3

    prompt = llm.tokenize(PROMPT.encode(), special=True)
    result = llm(PROMPT, temperature=0, max_tokens=20, stopping_criteria=StoppingCriteriaList([criterion]))
    assert result["usage"]["completion_tokens"] == 3
    for n, (ids, best, shape) in enumerate(seen, 1):
        assert len(ids) == len(prompt) + n
        assert ids[-1] == best
        assert shape == (llm.n_vocab(),)
    del seen[:]
    tokens = list(llm.generate(prompt, temp=0, stopping_criteria=StoppingCriteriaList([criterion])))
    assert [ids[-1] for ids, _, _ in seen] == tokens == [best for _, best, _ in seen]


def test_processor_and_bias_together(llm):
    calls = []

    def processor(ids, scores):
        calls.append(len(ids))
        scores[best] -= 1000
        return scores

    llm.eval(llm.tokenize(PROMPT.encode(), special=True))
    order = np.argsort(-llm.scores[-1])
    best, second, third = order[:3].tolist()
    processors = LogitsProcessorList([processor])
    prompt = llm.n_tokens
    llm(PROMPT, temperature=0, max_tokens=2, logits_processor=processors, logit_bias={second: -1000.0})
    assert calls == [prompt, prompt + 1]
    assert len(processors) == 1
    assert llm.input_ids[prompt] == third


def test_prompt_lookup_with_more_than_a_batch(make):
    plain = make(n_ctx=512, n_batch=32)
    quick = make(n_ctx=512, n_batch=32, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=8))
    prompt = (PROMPT + ". ") * 12
    assert len(plain.tokenize(prompt.encode())) > 2 * 32
    expected = plain(prompt, temperature=0, max_tokens=60)
    assert text_of(quick(prompt, temperature=0, max_tokens=60)) == text_of(expected)
    ids = plain.tokenize(prompt.encode(), special=True)
    one, other = plain.generate(ids, temp=0), quick.generate(ids, temp=0)
    assert [next(one) for _ in range(40)] == [next(other) for _ in range(40)]


def test_states_hold_no_junk_and_caches_count_everything(llm, tmp_path):
    llm(PROMPT, max_tokens=8, temperature=0)
    state = llm.save_state()
    used = llm.llm.context.state.size(0)
    assert state.llama_state_size <= used + 4096
    assert state.scores.nbytes <= 4 * llm.n_vocab()
    for cache in (LlamaRAMCache(2 * state.nbytes), LlamaDiskCache(tmp_path / "states", 3 * state.nbytes)):
        llm.set_cache(cache)
        for i in range(6):
            llm(f"{i} is the number", max_tokens=4, temperature=0)
            assert 0 < cache.cache_size <= cache.capacity_bytes


def test_no_seed_is_random_and_zero_is_a_seed(make):
    def texts(**arguments):
        llm = make(**arguments)
        return [text_of(llm(PROMPT, max_tokens=12, temperature=1.5, top_k=0, top_p=1, min_p=0)) for _ in range(2)]

    assert len({text for arguments in ({}, {"seed": -1}, {}) for text in texts(**arguments)}) == 6
    assert texts(seed=0) == texts(seed=0)
    assert texts(seed=0) != texts(seed=1)
    llm = make()
    args = dict(max_tokens=12, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0)
    assert text_of(llm(PROMPT, seed=0, **args)) == text_of(llm(PROMPT, seed=0, **args))
    assert text_of(llm(PROMPT, seed=-1, **args)) != text_of(llm(PROMPT, seed=-1, **args))


def test_exceptions_of_processors_arrive(llm):
    def processor(ids, scores):
        raise ZeroDivisionError("of mine")

    with pytest.raises(ZeroDivisionError, match="of mine"):
        llm(PROMPT, max_tokens=4, logits_processor=LogitsProcessorList([processor]))
    with pytest.raises(ZeroDivisionError, match="of mine"):
        llm(PROMPT, max_tokens=4, stopping_criteria=StoppingCriteriaList([processor]))
    with pytest.raises(ZeroDivisionError, match="of mine"):
        next(llm.generate(llm.tokenize(b"the"), logits_processor=LogitsProcessorList([processor])))
    assert text_of(llm(PROMPT, max_tokens=4, temperature=0))


def test_three_threads(llm):
    prompts = ["the number", "and the time", "more people"]
    expected = [text_of(llm(prompt, max_tokens=16, temperature=0)) for prompt in prompts]
    got: list[list[str]] = [[], [], []]
    errors_seen: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for _ in range(3):
                got[i].append(text_of(llm(prompts[i], max_tokens=16, temperature=0)))
                llm.embed(prompts[i])
        except BaseException as error:
            errors_seen.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors_seen == []
    assert got == [[text] * 3 for text in expected]


def test_after_close_everything_is_an_error(make):
    llm = make()
    llm.eval(llm.tokenize(PROMPT.encode()))
    scores = llm.scores
    before = scores.copy()
    llm.close()
    llm.close()
    assert np.array_equal(scores, before)
    for call in (
        lambda: llm(PROMPT),
        lambda: llm.eval([1]),
        lambda: llm.sample(),
        lambda: llm.tokenize(b"a"),
        lambda: llm.detokenize([1]),
        lambda: llm.embed("a"),
        lambda: llm.save_state(),
        lambda: llm.create_chat_completion([{"role": "user", "content": "a"}]),
        lambda: llm.ctx,
        lambda: next(llm.generate([1])),
    ):
        with pytest.raises(errors.ClosedError):
            call()


def test_verbose_shows_the_log(make, caplog, capsys):
    logger = logging.getLogger("pyllm.llama")
    before = list(logger.handlers), logger.level
    try:
        make()
        assert capsys.readouterr().err == ""
        make(verbose=True)
        assert "llama" in capsys.readouterr().err
    finally:
        logger.handlers[:], level = before
        logger.setLevel(level)


def test_errors_have_llama_cpps_words(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(errors.ModelLoadError) as caught:
        Llama(str(path))
    assert caught.value.log


def test_suffix_goes_by_the_models_own_tokens(llm):
    vocab = llm.llm.vocab
    llm("before", suffix="after", max_tokens=4, temperature=0)
    ids = llm.input_ids.tolist()
    assert vocab.fim_pre in ids
    assert ids.index(vocab.fim_suf) < ids.index(vocab.fim_mid)


@pytest.mark.model
def test_suffix_needs_a_model_for_it(make, smollm2_path):
    with pytest.raises(errors.InvalidArgumentError, match="cannot fill in"):
        make(smollm2_path)(PROMPT, suffix="after", max_tokens=4)


def test_penalties_look_at_the_prompt(llm):
    ids = llm.tokenize(PROMPT.encode(), special=True)
    llm.eval(ids)
    while (best := int(np.argmax(llm.scores[-1]))) not in ids:
        ids.append(best)
        llm.eval([best])
    assert llm.sample(temp=0) == best
    assert llm.sample(temp=0, repeat_penalty=1e4) not in ids
    llm(ids, max_tokens=2, temperature=0)
    assert llm.input_ids[len(ids)] == best
    llm(ids, max_tokens=2, temperature=0, repeat_penalty=1e4)
    assert llm.input_ids[len(ids)] not in ids


def test_json_schema_is_followed(llm):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    for form in (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        {"type": "json_object", "schema": schema},
    ):
        result = llm.create_chat_completion(
            [{"role": "user", "content": "a number"}], response_format=form, max_tokens=100, seed=1
        )
        message = result["choices"][0]["message"]["content"]
        if result["choices"][0]["finish_reason"] == "stop":
            assert isinstance(json.loads(message)["n"], int)
        else:
            assert message.lstrip().startswith("{")


def test_a_schema_that_cannot_be_followed_is_an_error():
    with pytest.raises((errors.GrammarError, errors.InvalidArgumentError)):
        LlamaGrammar.from_json_schema('{"type": "nonsense"}')
    with pytest.raises(errors.GrammarError):
        LlamaGrammar.from_string("root ::= (")


def test_going_back_forgets_what_was_there(make):
    llm, fresh = make(logits_all=True), make(logits_all=True)
    ids = llm.tokenize(PROMPT.encode())
    llm.eval(ids)
    llm.n_tokens = 2
    llm.eval(ids[4:])
    fresh.eval([*ids[:2], *ids[4:]])
    assert llm.input_ids.tolist() == fresh.input_ids.tolist()
    assert np.allclose(llm.scores, fresh.scores, atol=1e-3)
    with pytest.raises(errors.InvalidArgumentError):
        llm.n_tokens = 1000


def test_pictures_are_refused_by_name():
    with pytest.raises(ImportError, match="pictures"):
        from pyllm.compat.llama_cpp.llama_chat_format import Llava15ChatHandler  # noqa: F401


def test_a_constructor_that_fails_leaves_nothing(tmp_path):
    isolation.survive(
        """
import gc, sys
from pyllm.compat.llama_cpp import Llama
for make in (lambda: Llama(), lambda: Llama(sys.argv[1]), lambda: Llama(sys.argv[1], n_gpu_layer=1)):
    try:
        make()
    except (TypeError, OSError):
        gc.collect()
    else:
        raise AssertionError("no error")
""",
        tmp_path / "missing.gguf",
    )


def test_defaults_serve(tiny_models):
    with Llama(str(tiny_models["llama"])) as llm:
        assert llm.n_ctx() == 512  # what the model was trained with, and not a number for all models
        from pyllm.cpus import usable_cpus

        assert llm.llm.context.n_threads <= usable_cpus()


@pytest.mark.parametrize(("name", "near"), [("n_gpu_layer", "n_gpu_layers"), ("flash_attention", "flash_attn")])
def test_unknown_arguments_are_errors(tiny_models, name, near):
    with pytest.raises(TypeError, match=near):
        Llama(str(tiny_models["llama"]), **{name: 1})


def test_unknown_arguments_of_calls_are_errors(llm):
    with pytest.raises(TypeError, match="max_tokens"):
        llm(PROMPT, max_token=4)
    with pytest.raises(TypeError, match="temperature"):
        llm.create_chat_completion([{"role": "user", "content": "a"}], temprature=1)


def test_arguments_without_a_meaning(make):
    make(n_parts=-1, f16_kv=True, lora_base=None)  # as LangChain hands them over
    with pytest.warns(UserWarning, match="n_parts"):
        make(n_parts=2)
    make(callback_manager=None)
    # LangChain's LlamaCpp knows it no more, and hands it over with the rest.
    with pytest.warns(UserWarning, match="callbacks="):
        make(callback_manager=object())
    llm = make()
    with pytest.warns(UserWarning, match="tfs_z"):
        llm(PROMPT, max_tokens=1, tfs_z=0.5)


def test_numa(tiny_models):
    isolation.survive(
        """
import sys
from pyllm.compat.llama_cpp import Llama
with Llama(sys.argv[1], numa=True, n_ctx=64, n_threads=1) as llm:
    assert llm("the", max_tokens=2)["choices"]
for numa in (5, -1, "all"):
    try:
        Llama(sys.argv[1], numa=numa)
    except ValueError as error:
        assert "numa must be" in str(error)
    else:
        raise AssertionError(numa)
""",
        tiny_models["llama"],
    )


def test_nothing_is_printed(capfd, make):
    llm = make()
    llm(PROMPT, max_tokens=4)
    llm.set_cache(LlamaRAMCache())
    llm(PROMPT, max_tokens=4)
    llm(PROMPT, max_tokens=4)
    assert capfd.readouterr() == ("", "")


def test_a_large_context_costs_no_rows_of_logits(make):
    llm = make(n_ctx=512, logits_all=True)
    assert llm.scores.nbytes == 0
    llm.eval(llm.tokenize(PROMPT.encode()))
    assert llm.scores.shape == (llm.n_tokens, llm.n_vocab())


def test_constants():
    assert llama_cpp.LLAMA_POOLING_TYPE_MEAN == 1
    assert llama_cpp.LLAMA_SPLIT_MODE_LAYER == 1
    assert llama_cpp.llama_cpp.GGML_TYPE_Q8_0 == 8
    assert llama_cpp.LLAMA_TOKEN_ATTR_CONTROL == 8
