"""Conversations: turns, undo, forks, and what is left of them when something goes wrong."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
from support.llama_internals import history_of, kept_bytes, n_kept_in_context

from pyllm import Llama, errors
from pyllm.conversation import Conversation
from pyllm.llama import StreamOpenError

SHORT = {"max_tokens": 6, "temperature": 0}
USER = {"role": "user", "content": "the people"}


@pytest.fixture
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=512, n_threads=1) as llm:
        yield llm


class TestChat:
    def test_turns(self, llm):
        talk = llm.conversation("anna", system="the number", **SHORT)
        assert isinstance(talk, Conversation) and talk.system == "the number" and len(talk.tokens) == 0
        first = talk.say("the people")
        assert talk.messages == [
            {"role": "system", "content": "the number"},
            USER,
            {"role": "assistant", "content": first.text},
        ]
        second = talk.say("the time")
        # What was said before is not computed again.
        assert second.usage.cached_tokens >= len(first.tokens) + first.usage.prompt_tokens - 2
        # It is the chat that it would be without a memory.
        again = llm.create_chat_completion(talk.messages[:-1], **SHORT)
        assert again.text == second.text and again.usage.prompt_tokens == second.usage.prompt_tokens

    def test_a_copy_cannot_be_changed(self, llm):
        talk = llm.conversation("anna")
        talk.say("the people", **SHORT)
        talk.messages.clear()
        talk.messages[0]["content"] = "another"
        assert talk.messages[0] == USER and len(talk.messages) == 2

    def test_streams(self, llm):
        said = llm.conversation("said", **SHORT).say("the people")
        talk = llm.conversation("streamed", **SHORT)
        chunks = list(talk.stream("the people"))
        assert "".join(chunk.text for chunk in chunks) == said.text == chunks[-1].completion.text
        assert talk.messages == llm.conversation("said").messages

    def test_a_stream_that_is_left(self, llm):
        talk = llm.conversation("anna", max_tokens=40, temperature=0)
        stream = talk.stream("the people")
        text = next(stream).text + next(stream).text
        with pytest.raises(StreamOpenError, match="'anna'"):
            talk.say("the time")
        with pytest.raises(StreamOpenError):
            llm.conversation("ben").say("the time")
        stream.close()
        assert talk.messages == [USER, {"role": "assistant", "content": text}]
        assert llm.conversation("ben").messages == []
        assert talk.say("the time", **SHORT).usage.cached_tokens > 10
        # One that was not begun has said nothing.
        talk.stream("never")
        assert len(talk.messages) == 4

    def test_a_stream_that_is_left_with_its_last_piece(self, llm):
        talk = llm.conversation("anna", **SHORT)
        for chunk in talk.stream("the people"):
            if chunk.completion is not None:
                break
        chunk = None
        assert talk.messages == [USER, llm.conversation("anna").messages[-1]]
        assert talk.messages[-1]["content"] == llm.create_chat_completion([USER], **SHORT).text

    def test_an_answer_that_ends_within_a_call(self, llm):
        """A call of a tool that was cut off is no JSON; the conversation goes on all the same."""
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        begun = 0
        for n in (1, 9, 28, 37):
            for stream in (False, True):
                talk = llm.conversation(f"{n} {stream}", max_tokens=n, temperature=0)
                arguments = {"tools": [tool], "tool_choice": "required"}
                if stream:
                    answer = list(talk.stream("the people", **arguments))[-1].completion
                else:
                    answer = talk.say("the people", **arguments)
                assert [message["role"] for message in talk.messages] == ["user", "assistant"]
                begun += bool(answer.tool_calls)
                if answer.tool_calls:
                    assert talk.messages[-1]["content"] == answer.choices[0].raw
                talk.say("the time", max_tokens=1)
                assert len(talk.messages) == 4
        assert begun > 0

    def test_messages_of_other_kinds(self, llm):
        talk = llm.conversation("anna", **SHORT)
        talk.say([USER, {"role": "assistant", "content": "the time"}, {"role": "user", "content": "the water"}])
        assert [message["role"] for message in talk.messages] == ["user", "assistant", "user", "assistant"]
        with pytest.raises(errors.InvalidArgumentError, match="nothing to answer"):
            talk.say()
        with pytest.raises(errors.InvalidArgumentError, match="nothing to answer"):
            talk.say({"role": "assistant", "content": "the time"})
        with pytest.raises(errors.InvalidArgumentError, match="role"):
            talk.say({"role": "nobody", "content": "the time"})
        assert len(talk.messages) == 4
        talk.say({"role": "user", "content": [{"type": "text", "text": "the people"}]})
        assert len(talk.messages) == 6

    def test_undo(self, llm):
        talk = llm.conversation("anna", system="the number", **SHORT)
        talk.say("the people")
        before = talk.messages
        answer = talk.say("the time")
        assert talk.undo() == [{"role": "user", "content": "the time"}, {"role": "assistant", "content": answer.text}]
        assert talk.messages == before
        again = talk.say("the time")
        assert again.text == answer.text and again.usage.cached_tokens == again.usage.prompt_tokens - 1
        talk.undo(), talk.undo()
        assert talk.messages == [{"role": "system", "content": "the number"}]
        with pytest.raises(errors.InvalidArgumentError, match="nobody has said anything"):
            talk.undo()

    def test_fork(self, llm):
        talk = llm.conversation("anna", **SHORT)
        talk.say("the people look at the number")
        other = talk.fork("other")
        mine, theirs = talk.say("the time"), other.say("the water")
        assert mine.usage.cached_tokens > 15 and theirs.usage.cached_tokens > 15
        assert talk.messages[:2] == other.messages[:2] and talk.messages[2] != other.messages[2]
        assert other.defaults == talk.defaults
        with pytest.raises(errors.InvalidArgumentError, match="'other' already"):
            talk.fork("other")

    def test_reset(self, llm):
        talk = llm.conversation("anna", system="the number", **SHORT)
        first = talk.say("the people")
        talk.reset()
        assert talk.messages == [{"role": "system", "content": "the number"}] and len(talk.tokens) == 0
        again = talk.say("the people")
        assert again.text == first.text and again.usage.cached_tokens == 0


class TestText:
    def test_a_completed_text_grows(self, llm):
        talk = llm.conversation("story", **SHORT)
        first = talk.complete("the people look")
        second = talk.complete()
        whole = llm("the people look", max_tokens=12, temperature=0)
        assert (first.tokens + second.tokens, first.text + second.text) == (whole.tokens, whole.text)
        assert talk.text == "the people look" + whole.text
        # All but the last token of the answer, which was chosen and not computed, is there.
        assert second.usage.cached_tokens == second.usage.prompt_tokens - 1
        third = talk.complete(" at the time")
        assert third.usage.cached_tokens >= len(whole.tokens)

    def test_the_text_is_that_of_the_tokens(self, llm):
        """Whether a tokenizer puts spaces before what it is given, or an answer is cut within a character."""

        def told(talk):
            pieces = [llm.vocab.token_to_piece(token, special=False) for token in history_of(talk)]
            # The one space that belongs to the beginning of a text.
            return b"".join(pieces).decode("utf-8", "replace").removeprefix(" ")

        talk = llm.conversation("words", **SHORT)
        talk.complete("the peop")
        for text in ("le look", b" at", "\n", "a", "", "  two", llm.tokenize("time", add_special=False), "\0", "😀"):
            talk.complete(text)
            assert talk.text == told(talk)
        bias = dict.fromkeys(llm.vocab.eog_tokens, float("-inf"))
        talk = llm.conversation("characters", max_tokens=1, temperature=0, logit_bias=bias)
        for byte in "the 😀é".encode():
            # One byte each turn: most of them are no character.
            token = llm.vocab.tokenize(b"\n", add_special=False)[-1] + byte - 10
            talk.complete("")
            talk.complete([token])
            assert llm.vocab.token_to_piece(int(token)) == bytes([byte])
        assert talk.text == told(talk)

    def test_what_is_cut_off_at_a_stop_string_is_not_part_of_it(self, llm):
        whole = llm("the people look", max_tokens=12, temperature=0).text
        for start in range(1, len(whole) - 2):
            with llm.conversation("story", max_tokens=12, temperature=0) as talk:
                answer = talk.complete("the people look", stop=whole[start : start + 2])
                assert talk.text == "the people look" + answer.text
                assert llm.detokenize(history_of(talk)[1:], special=False).strip() == talk.text.strip()

    def test_an_echo_is_not_added_twice(self, llm):
        talk, other = llm.conversation("story", **SHORT), llm.conversation("other", **SHORT)
        for text in ("the people", " at"):
            assert talk.complete(text, echo=True).text.endswith(other.complete(text).text)
        assert talk.text == other.text

    def test_undo_and_fork(self, llm):
        talk = llm.conversation("story", **SHORT)
        talk.complete("the people look")
        text = talk.text
        other = talk.fork("other")
        second = talk.complete(" at the water")
        assert talk.undo() == [] and talk.text == text == other.text
        assert other.complete(" at the water").text == second.text

    def test_a_text_is_no_chat(self, llm):
        talk = llm.conversation("story", **SHORT)
        talk.complete("the people")
        with pytest.raises(errors.InvalidArgumentError, match="is a text: use complete"):
            talk.say("the people")
        chat = llm.conversation("chat", **SHORT)
        chat.say("the people")
        with pytest.raises(errors.InvalidArgumentError, match="is a chat: use say"):
            chat.complete("the people")


class TestNames:
    def test_conversations_are_found_by_name(self, llm):
        talk = llm.conversation("anna", system="the number", temperature=0)
        assert llm.conversation("anna") is talk and llm.conversations == {"anna": talk}
        assert llm.conversation("anna", system="the number", temperature=0) is talk
        with pytest.raises(errors.InvalidArgumentError, match="'the number' already"):
            llm.conversation("anna", system="another")
        with pytest.raises(errors.InvalidArgumentError, match="overflow='error' already"):
            llm.conversation("anna", overflow="shift")
        with pytest.raises(errors.InvalidArgumentError, match="top_k in a turn"):
            llm.conversation("anna", top_k=3)

    def test_messages_stay_after_the_object_is_gone(self, llm):
        talk = llm.conversation("anna", **SHORT)
        talk.say("the people")
        said = talk.messages
        talk.defaults["top_k"] = 3
        talk.overflow = "truncate_middle"
        del talk
        found = llm.conversation("anna", overflow="truncate_middle", top_k=3, **SHORT)
        assert found.messages == said and llm.conversations == {"anna": found}
        with pytest.raises(errors.InvalidArgumentError, match="overflow must be one of"):
            found.overflow = "sometimes"

    @pytest.mark.parametrize("name", ["", None, 3, ["anna"]])
    def test_bad_names(self, llm, name):
        with pytest.raises(errors.InvalidArgumentError, match="name of a conversation"):
            llm.conversation(name)

    @pytest.mark.parametrize("arguments", [{"stream": True}, {"n": 2}, {"best_of": 3}, {"messages": []}])
    def test_arguments_that_a_turn_refuses(self, llm, arguments):
        with pytest.raises(errors.InvalidArgumentError):
            llm.conversation("anna", **arguments)
        talk = llm.conversation("ben")
        for call in (talk.say, talk.complete, lambda text, **given: list(talk.stream(text, **given))):
            with pytest.raises((errors.InvalidArgumentError, TypeError)):
                call("the people", **arguments)
        assert talk.messages == [] and talk.text == ""

    def test_bad_overflow(self, llm):
        with pytest.raises(errors.InvalidArgumentError, match="overflow must be one of"):
            llm.conversation("anna", overflow="")
        with pytest.raises(errors.InvalidArgumentError, match="content must be text"):
            llm.conversation("anna", system=5)
        with pytest.raises(errors.InvalidArgumentError, match="overflow must be one of"):
            llm.conversation("anna", overflow="sometimes")
        assert llm.conversations == {}


class TestTrouble:
    def test_a_turn_that_fails_leaves_it_as_it_was(self, llm):
        def fail(ids, logits):
            raise ZeroDivisionError

        talk, other = llm.conversation("anna", **SHORT), llm.conversation("ben", **SHORT)
        talk.say("the people"), other.say("the water")
        before = talk.messages
        for turn in (talk.say, lambda text, **given: list(talk.stream(text, **given))):
            with pytest.raises(ZeroDivisionError):
                turn("the time", logits_processor=fail)
            with pytest.raises(errors.UnknownArgumentError):
                turn("the time", temprature=0)
            with pytest.raises(errors.InvalidArgumentError, match="n_ctx=512"):
                turn("the people " * 300)
        assert talk.messages == before
        # And both go on with what they have.
        assert talk.say("the time").usage.cached_tokens > 5
        assert other.say("the time").usage.cached_tokens > 10

    def test_a_turn_that_is_too_long_hides_nothing(self, llm):
        """What the model was not told because of it is told again, when it failed and when it is taken back."""
        for rule in ("truncate_middle", "shift"):
            with llm.conversation(rule, overflow=rule, **SHORT) as talk:
                for word in ("people", "water", "time"):
                    n = talk.say(f"the {word}").usage.prompt_tokens
                with pytest.raises(errors.InvalidArgumentError):
                    talk.say("the people " * 3000, n_keep=-1)
                with pytest.raises(errors.UnknownArgumentError):
                    talk.say("the people " * 200, temprature=1)
                assert talk.say("the number").usage.prompt_tokens > n
                talk.undo()
                # About as long as the context: nothing else is told with it.
                assert talk.say("people " * 60).usage.prompt_tokens < 480
                talk.undo()
                assert talk.say("the number").usage.prompt_tokens > n
            with llm.conversation(rule, overflow=rule, **SHORT) as talk:
                for word in ("people", "water", "time"):
                    n = talk.complete(f" the {word}").usage.prompt_tokens
                with pytest.raises(errors.UnknownArgumentError):
                    talk.complete("the people " * 300, temprature=1)
                assert talk.complete(" the number").usage.prompt_tokens > n
                talk.undo()
                assert talk.complete(" people" * 600).usage.prompt_tokens < 480
                talk.undo()
                assert talk.complete(" the number").usage.prompt_tokens > n

    def test_decodes_on_the_context_in_between(self, llm):
        from pyllm import Batch

        talk, other = llm.conversation("anna", **SHORT), llm.conversation("ben", **SHORT)
        talk.say("the people"), other.say("the water")
        expected = llm.create_chat_completion([*talk.messages, USER], **SHORT).text
        llm.context.memory.clear()
        llm.context.decode(Batch.from_arrays([300, 301, 302]))
        # What the host keeps is believed, what was in the context is not.
        completion = talk.say("the people")
        assert completion.text == expected
        assert other.say("the people").usage.cached_tokens >= 0

    def test_close(self, llm):
        with llm.conversation("anna", **SHORT) as talk:
            talk.say("the people")
        assert talk.closed and llm.conversations == {} and len(talk.tokens) == 0
        talk.close()
        for call in (talk.say, talk.complete, talk.undo, talk.reset, lambda: talk.save("x"), lambda: talk.fork("y")):
            with pytest.raises(errors.ClosedError, match="'anna' is closed"):
                call()
        # The name is free again, and nothing is left of it.
        assert llm.conversation("anna", **SHORT).say("the people").usage.cached_tokens == 0

    def test_a_closed_llama(self, tiny_model):
        llm = Llama(tiny_model, n_ctx=256, n_threads=1)
        talk = llm.conversation("anna", **SHORT)
        talk.say("the people")
        llm.close()
        with pytest.raises(errors.ClosedError):
            talk.say("the time")
        assert len(talk.messages) == 2
        talk.close()

    def test_close_while_a_stream_is_open(self, llm):
        talk = llm.conversation("anna", **SHORT)
        talk.say("the people")
        stream = llm.stream("the water", max_tokens=5)
        next(stream)
        for call in (talk.close, talk.reset):
            with pytest.raises(StreamOpenError):
                call()
        assert not talk.closed and len(talk.messages) == 2
        stream.close()
        with pytest.raises(ZeroDivisionError), llm.conversation("ben", **SHORT) as other:
            stream = other.stream("the water")
            next(stream)
            raise ZeroDivisionError
        stream.close()
        talk.close()
        assert list(llm.conversations) == ["ben"] and len(talk.tokens) == 0

    def test_a_conversation_is_freed_without_the_collector(self, tiny_model):
        def begin():
            llm = Llama(tiny_model, n_ctx=256, n_threads=1)
            return llm.conversation("anna", **SHORT), weakref.ref(llm), weakref.ref(llm.context)

        gc.collect()
        gc.disable()
        try:
            talk, llm, context = begin()
            # It keeps its Llama.
            talk.say("the people"), talk.complete, list(talk.stream("the time")), talk.fork("ben").say("the water")
            stream = talk.stream("the number")
            next(stream)
            del talk
            assert llm() is not None
            del stream
            assert llm() is None and context() is None
        finally:
            gc.enable()

    def test_reprs(self, llm):
        talk = llm.conversation("anna", **SHORT)
        assert repr(talk) == "<Conversation 'anna', 0 messages>"
        talk.complete("the people")
        assert "tokens" in repr(talk)
        talk.close()
        assert "closed" in repr(talk)


class TestMemory:
    def test_the_host_keeps_to_its_limit(self, tiny_model):
        with Llama(tiny_model, n_ctx=256, n_threads=1, conversation_bytes=40_000) as llm:
            talks = [llm.conversation(str(i), **SHORT) for i in range(8)]
            for i, talk in enumerate(talks):
                talk.say(f"{i} {i} the people look at the number of the time")
                assert kept_bytes(llm) <= 40_000
                llm.check_invariants()
            kept = [len(talk.tokens) > 0 for talk in talks]
            # The newest are there.
            assert kept[-2:] == [True, True] and not kept[0] and kept == sorted(kept)
            assert talks[0].say("the time").usage.cached_tokens < 30

    def test_a_full_context_makes_room(self, tiny_model):
        """What conversations keep in the context is moved when a text needs the cells."""
        with Llama(tiny_model, n_ctx=256, n_threads=1, n_seq_max=4, kv_unified=True) as llm:
            bias = dict.fromkeys(llm.vocab.eog_tokens, float("-inf"))
            for name in ("anna", "ben", "carl"):
                llm.conversation(name, **SHORT).complete("the people look at the number " * 2)
            assert n_kept_in_context(llm) == 2
            long = llm("the water", temperature=0, logit_bias=bias)
            assert long.usage.total_tokens == 257
            assert n_kept_in_context(llm) == 0
            with Llama(tiny_model, n_ctx=256, n_threads=1) as fresh:
                assert fresh("the water", temperature=0, logit_bias=bias).tokens == long.tokens
            for name in ("anna", "ben", "carl"):
                completion = llm.conversation(name).complete()
                assert completion.usage.cached_tokens == completion.usage.prompt_tokens - 1

    def test_several_texts_at_once(self, tiny_model):
        with Llama(tiny_model, n_ctx=256, n_threads=1, n_seq_max=4, kv_unified=True) as llm:
            talk = llm.conversation("anna", **SHORT)
            talk.complete("the people look at the number")
            three = llm("the water of the world", max_tokens=8, seed=1, n=3)
            assert [llm("the water of the world", max_tokens=8, seed=1 + i).tokens for i in range(3)] == [
                choice.tokens for choice in three.choices
            ]
            completion = talk.complete()
            assert completion.usage.cached_tokens == completion.usage.prompt_tokens - 1

    def test_no_warnings_in_the_log(self, llm, caplog):
        caplog.set_level(logging.WARNING)
        talk, other = llm.conversation("anna", **SHORT), llm.conversation("ben", **SHORT)
        for _ in range(3):
            talk.say("the people"), other.say("the water")
        assert caplog.records == []


@pytest.mark.model
def test_a_real_chat(smollm2):
    # With the default cache, log-probabilities differ by 0.2 between one batch and two: flash attention rounds to F16.
    exact = {"n_ctx": 1024, "type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}
    with Llama(smollm2, **exact) as llm, Llama(smollm2, **exact) as fresh:
        told = [{"role": "user", "content": "My name is {}."}, {"role": "assistant", "content": "Hello, {}!"}]
        question = {"role": "user", "content": "What is my name?"}
        for _ in range(2):
            for name in ("Anna", "Ben"):
                talk = llm.conversation(name, temperature=0, max_tokens=6)
                before = [{**message, "content": message["content"].format(name)} for message in told]
                completion = talk.say([*before, question] if not talk.messages else question)
                # Small as it is, the model need not know; but it must say what it says without conversations.
                messages = [*talk.messages[:-1]]
                alone = fresh.create_chat_completion(messages, temperature=0, max_tokens=6)
                assert completion.text == alone.text
        assert completion.usage.cached_tokens > 50
