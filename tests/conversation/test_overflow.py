"""Texts that are longer than the context: an error, a shift, or without their middle, as the caller says."""

from __future__ import annotations

import numpy as np
import pytest
from support.llama_internals import history_of, n_dropped_messages

from pyllm import Llama, errors
from pyllm.completion.overflow import Overflow, answer_room
from pyllm.conversation.fit import fit_messages

N_CTX = 256
IDS = (np.arange(200) * 7 % 150 + 261).astype(np.int32)
LONG = (np.arange(600) * 7 % 150 + 261).astype(np.int32)


def make(path, **arguments):
    return Llama(str(path), **{"n_ctx": N_CTX, "n_threads": 1} | arguments)


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=N_CTX, n_threads=1) as llm:
        llm.forbidden = dict.fromkeys(llm.vocab.eog_tokens, float("-inf"))
        yield llm


class TestTheRules:
    def test_error(self, llm):
        with pytest.raises(errors.InvalidArgumentError, match=r"600 tokens.*n_ctx=256"):
            llm(LONG, max_tokens=1)
        completion = llm(IDS, temperature=0, logit_bias=llm.forbidden)
        assert completion.finish_reason == "length" and completion.usage.total_tokens == N_CTX + 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"overflow": "truncate"}, "'error', 'shift', 'truncate_middle'"),
            ({"overflow": None}, "not None"),
            ({"overflow": "shift", "n_keep": 2.5}, "n_keep must be"),
            ({"overflow": "shift", "n_keep": -2}, "n_keep must be"),
            ({"overflow": "shift", "n_keep": True}, "n_keep must be"),
            ({"n_keep": 3}, "no effect"),
            ({"overflow": "truncate_middle", "n_keep": -1}, r"n_keep=-1 keeps 600 tokens.*room for 248"),
        ],
    )
    def test_bad_arguments(self, llm, arguments, message):
        with pytest.raises(errors.InvalidArgumentError, match=message):
            llm(LONG, max_tokens=1, **arguments)

    def test_a_memory_that_cannot_shift(self, tiny_models):
        with (
            make(tiny_models["gemma3"], swa_full=False, n_ctx=2048) as llm,
            pytest.raises(errors.InvalidArgumentError, match="swa_full=True"),
        ):
            llm("the people", overflow="shift")
        with (
            make(tiny_models["t5"]) as llm,
            pytest.raises(errors.InvalidArgumentError, match="prompt stands before"),
        ):
            llm("the people", overflow="shift")


class TestTruncateMiddle:
    def test_the_prompt_that_is_left(self, llm):
        ids = np.concatenate([[llm.vocab.bos], LONG]).astype(np.int32)
        rule = Overflow(llm, "truncate_middle", 5)
        left = rule.fit(ids, 40)
        assert len(left) == N_CTX - 40
        assert left[:5].tolist() == ids[:5].tolist() and left[5:].tolist() == ids[-(N_CTX - 45) :].tolist()
        # The token that begins a text stays by itself.
        left = Overflow(llm, "truncate_middle").fit(ids, None)
        assert left[0] == llm.vocab.bos and len(left) == N_CTX - N_CTX // 4
        assert rule.fit(ids[:100], 40) is not None and len(rule.fit(ids[:100], 40)) == 100

    def test_the_text_is_that_of_the_shortened_prompt(self, llm):
        completion = llm(LONG, max_tokens=40, temperature=0, overflow="truncate_middle", n_keep=7)
        left = np.concatenate([LONG[:7], LONG[-(N_CTX - 47) :]])
        assert completion.usage.prompt_tokens == len(left)
        assert completion.tokens == llm(left, max_tokens=40, temperature=0).tokens

    def test_room_for_the_answer(self):
        assert [answer_room(256, n) for n in (None, 0, 10, 128, 1000)] == [64, 0, 10, 128, 128]


