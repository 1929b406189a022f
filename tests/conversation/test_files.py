"""Conversations and states in files: small, checked, and exact."""

from __future__ import annotations

import json
import os
import random
import zlib

import numpy as np
import pytest

from pyllm import Llama, errors
from pyllm.conversation import file
from pyllm.llama import StreamOpenError

SHORT = {"max_tokens": 6, "temperature": 0}


def make(path, **arguments):
    return Llama(str(path), **{"n_ctx": 256, "n_threads": 1} | arguments)


@pytest.fixture
def llm(tiny_model):
    with Llama(tiny_model, n_ctx=256, n_threads=1) as llm:
        yield llm


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba", "jamba"])
def test_a_conversation_goes_on_elsewhere(tiny_models, tmp_path, arch):
    file = tmp_path / "anna.conversation"
    with make(tiny_models[arch]) as llm:
        talk = llm.conversation("anna", system="the number", **SHORT)
        talk.say("the people")
        size = talk.save(file)
        assert size == file.stat().st_size
        messages, tokens = talk.messages, talk.tokens
        expected = talk.say("the water")
    with make(tiny_models[arch], n_seq_max=2, kv_unified=True) as llm:
        other = llm.conversation("ben", **SHORT)
        other.say("the time")
        back = llm.load_conversation(file, **SHORT)
        assert (back.name, back.messages, back.tokens) == ("anna", messages, tokens)
        answer = back.say("the water")
        assert answer.text == expected.text and answer.usage.cached_tokens >= len(tokens)
        assert other.say("the people").usage.cached_tokens > 10
        with pytest.raises(errors.InvalidArgumentError, match="'anna' already"):
            llm.load_conversation(file)
        assert llm.load_conversation(file, name="again").messages == messages


