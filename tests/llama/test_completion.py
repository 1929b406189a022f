"""create_completion: echo, log-probabilities, several texts, stopping criteria, filling in, OpenAI's shape."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping

import numpy as np
import pytest
from support.engines import endless

from pyllm import Batch, Llama, errors
from pyllm.completion.request import infill_prompt
from pyllm.core.kernels import log_softmax

PROMPT = "the people look at the number"


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=256, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def wide(tiny_model):
    with Llama(tiny_model, n_ctx=512, n_threads=1, n_seq_max=4, kv_unified=True) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(tiny_model):
    """Log-probabilities after each token of a sequence, computed at once, shape (n, n_vocab)."""
    with Llama(tiny_model, n_ctx=256, n_threads=1) as llm:

        def reference(ids):
            llm.context.memory.clear()
            llm.context.decode(Batch.from_arrays(ids, outputs="all"))
            return log_softmax(llm.context.logits.copy())

        yield reference


class TestShape:
    def test_a_completion_is_a_mapping_too(self, llm):
        completion = llm.create_completion(PROMPT, max_tokens=4, seed=1)
        assert isinstance(completion, Mapping)
        assert completion["choices"][0]["text"] == completion.text
        assert completion["object"] == "text_completion" and completion["id"].startswith("cmpl-")
        assert completion["model"] == "llama.gguf"
        again = json.loads(json.dumps(dict(completion)))
        assert list(again) == ["id", "object", "created", "model", "choices", "usage"]
        assert list(again["choices"][0]) == ["text", "index", "logprobs", "finish_reason"]
        assert again["usage"]["total_tokens"] == completion.usage.total_tokens
        with pytest.raises(KeyError):
            completion["text"]

    def test_so_are_chunks(self, llm):
        chunks = list(llm(PROMPT, max_tokens=4, seed=1, stream=True))
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == llm(PROMPT, max_tokens=4, seed=1).text
        assert {chunk["id"] for chunk in chunks} == {chunks[-1].completion.id}
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
        assert "usage" in chunks[-1] and "usage" not in chunks[0]
        json.dumps([dict(chunk) for chunk in chunks])

    def test_minus_one_is_no_limit(self, llm):
        forbidden = dict.fromkeys(llm.vocab.eog_tokens, -math.inf)
        n = llm.context.n_ctx_seq
        ids = [5] * (n - 6)
        assert llm(ids, max_tokens=-1, logit_bias=forbidden).usage.completion_tokens == 7
        for wrong in (-2, 1.5, True, "3"):
            with pytest.raises(errors.InvalidArgumentError, match="max_tokens must be at least 0, or None or -1"):
                llm(PROMPT, max_tokens=wrong)


class TestEcho:
    def test_text_prompt(self, llm):
        plain = llm(PROMPT, max_tokens=4, seed=1)
        echoed = llm(PROMPT, max_tokens=4, seed=1, echo=True)
        assert echoed.text == PROMPT + plain.text and echoed.tokens == plain.tokens
        chunks = list(llm.stream(PROMPT, max_tokens=4, seed=1, echo=True))
        assert chunks[0].text == PROMPT and "".join(map(str, chunks)) == echoed.text

    def test_token_prompt(self, llm):
        ids = llm.tokenize(PROMPT)
        assert llm(ids, max_tokens=0, echo=True).text == llm.detokenize(ids)


class TestLogprobs:
    def test_they_are_those_of_the_model_at_the_right_place(self, llm, reference):
        completion = llm(PROMPT, max_tokens=6, seed=1, logprobs=3, temperature=1.5)
        ids = llm.tokenize(PROMPT)
        rows = reference([*ids, *completion.tokens])
        logprobs = completion.logprobs
        assert len(logprobs.tokens) == len(completion.tokens) == len(logprobs.token_logprobs)
        for i, token in enumerate(completion.tokens):
            row = rows[len(ids) - 1 + i]
            assert logprobs.token_logprobs[i] == pytest.approx(row[token], abs=0.02)
            best = sorted(row.tolist(), reverse=True)[:3]
            assert sorted(logprobs.top_logprobs[i].values(), reverse=True)[:3] == pytest.approx(best, abs=0.02)
            assert logprobs.tokens[i] in logprobs.top_logprobs[i]
        assert completion["choices"][0]["logprobs"]["token_logprobs"] == list(logprobs.token_logprobs)

    def test_with_echo_those_of_the_prompt_too(self, llm, reference):
        completion = llm(PROMPT, max_tokens=3, seed=1, logprobs=0, echo=True)
        ids = [*llm.tokenize(PROMPT), *completion.tokens]
        rows, logprobs = reference(ids), completion.logprobs
        assert len(logprobs.tokens) == len(ids)
        assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
        for i in range(1, len(ids)):
            assert logprobs.token_logprobs[i] == pytest.approx(rows[i - 1][ids[i]], abs=0.02)
        # Nothing but the prompt: what scores texts.
        scored = llm(PROMPT, max_tokens=0, logprobs=0, echo=True)
        assert scored.text == PROMPT and scored.usage.completion_tokens == 0
        assert scored.logprobs.token_logprobs[1:] == pytest.approx(logprobs.token_logprobs[1 : -3 or None], abs=0.02)

    def test_a_prompt_longer_than_a_batch(self, tiny_model, reference):
        ids = np.arange(260, 330, dtype=np.int32)
        rows = reference(ids)
        with Llama(tiny_model, n_ctx=256, n_batch=16, n_threads=1) as llm:
            found = llm(ids, max_tokens=0, logprobs=1, echo=True).logprobs.token_logprobs
        assert found[1:] == pytest.approx([float(rows[i][ids[i + 1]]) for i in range(len(ids) - 1)], abs=0.02)

    @pytest.mark.parametrize("echo", [False, True])
    def test_offsets_point_into_the_text(self, llm, echo):
        completion = llm(PROMPT, max_tokens=8, seed=2, logprobs=0, echo=echo)
        text, logprobs = completion.text, completion.logprobs
        for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
            if not token.startswith(("bytes:", "<")):
                assert text[offset:].startswith(token)

    def test_an_encoders_prompt_has_none(self, load):
        with Llama(load("t5"), n_ctx=64, n_threads=1) as llm:
            completion = llm("the number", max_tokens=4, seed=1, logprobs=0, echo=True)
            assert len(completion.logprobs.tokens) == len(completion.tokens)
            assert completion.logprobs.text_offset[0] == len("the number")

    def test_processors_do_not_change_them(self, llm):
        def flip(ids, logits):
            logits *= -1

        plain = llm(PROMPT, max_tokens=1, temperature=0, logprobs=2).logprobs
        flipped = llm(PROMPT, max_tokens=1, temperature=0, logprobs=2, logits_processor=flip)
        assert flipped.tokens != llm(PROMPT, max_tokens=1, temperature=0).tokens
        assert max(flipped.logprobs.top_logprobs[0].values()) == pytest.approx(
            max(plain.top_logprobs[0].values()), abs=0.02
        )
        assert flipped.logprobs.token_logprobs[0] < -8

    def test_a_stop_string_has_none(self, llm):
        whole = llm(PROMPT, max_tokens=12, seed=3)
        stop = whole.text[4:6]
        stopped = llm(PROMPT, max_tokens=12, seed=3, stop=stop, logprobs=0)
        assert stopped.stop == stop
        assert all(offset < len(stopped.text) for offset in stopped.logprobs.text_offset)
        chunks = list(llm.stream(PROMPT, max_tokens=12, seed=3, stop=stop, logprobs=0))
        assert sum((chunk.logprobs.tokens for chunk in chunks), ()) == stopped.logprobs.tokens

    def test_streamed(self, llm):
        chunks = list(llm.stream(PROMPT, max_tokens=8, seed=1, logprobs=2))
        whole = chunks[-1].completion.logprobs
        assert sum((chunk.logprobs.token_logprobs for chunk in chunks), ()) == whole.token_logprobs

    def test_out_of_range(self, llm):
        for wrong in (-1, 1.5, True, len(llm.vocab) + 1):
            with pytest.raises(errors.InvalidArgumentError, match="logprobs must be an integer, from 0 to"):
                llm(PROMPT, logprobs=wrong)


class TestSeveral:
    def test_seeds_count_up(self, llm):
        several = llm(PROMPT, max_tokens=8, seed=5, n=3)
        assert [choice.seed for choice in several.choices] == [5, 6, 7]
        assert [choice.index for choice in several.choices] == [0, 1, 2]
        for i, choice in enumerate(several.choices):
            assert choice.tokens == llm(PROMPT, max_tokens=8, seed=5 + i).tokens
        assert several.usage.completion_tokens == 24
        assert len(several["choices"]) == 3

    def test_at_once_where_there_is_room(self, wide):
        wide.context.perf_reset()
        several = wide(PROMPT, max_tokens=8, seed=5, n=3, cache_prompt=False)
        # The prompt was computed once, and the last token of each text not at all.
        assert wide.context.perf()["n_p_eval"] == len(wide.tokenize(PROMPT)) + 3 * 7
        for i, choice in enumerate(several.choices):
            assert choice.tokens == wide(PROMPT, max_tokens=8, seed=5 + i).tokens

    @pytest.mark.parametrize("arch", ["gemma3", "mamba", "jamba"])
    def test_other_memories(self, tiny_models, arch):
        with Llama(tiny_models[arch], n_ctx=128, n_threads=1, n_seq_max=2) as llm:
            several = llm(PROMPT, max_tokens=6, seed=5, n=2)
            for i, choice in enumerate(several.choices):
                assert choice.tokens == llm(PROMPT, max_tokens=6, seed=5 + i, cache_prompt=False).tokens

    def test_one_after_another_where_there_is_none(self, wide):
        assert wide.context.n_ctx == wide.context.n_ctx_seq
        several = wide([5] * 400, max_tokens=60, seed=1, n=3)
        for i, choice in enumerate(several.choices):
            assert choice.tokens == wide([5] * 400, max_tokens=60, seed=1 + i).tokens

    @pytest.mark.parametrize("which", ["llm", "wide"])
    def test_streamed(self, which, request):
        llm = request.getfixturevalue(which)
        whole = llm(PROMPT, max_tokens=6, seed=5, n=2, logprobs=1)
        texts, reasons = ["", ""], [None, None]
        for chunk in llm.stream(PROMPT, max_tokens=6, seed=5, n=2, logprobs=1):
            texts[chunk.index] += chunk.text
            reasons[chunk.index] = chunk.finish_reason
        assert texts == [choice.text for choice in whole.choices]
        assert reasons == ["length", "length"] and chunk.completion.usage == whole.usage

    @pytest.mark.parametrize("which", ["llm", "wide"])
    def test_best_of(self, which, request):
        llm = request.getfixturevalue(which)
        every = llm(PROMPT, max_tokens=6, seed=5, n=4, logprobs=0, temperature=1.5)
        means = [sum(choice.logprobs.token_logprobs) / len(choice.tokens) for choice in every.choices]
        best = llm(PROMPT, max_tokens=6, seed=5, n=1, best_of=4, temperature=1.5)
        assert best.tokens == every.choices[int(np.argmax(means))].tokens
        assert best.logprobs is None and len(best.choices) == 1
        assert best.usage.completion_tokens == 24

    def test_wrong_counts(self, llm):
        for arguments in ({"n": 0}, {"n": 1.0}, {"n": 3, "best_of": 2}):
            with pytest.raises(errors.InvalidArgumentError, match="must be an integer, at least"):
                llm(PROMPT, max_tokens=1, **arguments)
        with pytest.raises(errors.InvalidArgumentError, match="cannot be streamed"):
            llm.stream(PROMPT, best_of=2)
        with pytest.raises(errors.InvalidArgumentError, match="one text"):
            llm.generate(PROMPT, n=2)


def test_a_streamed_token_passes_few_python_frames(llm):
    names: list[str] = []

    def count(frame, event, arg):
        if event == "call":
            names.append(frame.f_code.co_qualname)

    stream = llm.stream("the", max_tokens=60, temperature=0, logit_bias=endless(llm))
    next(stream)
    n = 0
    sys.setprofile(count)
    try:
        while n < 40:
            n += len(next(stream).tokens)
    finally:
        sys.setprofile(None)
        stream.close()
    assert len(names) <= 8 * n + 8, names[:20]


class TestStoppingCriteria:
    def test_they_see_the_newest_token_and_its_row(self, llm):
        seen = []

        def third(ids, logits):
            seen.append((ids.tolist(), int(logits.argmax())))
            return len(seen) == 3

        completion = llm(PROMPT, max_tokens=8, temperature=0, stopping_criteria=third)
        assert completion.finish_reason == "stop" and len(completion.tokens) == 3
        for i, (ids, likeliest) in enumerate(seen):
            assert ids == llm.tokenize(PROMPT) + list(completion.tokens[: i + 1])
            assert likeliest == completion.tokens[i]

    def test_not_callable(self, llm):
        with pytest.raises(errors.InvalidArgumentError, match="must be callable"):
            llm(PROMPT, stopping_criteria=[3])


class TestInfill:
    def test_a_model_without_the_tokens(self, tiny_models):
        expected = pytest.raises(errors.InvalidArgumentError, match="no tokens for prefix, suffix, middle")
        with Llama(tiny_models["t5"], n_ctx=64, n_threads=1) as llm, expected:
            llm("def f(", suffix="return x")

    def test_the_models_own_tokens(self, llm):
        seen = []
        completion = llm(
            "the <s>", suffix="at", max_tokens=2, seed=1, logits_processor=lambda ids, logits: seen.append(ids.copy())
        )
        vocab = llm.vocab
        prefix, suffix = (vocab.tokenize(text, add_special=False) for text in ("the <s>", "at"))
        assert seen[0].tolist() == [vocab.bos, vocab.fim_pre, *prefix, vocab.fim_suf, *suffix, vocab.fim_mid]
        # Text is text: what looks like a control token in it is none.
        assert vocab.bos not in prefix
        assert completion.usage.prompt_tokens == len(seen[0])

    def test_ids_have_no_suffix(self, llm):
        with pytest.raises(errors.InvalidArgumentError, match="must be texts"):
            llm([5, 6], suffix="at")

    def test_the_suffix_first(self, llm):
        seen = []
        llm("the", suffix="at", spm_infill=True, max_tokens=1, logits_processor=lambda ids, _: seen.append(ids.copy()))
        vocab = llm.vocab
        prefix, suffix = (vocab.tokenize(text, add_special=False) for text in ("the", "at"))
        assert seen[0].tolist() == [vocab.bos, vocab.fim_suf, *suffix, vocab.fim_pre, *prefix, vocab.fim_mid]
        with pytest.raises(errors.InvalidArgumentError, match="spm_infill=True would have no effect"):
            llm("the", spm_infill=True)

    def test_without_a_token_for_the_middle(self, llm):
        class NoMiddle:
            fim_mid = None

            def __getattr__(self, name):
                return getattr(llm.vocab, name)

        ids = infill_prompt(NoMiddle(), "the", "at", suffix_first=True).tolist()
        assert ids[1] == llm.vocab.fim_suf and llm.vocab.fim_pre in ids and llm.vocab.fim_mid not in ids
        with pytest.raises(errors.InvalidArgumentError, match=r"no tokens for middle; .*spm_infill=True"):
            infill_prompt(NoMiddle(), "the", "at")

    @pytest.mark.parametrize("rule", ["shift", "truncate_middle"])
    def test_what_does_not_fit_is_not_cut(self, llm, rule):
        with pytest.raises(errors.InvalidArgumentError, match="would cut off the tokens that say what is which"):
            llm("the number " * 200, suffix="at", overflow=rule)
        assert llm("the", suffix="at", overflow=rule, max_tokens=1).usage.completion_tokens == 1


class TestStop:
    @pytest.mark.parametrize("stop", ["", [""], [3], 3, ["a", None], "\ud800"])
    def test_what_is_no_stop_string(self, llm, stop):
        for call in (llm, llm.stream, llm.generate):
            with pytest.raises(errors.InvalidArgumentError, match="stop"):
                call(PROMPT, stop=stop)

    def test_bytes(self, llm):
        whole = llm(PROMPT, max_tokens=12, seed=3)
        assert llm(PROMPT, max_tokens=12, seed=3, stop=whole.text[4:6].encode()).text == whole.text[:4]