class TestShift:
    @pytest.mark.parametrize("arch", ["llama", "qwen3moe", "gemma3", "mamba", "jamba"])
    def test_generation_goes_on_after_a_shift(self, tiny_models, arch):
        with make(tiny_models[arch]) as llm:
            bias = dict.fromkeys(llm.vocab.eog_tokens, float("-inf"))
            arguments = {"temperature": 0, "logit_bias": bias, "overflow": "shift", "n_keep": 4}
            completion = llm(IDS, max_tokens=700, **arguments)
            assert completion.finish_reason == "length" and len(completion.tokens) == 700
            # As long as the context is not full, it is the text that it is otherwise.
            plain = llm(IDS, temperature=0, logit_bias=bias, max_tokens=56)
            assert completion.tokens[:56] == plain.tokens
            streamed = list(llm.stream(IDS, max_tokens=700, **arguments))
            assert streamed[-1].completion.tokens == completion.tokens
            assert "".join(chunk.text for chunk in streamed) == completion.text
            # And the next one knows nothing of it.
            assert (
                llm(IDS, max_tokens=20, temperature=0, logit_bias=bias, cache_prompt=True).tokens == plain.tokens[:20]
            )

    def test_what_is_forgotten(self, llm):
        """By hand: the first stay, half of the rest goes, positions move down."""
        from pyllm import Chain, Generation
        from pyllm.core.samplers import Greedy, LogitBias

        chain = Chain(LogitBias(len(llm.vocab), llm.forbidden), Greedy())
        got = llm(IDS, max_tokens=170, temperature=0, logit_bias=llm.forbidden, overflow="shift", n_keep=10)
        context = llm.context
        context.memory.clear()
        by_hand = Generation(context, chain)
        by_hand.prefill(IDS)
        with pytest.raises(errors.NoKVSlotError):
            by_hand.run(200)
        assert by_hand.n_past == N_CTX and context.memory.pos_max(0) == N_CTX - 1
        by_hand.shift(10, 123)
        assert by_hand.n_past == N_CTX - 123 and context.memory.pos_max(0) == N_CTX - 124
        by_hand.run(170 - by_hand.n_generated)
        assert tuple(by_hand.tokens) == got.tokens

    @pytest.mark.parametrize(("keep", "discard"), [(-1, 5), (0, 0), (0, 20), (19, 1), (5, 15)])
    def test_positions_that_are_not_there(self, llm, keep, discard):
        from pyllm import Chain, Generation
        from pyllm.core.samplers import Greedy

        llm.context.memory.clear()
        generation = Generation(llm.context, Chain(Greedy()))
        generation.prefill(IDS[:20])
        with pytest.raises(errors.InvalidArgumentError, match=f"keep={keep} and discard={discard}"):
            generation.shift(keep, discard)
        assert generation.n_past == 20

    def test_with_processors_stop_and_criteria(self, llm):
        seen = []

        def note(ids, logits):
            seen.append(len(ids))

        arguments = {"temperature": 0, "logit_bias": llm.forbidden, "overflow": "shift"}
        plain = llm(IDS, max_tokens=400, **arguments)
        noted = llm(IDS, max_tokens=400, logits_processor=note, **arguments)
        assert noted.tokens == plain.tokens
        # They see all tokens, those too that the model does not see any more.
        assert seen == list(range(200, 600))
        stop = llm.detokenize(plain.tokens[300:303])
        stopped = llm(IDS, max_tokens=400, stop=stop, **arguments)
        assert stopped.finish_reason == "stop" and plain.text.startswith(stopped.text)
        ended = llm(IDS, stopping_criteria=lambda ids, logits: len(ids) == 550, **arguments)
        assert len(ended.tokens) == 350 and ended.finish_reason == "stop"

    def test_a_prompt_that_is_too_long(self, llm):
        completion = llm(LONG, max_tokens=10, temperature=0, overflow="shift", n_keep=8)
        n = completion.usage.prompt_tokens
        assert N_CTX // 3 < n <= N_CTX
        assert completion.tokens == llm([*LONG[:8], *LONG[-(n - 8) :]], max_tokens=10, temperature=0).tokens

    def test_an_endless_text_is_left(self, llm):
        stream = llm.generate(IDS, temperature=0, logit_bias=llm.forbidden, overflow="shift")
        assert len([next(stream) for _ in range(1000)]) == 1000
        stream.close()
        assert llm(IDS, max_tokens=2, temperature=0).usage.completion_tokens == 2