def test_the_file_is_small(llm, tmp_path):
    """Keys and values of the tokens, and no logits: the fault of another binding."""
    talk = llm.conversation("anna", **SHORT)
    talk.complete("the people look at the number")
    size = talk.save(tmp_path / "file")
    n, model = len(talk.tokens), llm.model
    kv = n * model.n_layer * 2 * model.n_head_kv * (model.n_embd // model.n_head) * 2
    assert kv < size < kv + n * 64 + 2000


def test_a_text(llm, tmp_path):
    talk = llm.conversation("story", overflow="truncate_middle", **SHORT)
    talk.complete("the people look")
    talk.save(tmp_path / "file")
    back = llm.load_conversation(tmp_path / "file", name="back", **SHORT)
    assert back.text == talk.text and back.overflow == "truncate_middle"
    assert back.complete().tokens == talk.complete().tokens
    back.undo()
    assert back.text == talk.text[: len(back.text)]


def test_a_character_that_is_not_complete(llm, tmp_path):
    talk = llm.conversation("story", max_tokens=0)
    begin, end = "😀".encode()[:2], "😀".encode()[2:]
    first = llm.vocab.tokenize(b"\n", add_special=False)[-1] - 10
    talk.complete([first + byte for byte in begin])
    assert talk.text == "\ufffd"
    talk.save(tmp_path / "file")
    back = llm.load_conversation(tmp_path / "file", name="back", max_tokens=0)
    back.complete([first + byte for byte in end])
    assert back.text == "😀"


def test_a_conversation_whose_kv_cache_is_gone(llm, tmp_path):
    talk = llm.conversation("anna", **SHORT)
    talk.say("the people")
    llm.context.memory.clear()
    size = talk.save(tmp_path / "file")
    assert size < 2000
    back = llm.load_conversation(tmp_path / "file", name="back", **SHORT)
    assert back.messages == talk.messages and len(back.tokens) == 0
    assert back.say("the time").text == talk.say("the time").text


class TestState:
    def test_a_prompt_is_computed_once(self, llm, tiny_model, tmp_path):
        with pytest.raises(errors.StateError, match="nothing to save"):
            llm.save_state(tmp_path / "state")
        ids = np.arange(260, 320, dtype=np.int32)
        answer = llm(ids, **SHORT)
        size = llm.save_state(tmp_path / "state")
        assert size == (tmp_path / "state").stat().st_size
        with Llama(tiny_model, n_ctx=512, n_threads=1, cache_prompt=True) as other:
            assert other.load_state(tmp_path / "state") == 65
            again = other(ids, **SHORT)
            assert again.tokens == answer.tokens and again.usage.cached_tokens == 59
            longer = [*ids, *answer.tokens, 300]
            other.load_state(tmp_path / "state")
            assert other(longer, **SHORT).usage.cached_tokens == 65

    def test_conversations_are_left_alone(self, llm, tmp_path):
        talk = llm.conversation("anna", **SHORT)
        llm("the water", **SHORT)
        llm.save_state(tmp_path / "state")
        talk.say("the people")
        llm.load_state(tmp_path / "state")
        assert talk.say("the time").usage.cached_tokens > 5

    def test_a_control_vector_cannot_be_named(self, llm, tmp_path):
        llm.context.set_control_vector(np.ones((llm.model.n_layer - 1, llm.model.n_embd), np.float32))
        llm("the water", **SHORT)
        with pytest.raises((errors.InvalidArgumentError, errors.StateError)):
            llm.save_state(tmp_path / "state")
        assert not (tmp_path / "state").exists()


class TestDamage:
    @pytest.fixture
    def saved(self, llm, tmp_path):
        talk = llm.conversation("anna", **SHORT)
        talk.say("the people")
        talk.save(tmp_path / "file")
        talk.close()
        return tmp_path / "file"

    def test_every_byte_counts(self, llm, saved):
        data = saved.read_bytes()
        chooser = random.Random(1)
        other = llm.conversation("ben", **SHORT)
        other.say("the time")
        for _ in range(60):
            at = chooser.randrange(len(data))
            saved.write_bytes(data[:at] + bytes([data[at] ^ chooser.randrange(1, 256)]) + data[at + 1 :])
            with pytest.raises(errors.StateError):
                llm.load_conversation(saved)
        for _ in range(30):
            saved.write_bytes(data[: chooser.randrange(len(data))])
            with pytest.raises(errors.StateError):
                llm.load_conversation(saved)
        saved.write_bytes(data + b"\0")
        with pytest.raises(errors.StateError, match="instead of"):
            llm.load_conversation(saved)
        assert list(llm.conversations) == ["ben"]
        assert other.say("the people").usage.cached_tokens > 5

    @pytest.mark.parametrize(
        "change",
        [
            {"messages": 5},
            {"messages": [5]},
            {"messages": [{"role": "nobody", "content": "x"}]},
            {"first": "x"},
            {"first": None},
            {"overflow": "sometimes"},
            {"name": ""},
            {"name": 5},
            {"text": None},
            {"text": {"turns": [], "dropped": -1}},
            {"text": {"turns": [[[10**6], "x", 0]], "dropped": 0}},
            {"text": {"turns": [[[2**40], "x", 0]], "dropped": 0}},
            {"text": {"turns": [[[3], 5, 0]], "dropped": 0}},
            {"text": {"turns": [[[3], "x"]], "dropped": 0}},
            {"kind": "state"},
            {"model": None},
        ],
        ids=repr,
    )
    def test_a_checksum_that_is_right(self, llm, saved, change):
        """Nothing in a file is believed because of its checksum."""
        data = saved.read_bytes()
        _, n_header, *_ = file._START.unpack_from(data)
        header = json.loads(data[file._START.size : file._START.size + n_header]) | change
        saved.write_bytes(_sealed(data, json.dumps(header).encode()))
        with pytest.raises(errors.StateError, match="file'"):
            llm.load_conversation(saved)
        assert llm.conversations == {}

    @pytest.mark.parametrize("header", [b"[" * 100_000, b"[]", b"5", b"\xff", b""])
    def test_a_header_of_another_kind(self, llm, saved, header):
        saved.write_bytes(_sealed(saved.read_bytes(), header))
        with pytest.raises(errors.StateError):
            llm.load_conversation(saved)

    def test_positions_that_are_turned_otherwise(self, llm, saved, tiny_models):
        with make(tiny_models["llama"], rope_freq_base=50_000.0) as other:
            with pytest.raises(errors.StateError, match=r"rope_freq_base.*50000"):
                other.load_conversation(saved)
            other("the people", **SHORT)
            other.save_state(saved)
            assert other.load_state(saved) > 0
        with pytest.raises(errors.StateError, match=r"50000"):
            llm.load_state(saved)

    def test_while_a_stream_is_open(self, llm, saved):
        stream = llm.stream("the people", max_tokens=4)
        next(stream)
        with pytest.raises(StreamOpenError):
            llm.load_conversation(saved)
        assert llm.conversations == {}
        stream.close()
        assert len(llm.load_conversation(saved).messages) == 2

    def test_other_files(self, llm, saved, tmp_path):
        for content in (b"", b"GGUF" * 100, bytes(100), b"pyllmTX1" + b"\xff" * 100):
            (tmp_path / "other").write_bytes(content)
            with pytest.raises(errors.StateError):
                llm.load_state(tmp_path / "other")
        with pytest.raises(errors.StateError, match="holds a conversation, not a state"):
            llm.load_state(saved)
        with pytest.raises(FileNotFoundError):
            llm.load_state(tmp_path / "none")
        with pytest.raises(FileNotFoundError):
            llm.conversation("ben", **SHORT).save(tmp_path / "no folder" / "file")

    @pytest.mark.parametrize(
        ("arch", "arguments", "message"),
        [
            ("qwen3moe", {}, "another model"),
            ("llama", {"type_k": "f32", "type_v": "f32"}, "does not fit"),
        ],
    )
    def test_another_model_or_cache(self, tiny_models, llm, saved, arch, arguments, message):
        with make(tiny_models[arch], **arguments) as other:
            with pytest.raises(errors.StateError, match=message):
                other.load_conversation(saved)
            assert other.conversations == {}
            assert other("the people", **SHORT).usage.completion_tokens > 0

    def test_a_context_that_is_too_small(self, tiny_models, tmp_path):
        with make(tiny_models["llama"], n_ctx=1024) as llm:
            llm(np.arange(500, dtype=np.int32) % 150 + 261, **SHORT)
            llm.save_state(tmp_path / "state")
        with make(tiny_models["llama"]) as llm, pytest.raises(errors.StateError, match=r"505 tokens.*n_ctx=256"):
            llm.load_state(tmp_path / "state")

    def test_a_file_is_replaced_when_the_new_one_is_complete(self, llm, saved, monkeypatch):
        before = saved.read_bytes()

        def fail(*arguments):
            raise OSError("no space")

        talk = llm.conversation("ben", **SHORT)
        talk.say("the people")
        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            talk.save(saved)
        assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == ["file"]


def _sealed(data, header):
    """A file with another header, and the checksum that belongs to it."""
    magic, n_header, n_tokens, n_state = file._START.unpack_from(data)
    rest = data[file._START.size + n_header : -file._END.size]
    made = file._START.pack(magic, len(header), n_tokens, n_state) + header + rest
    return made + file._END.pack(zlib.crc32(made))
