"""pyllm.Llama: text in, text out, on the real model."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from pyllm import Chain, Llama, Model, errors
from pyllm.core.samplers import Dist, Greedy, Temp
from pyllm.llama import StreamOpenError

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def llm(smollm2_path):
    with Llama(smollm2_path, n_ctx=256, n_threads=2) as llm:
        yield llm


def test_a_known_fact(llm):
    assert llm(PROMPT, max_tokens=3, temperature=0).text == " Paris.\n"


def test_what_a_completion_holds(llm):
    completion = llm(PROMPT, max_tokens=5, temperature=0)
    assert completion.finish_reason == "length"
    assert completion.usage.prompt_tokens == len(llm.tokenize(PROMPT))
    assert completion.usage.completion_tokens == len(completion.tokens) == 5
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 5
    assert llm.detokenize(completion.tokens) == completion.text == str(completion)
    assert completion.timings.prompt_ms > 0
    assert completion.timings.tokens_per_second > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        completion.text = "other"


def test_stream_equals_call(llm):
    whole = llm(PROMPT, max_tokens=24, seed=7)
    chunks = list(llm.stream(PROMPT, max_tokens=24, seed=7))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk.tokens for chunk in chunks), ()) == whole.tokens
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].completion == whole
    assert tuple(llm.generate(PROMPT, max_tokens=24, seed=7)) == whole.tokens


def test_the_model_ends_its_answer(llm):
    prompt = "<|im_start|>user\nSay only: yes<|im_end|>\n<|im_start|>assistant\n"
    completion = llm(prompt, max_tokens=200, temperature=0)
    assert completion.finish_reason == "stop" and completion.stop is None
    assert not any(llm.vocab.is_eog(token) for token in completion.tokens)


def test_tokens_as_prompt_give_the_same_text(llm):
    ids = llm.tokenize(PROMPT)
    assert isinstance(ids, list)
    expected = llm(PROMPT, max_tokens=4, temperature=0).text
    assert llm(ids, max_tokens=4, temperature=0).text == expected
    assert llm(np.array(ids, np.int64), max_tokens=4, temperature=0).text == expected


class TestSeeds:
    def test_same_seed_same_text(self, llm):
        assert llm(PROMPT, max_tokens=16, seed=3) == llm(PROMPT, max_tokens=16, seed=3)

    def test_none_is_random_and_reported(self, llm):
        first, second = (llm(PROMPT, max_tokens=16, temperature=2.0) for _ in range(2))
        assert first.seed != second.seed and first.text != second.text
        assert llm(PROMPT, max_tokens=16, temperature=2.0, seed=first.seed) == first

    def test_zero_is_a_seed(self, llm):
        assert llm(PROMPT, max_tokens=12, seed=0) == llm(PROMPT, max_tokens=12, seed=0)
        assert llm(PROMPT, max_tokens=12, seed=0).seed == 0

    def test_seed_of_the_llama(self, smollm2_path):
        with Model(smollm2_path) as model, Llama(model, n_ctx=64, seed=5) as seeded:
            assert seeded(PROMPT, max_tokens=8).seed == 5
            assert seeded(PROMPT, max_tokens=8, seed=6).seed == 6


class TestStop:
    def test_text_ends_before_it(self, llm):
        completion = llm("1, 2, 3,", max_tokens=40, temperature=0, stop="7")
        assert completion.text == " 4, 5, 6, "
        assert completion.finish_reason == "stop" and completion.stop == "7"

    def test_the_earliest_of_several_wins(self, llm):
        completion = llm("1, 2, 3,", max_tokens=40, temperature=0, stop=["9", "6", "7"])
        assert completion.text.endswith("5, ") and completion.stop == "6"

    @pytest.mark.parametrize("stop", [", 7", " 6, 7, 8", "5, 6, 8", "6, 7, 9, 10"])
    def test_no_part_of_it_leaks_into_the_stream(self, llm, stop):
        text, full = "", llm("1, 2, 3,", max_tokens=24, temperature=0).text
        expected = full.split(stop)[0] if stop in full else full
        for chunk in llm.stream("1, 2, 3,", max_tokens=24, temperature=0, stop=stop):
            text += chunk.text
            assert expected.startswith(text)
        assert text == expected

    def test_it_must_be_text(self, llm):
        for stop in ("", [""], [3], b""):
            if not stop:
                continue
            with pytest.raises(errors.InvalidArgumentError, match="stop string"):
                llm(PROMPT, max_tokens=1, stop=stop)


def test_unicode_is_never_split(llm):
    prompt = "Emoji: 😀😃😄😁😆😅😂🤣 日本語のテキスト: 東京は日本の首都です。"
    for seed in range(4):
        for chunk in llm.stream(prompt, max_tokens=24, seed=seed, temperature=1.5):
            if chunk.finish_reason is None:
                assert "�" not in chunk.text or "�" in llm.detokenize(chunk.tokens)
                assert chunk.text.encode("utf-8")


class TestLimits:
    def test_context_full_is_length(self, smollm2_path):
        with Llama(smollm2_path, n_ctx=256) as small:
            n = small.context.n_ctx_seq
            completion = small(
                [1000] * (n - 3), temperature=0, logit_bias=dict.fromkeys(small.vocab.eog_tokens, -np.inf)
            )
            assert completion.finish_reason == "length"
            assert completion.usage.completion_tokens == 4
            # The last token needs no place, so that a prompt may fill the context.
            assert small([1000] * n, temperature=0).usage.completion_tokens == 1

    def test_prompt_longer_than_the_context(self, llm):
        with pytest.raises(errors.InvalidArgumentError, match="300 tokens and the context holds n_ctx=256"):
            llm([1] * 300)

    def test_no_tokens_at_all(self, llm):
        completion = llm(PROMPT, max_tokens=0)
        assert completion.text == "" and completion.finish_reason == "length"
        with pytest.raises(errors.InvalidArgumentError, match="max_tokens"):
            llm(PROMPT, max_tokens=-2)

    def test_empty_prompt(self, llm):
        with pytest.raises(errors.InvalidArgumentError, match="empty"):
            llm([])


class TestProcessors:
    def test_edits_in_place_count(self, llm):
        wanted = llm.tokenize(" London", add_special=False)[0]

        def force(ids, logits):
            logits[:] = -np.inf
            logits[wanted] = 0

        assert llm(PROMPT, max_tokens=2, logits_processor=force).tokens == (wanted, wanted)

    def test_a_returned_array_counts_and_ids_include_the_prompt(self, llm):
        seen = []

        def note(ids, logits):
            assert ids.dtype == np.int32 and logits.dtype == np.float32
            assert logits.shape == (len(llm.vocab),) and logits.flags.c_contiguous
            seen.append(ids.tolist())
            return logits.copy()

        completion = llm(PROMPT, max_tokens=3, temperature=0, logits_processor=[note, note])
        prompt = llm.tokenize(PROMPT)
        assert seen[0] == seen[1] == prompt
        assert seen[4] == prompt + list(completion.tokens[:2])
        assert completion.tokens == llm(PROMPT, max_tokens=3, temperature=0).tokens

    def test_its_exception_comes_out_and_the_next_call_works(self, llm):
        def fail(ids, logits):
            raise ZeroDivisionError("from the processor")

        with pytest.raises(ZeroDivisionError, match="from the processor"):
            llm(PROMPT, max_tokens=4, logits_processor=fail)
        assert llm(PROMPT, max_tokens=3, temperature=0).text == " Paris.\n"

    def test_beside_a_logit_bias(self, llm):
        paris = llm.tokenize(" Paris", add_special=False)[0]
        calls = []
        completion = llm(
            PROMPT,
            max_tokens=3,
            temperature=0,
            logit_bias={paris: -np.inf},
            logits_processor=lambda ids, logits: calls.append(len(ids)),
        )
        assert len(calls) == 3 and paris not in completion.tokens


class TestSampling:
    def test_own_sampler(self, llm):
        assert llm(PROMPT, max_tokens=3, sampler=Chain(Greedy())).text == " Paris.\n"
        one = llm(PROMPT, max_tokens=8, sampler=Chain(Temp(1.5), Dist(11))).tokens
        assert one == llm(PROMPT, max_tokens=8, sampler=Chain(Temp(1.5), Dist(11))).tokens

    def test_penalties_see_the_prompt(self, llm):
        prompt = "1, 2, 1, 2, 1, 2, 1,"
        (likely,) = llm(prompt, max_tokens=1, temperature=0).tokens
        assert likely in llm.tokenize(prompt)
        assert llm(prompt, max_tokens=1, temperature=0, repeat_penalty=1e4).tokens != (likely,)

    def test_grammar(self, llm):
        completion = llm("Is water wet? Answer:", max_tokens=8, temperature=0, grammar='root ::= " yes" | " no"')
        assert completion.text in (" yes", " no") and completion.finish_reason == "stop"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"temperature": -1}, "temperature"),
            ({"temperature": float("nan")}, "temperature"),
            ({"top_p": 1.5}, "top_p"),
            ({"min_p": 2}, "min_p"),
            ({"seed": -1}, "seed"),
            ({"seed": 2**32}, "seed"),
            ({"repeat_penalty": 0}, "repeat"),
            ({"grammar": "root ::= [a"}, "grammar"),
            ({"logits_processor": 5}, "must be a function"),
        ],
    )
    def test_bad_values(self, llm, arguments, message):
        with pytest.raises((errors.PyllmError, TypeError), match=message):
            llm(PROMPT, max_tokens=1, **arguments)
        assert llm(PROMPT, max_tokens=3, temperature=0).text == " Paris.\n"


class TestArguments:
    def test_the_nearest_name_is_told(self, llm, smollm2_path):
        with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
            llm(PROMPT, max_token=4)
        with pytest.raises(TypeError, match="did you mean 'n_threads'"):
            Llama(smollm2_path, n_thread=4)

    def test_streams_check_before_the_first_chunk(self, llm):
        with pytest.raises(TypeError):
            llm.stream(PROMPT, max_token=4)
        with pytest.raises(errors.InvalidArgumentError):
            llm.generate([1] * 1000)

    def test_unknown_model(self):
        with pytest.raises(errors.UnknownModelError, match="did you mean 'smollm2'"):
            Llama("smolm2")
        with pytest.raises(errors.ModelNotFoundError):
            Llama("/nowhere/model.gguf")

    def test_a_model_that_is_loaded(self, smollm2_path):
        with Model(smollm2_path) as model:
            with Llama(model, n_ctx=64) as llm:
                assert llm.model is model
            assert not model.closed
            with pytest.raises(errors.InvalidArgumentError, match="loaded already"):
                Llama(model, n_gpu_layers=3)

    def test_a_context_that_cannot_be_closes_the_model(self, smollm2_path):
        with pytest.raises(errors.InvalidArgumentError):
            Llama(smollm2_path, n_ctx=-5)


class TestThreads:
    def test_calls_wait_for_each_other(self, llm):
        expected = llm(PROMPT, max_tokens=8, temperature=0).text
        texts = []
        threads = [
            threading.Thread(target=lambda: texts.append(llm(PROMPT, max_tokens=8, temperature=0).text))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == [expected] * 4

    def test_an_open_stream_in_the_same_thread(self, llm):
        stream = llm.stream(PROMPT, max_tokens=8, temperature=0)
        first = next(stream)
        with pytest.raises(StreamOpenError, match="close"):
            llm(PROMPT, max_tokens=1)
        stream.close()
        assert llm(PROMPT, max_tokens=3, temperature=0).text.startswith(first.text)

    def test_closed(self, smollm2_path):
        llm = Llama(smollm2_path, n_ctx=64)
        llm.close()
        llm.close()
        with pytest.raises(errors.ClosedError):
            llm(PROMPT)
        assert "closed" in repr(llm)


@pytest.mark.parametrize("arch", ["qwen3moe", "mamba", "gemma3", "t5"])
def test_other_architectures(tiny_models, arch):
    with Llama(tiny_models[arch], n_ctx=64) as llm:
        first = llm("Hello world", max_tokens=12, temperature=0)
        assert first.tokens == llm("Hello world", max_tokens=12, temperature=0).tokens
        assert first.usage.completion_tokens == 12 or first.finish_reason == "stop"


def test_encoder_only_models_say_so(tiny_models):
    with Llama(tiny_models["bert"], n_ctx=64) as llm, pytest.raises(errors.ContextError, match="no memory"):
        llm("Hello world", max_tokens=2)