class TestFitMessages:
    @staticmethod
    def chat(n):
        exchanges = [
            ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}) for i in range(n)
        ]
        return [{"role": "system", "content": "s"}, *(m for pair in exchanges for m in pair)]

    @staticmethod
    def count(messages):
        return 10 * len(messages)

    def test_what_fits_is_told(self):
        assert fit_messages(self.chat(3), self.count, 70) == 1

    def test_the_oldest_exchanges_go(self):
        messages = self.chat(5)
        first = fit_messages(messages, self.count, 80)
        assert first == 5 and messages[first]["content"] == "q2"

    def test_once_it_is_too_much_there_is_room_for_more(self):
        messages = self.chat(5)
        first = fit_messages(messages, self.count, 80, spare=30)
        assert messages[first]["content"] == "q3"
        # And as long as it fits, it begins there.
        assert fit_messages(self.chat(6), self.count, 80, first=first, spare=30) == first

    def test_the_newest_exchange_stays(self):
        messages = self.chat(3)
        assert messages[fit_messages(messages, self.count, 5)]["content"] == "q2"
        assert fit_messages([{"role": "user", "content": "q"}], self.count, 5) == 0


class TestChats:
    def test_the_oldest_messages_are_not_told(self, llm):
        system, question = {"role": "system", "content": "the number"}, {"role": "user", "content": "the water"}
        old = [{"role": role, "content": f"the people {i}"} for i in range(20) for role in ("user", "assistant")]
        arguments = {"max_tokens": 8, "temperature": 0}
        with pytest.raises(errors.InvalidArgumentError, match="n_ctx=256"):
            llm.create_chat_completion([system, *old, question], **arguments)
        answer = llm.create_chat_completion([system, *old, question], overflow="truncate_middle", **arguments)
        n = answer.usage.prompt_tokens
        assert N_CTX // 2 < n <= N_CTX - 8
        same = [
            llm.create_chat_completion([system, *old[i:], question], **arguments) for i in range(32, len(old) + 1, 2)
        ]
        assert (answer.text, n) in [(other.text, other.usage.prompt_tokens) for other in same]
        shifted = llm.create_chat_completion([system, *old, question], overflow="shift", max_tokens=8)
        assert shifted.usage.prompt_tokens == n


class TestConversations:
    def test_a_chat_forgets_its_oldest_messages(self, llm):
        llm.reset()
        arguments = {"max_tokens": 8, "temperature": 0, "logit_bias": llm.forbidden}
        short = llm.conversation("short", system="the people look", **arguments)
        with pytest.raises(errors.InvalidArgumentError, match="n_ctx=256"):
            for i in range(40):
                short.say(f"the number of the people {i}")
        assert short.messages[-1]["role"] == "assistant"
        for rule in ("truncate_middle", "shift"):
            chat = llm.conversation(rule, system="the people look", overflow=rule, **arguments)
            reused = []
            for i in range(40):
                completion = chat.say(f"the {i}")
                assert completion.usage.prompt_tokens <= N_CTX - 8
                reused.append(completion.usage.cached_tokens / completion.usage.prompt_tokens)
            assert len(chat.messages) == 81 and n_dropped_messages(chat) > 10
            # Most turns only add to the one before.
            assert sum(share > 0.5 for share in reused) > 20, reused
            chat.close()
        short.close()

    def test_a_text_forgets_its_middle(self, llm):
        for rule in ("truncate_middle", "shift"):
            with llm.conversation(rule, overflow=rule, max_tokens=30, temperature=0, logit_bias=llm.forbidden) as text:
                for i in range(20):
                    completion = text.complete(f" the number of the people {i}", n_keep=3)
                    assert completion.usage.prompt_tokens <= N_CTX - 30
                assert len(history_of(text)) > 2 * N_CTX
                while text.text:
                    text.undo()
                assert text.complete("the people").usage.prompt_tokens < 20
