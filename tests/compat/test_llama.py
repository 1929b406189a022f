"""The names of llama-cpp-python, and what they give."""

from __future__ import annotations

import json
import pickle
from collections import deque

import numpy as np
import pytest

import pyllm
from pyllm import errors
from pyllm.compat.llama_cpp import (
    Llama,
    LlamaDiskCache,
    LlamaDraftModel,
    LlamaGrammar,
    LlamaPromptLookupDecoding,
    LlamaRAMCache,
    LlamaTokenizer,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    llama_chat_format,
    llama_types,
)
from pyllm.compat.llama_cpp.llama_chat_format import (
    ChatFormatterResponse,
    Jinja2ChatFormatter,
    LlamaChatCompletionHandlerNotFoundException,
    LlamaChatCompletionHandlerRegistry,
    hf_tokenizer_config_to_chat_formatter,
    register_chat_completion_handler,
    register_chat_format,
)

PROMPT = "the number of the people"
MESSAGES = [{"role": "user", "content": "the number"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "the time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["here", "there"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


def text_of(result) -> str:
    return result["choices"][0]["text"]


# ---- completions


def test_a_completion_is_a_plain_dict(llm):
    result = llm(PROMPT, max_tokens=6, temperature=0, logprobs=2)
    assert type(result) is dict
    json.dumps(result)
    assert result["object"] == "text_completion"
    assert result["model"] == llm.model_path
    choice = result["choices"][0]
    assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
    assert len(choice["logprobs"]["tokens"]) == 6
    assert set(result["usage"]) >= {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert llm(PROMPT, max_tokens=1, model="mine")["model"] == "mine"


def test_a_completion_is_that_of_pyllm(llm, tiny_models):
    with pyllm.Llama(tiny_models["llama"], n_ctx=256, n_threads=1) as plain:
        expected = plain(PROMPT, max_tokens=20, temperature=0).text
    assert text_of(llm(PROMPT, max_tokens=20, temperature=0)) == expected
    assert text_of(llm.create_completion(PROMPT, max_tokens=20, temperature=0, echo=True)) == PROMPT + expected
    assert text_of(llm(llm.tokenize(PROMPT.encode(), special=True), max_tokens=20, temperature=0)) == expected
    chunks = list(llm(PROMPT, max_tokens=20, temperature=0, stream=True))
    assert "".join(map(text_of, chunks)) == expected
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all(type(chunk) is dict for chunk in chunks)


def test_max_tokens_of_nothing_is_no_limit(make):
    llm = make(n_ctx=128)
    for limit in (None, 0, -1):
        result = llm(PROMPT, max_tokens=limit, temperature=0, logit_bias={llm.token_eos(): -1000})
        assert result["usage"]["completion_tokens"] > 16


def test_more_of_pyllm_is_there(llm):
    result = llm(PROMPT, max_tokens=8, n=2, xtc_probability=0.5, seed=3)
    assert len(result["choices"]) == 2


def test_a_stream_that_is_left(llm):
    stream = llm(PROMPT, max_tokens=50, stream=True)
    next(stream)
    stream.close()
    assert text_of(llm(PROMPT, max_tokens=4))


def test_prefixes_are_reused(llm):
    llm(PROMPT, max_tokens=4, temperature=0)
    again = llm(PROMPT, max_tokens=4, temperature=0)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == again["usage"]["prompt_tokens"] - 1


def test_grammar(llm):
    grammar = LlamaGrammar.from_string('root ::= ("a" | "b") "c"')
    assert text_of(llm(PROMPT, grammar=grammar, max_tokens=8)) in ("ac", "bc")
    ids = llm.tokenize(PROMPT.encode())
    text = b""
    for token in llm.generate(ids, grammar=grammar):
        if token == llm.token_eos() or llm.llm.vocab.is_eog(token):
            break
        text += llm.detokenize([token])
    assert text.strip() in (b"ac", b"bc")


def test_grammar_of_a_schema(llm, tmp_path):
    grammar = LlamaGrammar.from_json_schema(json.dumps({"enum": ["x", 3]}))
    assert json.loads(text_of(llm(PROMPT, grammar=grammar, max_tokens=20))) in ("x", 3)
    path = tmp_path / "g.gbnf"
    path.write_text(str(grammar))
    assert str(LlamaGrammar.from_file(path)) == str(grammar)
    from pyllm.compat.llama_cpp.llama_grammar import JSON_GBNF

    LlamaGrammar.from_string(JSON_GBNF)


def test_min_tokens(llm):
    eos = llm.token_eos()

    def always(ids, scores):
        scores[eos] = 1e9
        return scores

    processors = LogitsProcessorList([always, MinTokensLogitsProcessor(5, eos)])
    for _ in range(2):
        assert llm(PROMPT, logits_processor=processors, max_tokens=20)["usage"]["completion_tokens"] == 5


# ---- tokens


def test_tokens(llm, tiny_models):
    ids = llm.tokenize(b"the people")
    assert all(type(token) is int for token in ids)
    assert llm.detokenize(ids).strip() == b"the people"
    assert llm.tokenize(b"a", add_bos=False) == llm.tokenizer().tokenize(b"a", add_bos=False)
    assert llm.tokenizer().decode(llm.tokenizer().encode("the people", add_bos=False)).strip() == "the people"
    only = Llama(tiny_models["llama"], vocab_only=True)
    assert only.tokenize(b"the people") == ids
    assert only.n_vocab() == llm.n_vocab()
    with pytest.raises(errors.InvalidArgumentError, match="vocab_only"):
        only("the")
    only.close()
    assert LlamaTokenizer.from_ggml_file(str(tiny_models["llama"])).encode("the people") == llm.tokenizer().encode(
        "the people"
    )


def test_tokens_after_others(llm):
    ids = llm.tokenize(b"the people look", add_bos=False)
    assert llm.detokenize(ids[:2]) + llm.detokenize(ids[2:], prev_tokens=ids[:2]) == llm.detokenize(ids)


def test_sizes_and_handles(llm):
    assert llm.n_ctx() == 256
    assert llm.n_vocab() == len(llm.llm.vocab)
    assert llm.n_embd() == 64
    assert llm.token_bos() == llm.llm.vocab.bos
    assert llm.token_nl() == llm.llm.vocab.nl
    assert llm.metadata["general.architecture"] == "llama"
    assert llm.model == llm.llm.model.address
    assert llm.ctx == llm.llm.context.address
    assert llm.context_params.n_ctx == 256


def test_functions_on_handles(llm):
    import ctypes

    from pyllm.compat import llama_cpp as api

    vocab = api.llama_model_get_vocab(llm.model)
    assert api.llama_vocab_n_tokens(vocab) == llm.n_vocab()
    buffer = (ctypes.c_char * 512)()
    for token in range(llm.n_vocab()):
        n = api.llama_token_to_piece(vocab, token, buffer, 512, 0, True)
        assert buffer[:n] == llm.llm.vocab.token_to_piece(token)
    assert api.llama_token_to_piece(vocab, llm.token_bos(), buffer, 1, 0, True) < -1
    with pytest.raises(errors.InvalidArgumentError):
        api.llama_token_to_piece(vocab + 1, 0, buffer, 32, 0, True)
    with pytest.raises(errors.InvalidArgumentError):
        api.llama_model_get_vocab(0)


# ---- token by token


def test_eval_and_sample(llm):
    ids = llm.tokenize(PROMPT.encode(), special=True)
    for token in ids:
        llm.eval([token])
    assert llm.n_tokens == len(ids)
    assert llm.eval_tokens == deque(ids)
    token = llm.sample(temp=0)
    assert token == int(np.argmax(llm.scores[-1]))
    expected = [token]
    for _ in range(5):
        llm.eval([expected[-1]])
        expected.append(llm.sample(temp=0))
    generated = llm.generate(ids, temp=0)
    assert [next(generated) for _ in range(6)] == expected
    assert llm.detokenize(expected).strip() == text_of(llm(PROMPT, max_tokens=6, temperature=0)).encode().strip()


def test_rows_of_all_tokens(make):
    llm = make(logits_all=True)
    ids = llm.tokenize(PROMPT.encode())
    llm.eval(ids[:2])
    llm.eval(ids[2:])
    assert llm.scores.shape == (len(ids), llm.n_vocab())
    one = make(logits_all=True)
    one.eval(ids)
    assert np.allclose(llm.scores, one.scores, atol=1e-3)
    assert llm.sample(temp=0, idx=1) == int(np.argmax(llm.scores[1]))
    llm("something else", max_tokens=2)
    llm.eval(ids)  # behind what was computed there, of which no rows were kept
    assert len(llm.scores) == llm.n_tokens
    probabilities = np.exp(Llama.logits_to_logprobs(llm.scores))
    assert np.allclose(probabilities.sum(-1), 1, atol=1e-4)


def test_errors_of_eval(llm):
    with pytest.raises(errors.InvalidArgumentError):
        llm.sample()
    with pytest.raises(errors.InvalidArgumentError):
        llm.eval([llm.n_vocab()])
    with pytest.raises(errors.InvalidArgumentError, match="256"):
        llm.eval([1] * 300)
    with pytest.raises(errors.InvalidArgumentError, match="logits_all"):
        llm.eval([1])
        llm.sample(idx=0)


def test_tokens_can_be_sent(llm):
    ids = llm.tokenize(PROMPT.encode(), special=True)
    more = llm.tokenize(b"time", add_bos=False)
    generated = llm.generate(ids, temp=0)
    first = next(generated)
    third = generated.send(more)
    llm.reset()
    llm.eval([*ids, first, *more])
    assert llm.sample(temp=0) == third


def test_chance_goes_on(llm):
    llm.set_seed(5)
    llm.eval(llm.tokenize(PROMPT.encode()))
    settings = dict(temp=2.0, top_k=0, top_p=1.0, min_p=0.0)
    first = [llm.sample(**settings) for _ in range(8)]
    assert len(set(first)) > 1
    llm.set_seed(5)
    assert [llm.sample(**settings) for _ in range(8)] == first


def test_a_draft_model_of_ones_own(make):
    class Wrong(LlamaDraftModel):
        def __call__(self, input_ids, /, **kwargs):
            return np.array([5, 6, 7], np.int32)

    class Right(LlamaDraftModel):
        def __call__(self, input_ids, /, **kwargs):
            return np.array(expected[len(input_ids) - len(ids) :][:4], np.int32)

    llm = make()
    ids = llm.tokenize(PROMPT.encode(), special=True)
    generated = llm.generate(ids, temp=0)
    expected = [next(generated) for _ in range(24)]
    for draft in (Wrong(), Right(), LlamaPromptLookupDecoding()):
        other = make(draft_model=draft)
        generated = other.generate(ids, temp=0)
        assert [next(generated) for _ in range(20)] == expected[:20]


def test_lookup():
    find = LlamaPromptLookupDecoding.find_candidate_pred_tokens
    assert find(np.array([1, 2, 3, 4, 1, 2]), 2, 10).tolist() == [3, 4, 1, 2]
    assert find(np.array([1, 2, 3, 9, 2]), 3, 1).tolist() == [3]
    assert find(np.array([1, 2, 3]), 2, 10).tolist() == []
    assert find(np.array([1]), 2, 10).tolist() == []
    with pytest.raises(errors.InvalidArgumentError):
        LlamaPromptLookupDecoding(0)


# ---- states and caches


@pytest.mark.parametrize("arch", ["llama", "mamba", "gemma3"])
def test_states(make, tiny_models, arch):
    llm, other = make(tiny_models[arch]), make(tiny_models[arch])
    ids = llm.tokenize(PROMPT.encode())
    llm.eval(ids)
    expected = llm.sample(temp=0)
    state = llm.save_state()
    other.load_state(pickle.loads(pickle.dumps(state)))
    assert other.input_ids.tolist() == ids
    assert other.sample(temp=0) == expected
    other.eval([expected])
    llm.eval([expected])
    assert np.allclose(other.scores, llm.scores, atol=1e-3)


def test_state_of_another_model(make, tiny_models):
    llm = make()
    llm.eval(llm.tokenize(PROMPT.encode()))
    with pytest.raises(errors.StateError):
        make(tiny_models["gemma3"]).load_state(llm.save_state())


def test_caches(make, tmp_path):
    prompts = ["the number of people", "and more of the time", "the number of times"]
    plain = make()
    expected = [text_of(plain(prompt, max_tokens=8, temperature=0)) for prompt in prompts]
    for cache in (LlamaRAMCache(), LlamaDiskCache(tmp_path / "a")):
        llm = make()
        llm.set_cache(cache)
        for _ in range(2):
            assert [text_of(llm(prompt, max_tokens=8, temperature=0)) for prompt in prompts] == expected
        fresh = make()
        fresh.set_cache(cache)
        result = fresh(prompts[0], max_tokens=8, temperature=0)
        assert text_of(result) == expected[0]
        assert result["usage"]["prompt_tokens_details"]["cached_tokens"] == result["usage"]["prompt_tokens"] - 1
        streamed = "".join(map(text_of, fresh(prompts[1], max_tokens=8, temperature=0, stream=True)))
        assert streamed == expected[1]
        with pytest.raises(KeyError):
            cache[[99999]]


def test_damaged_files_of_a_cache(make, tmp_path):
    cache = LlamaDiskCache(tmp_path)
    llm = make()
    llm.set_cache(cache)
    llm(PROMPT, max_tokens=4)
    (path,) = tmp_path.glob("*.llamastate")
    data = path.read_bytes()
    for damaged in (b"", b"x" * 100, data[:-1], data[:50]):
        path.write_bytes(damaged)
        fresh = LlamaDiskCache(tmp_path)
        assert llm.tokenize(PROMPT.encode()) not in fresh
        llm.set_cache(fresh)
        assert text_of(llm(PROMPT, max_tokens=4)) is not None
        for other in tmp_path.glob("*.llamastate"):
            other.unlink()


def test_pickle(llm):
    again = pickle.loads(pickle.dumps(llm))
    assert text_of(again(PROMPT, max_tokens=8, temperature=0)) == text_of(llm(PROMPT, max_tokens=8, temperature=0))
    assert again.n_ctx() == llm.n_ctx()
    again.close()


# ---- chats


def test_a_chat(llm):
    result = llm.create_chat_completion(MESSAGES, max_tokens=8, temperature=0)
    assert type(result) is dict
    json.dumps(result)
    assert result["object"] == "chat.completion"
    message = result["choices"][0]["message"]
    assert message["role"] == "assistant"
    chunks = list(llm.create_chat_completion(MESSAGES, max_tokens=8, temperature=0, stream=True))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == message["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == result["choices"][0]["finish_reason"]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)


def test_logprobs_of_a_chat(llm):
    result = llm.create_chat_completion(MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2)
    content = result["choices"][0]["logprobs"]["content"]
    assert content
    assert all(len(entry["top_logprobs"]) >= 2 and entry["logprob"] <= 0 for entry in content)


@pytest.mark.parametrize(
    "choice", [{"type": "function", "function": {"name": "get_time"}}, "get_time", TOOL, "required"]
)
def test_tools(make, choice):
    llm = make(n_ctx=1024)
    result = llm.create_chat_completion(MESSAGES, tools=[TOOL], tool_choice=choice, seed=1)
    call = result["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["name"] == "get_time"
    assert json.loads(call["function"]["arguments"])["zone"] in ("here", "there")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tools": [{"type": "function"}]}, r"tools\[0\] must be"),
        ({"tools": [TOOL, "get_time"]}, r"tools\[1\] must be"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice must be"),
        ({"functions": [5]}, r"functions\[0\] must be .* not 5"),
        ({"functions": [TOOL["function"]], "function_call": {}}, "function_call must be"),
        ({"response_format": "json"}, "response_format must be a dict"),
    ],
)
def test_wrong_shapes_are_named(llm, given, said):
    with pytest.raises(errors.InvalidArgumentError, match=said):
        llm.create_chat_completion(MESSAGES, **given)


def test_an_alias_of_which_only_the_vocabulary_is_loaded(tiny_models, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_models["llama"].parent))
    with Llama(f"~/{tiny_models['llama'].name}", vocab_only=True) as llm:
        assert llm.tokenize(b"the people")


def test_functions(make):
    llm = make(n_ctx=1024)
    result = llm.create_chat_completion(
        MESSAGES, functions=[TOOL["function"]], function_call={"name": "get_time"}, seed=1
    )
    call = result["choices"][0]["message"]["function_call"]
    assert json.loads(call["arguments"])["zone"] in ("here", "there")
    assert result["choices"][0]["finish_reason"] == "function_call"
    said = [
        *MESSAGES,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "get_time", "content": "noon"},
    ]
    assert llm.create_chat_completion(said, functions=[TOOL["function"]], max_tokens=4)["choices"]


def test_formats(make):
    @register_chat_format("mine")
    def mine(*, messages, **kwargs):
        return ChatFormatterResponse("".join(f"{m['content']} " for m in messages), stop="never")

    try:
        llm = make(chat_format="mine")
        answer = llm.create_chat_completion(MESSAGES, max_tokens=8, temperature=0)
        expected = llm("the number ", max_tokens=8, temperature=0)
        assert answer["choices"][0]["message"]["content"] == text_of(expected)
        chunks = list(llm.create_chat_completion(MESSAGES, max_tokens=8, temperature=0, stream=True))
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == text_of(expected)
        forced = llm.create_chat_completion(
            MESSAGES, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_time"}}, max_tokens=60
        )
        arguments = forced["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
        assert json.loads(arguments)["zone"] in ("here", "there")
        with pytest.raises(errors.InvalidArgumentError, match="tool_choice"):
            llm.create_chat_completion(MESSAGES, tools=[TOOL], tool_choice="auto")
        with pytest.raises(errors.InvalidArgumentError, match="already"):
            register_chat_format("mine")(mine)
    finally:
        LlamaChatCompletionHandlerRegistry().unregister_chat_handler("mine")
    with pytest.raises(LlamaChatCompletionHandlerNotFoundException, match="chatml"):
        make(chat_format="mine")


def test_handlers(make):
    @register_chat_completion_handler("echo")
    def echo(*, llama, messages, **kwargs):
        return {"said": messages[-1]["content"], "temperature": kwargs["temperature"], "model": llama.model_path}

    try:
        result = make(chat_format="echo").create_chat_completion(MESSAGES)
        assert (result["said"], result["temperature"]) == ("the number", 0.2)
    finally:
        LlamaChatCompletionHandlerRegistry().unregister_chat_handler("echo")
    assert make(chat_handler=echo).create_chat_completion(MESSAGES)["said"] == "the number"


@pytest.mark.parametrize("name", ["chatml", "llama-2", "llama-3", "zephyr", "gemma", "chatml-function-calling"])
def test_formats_that_are_there(make, name):
    result = make(chat_format=name).create_chat_completion(
        [{"role": "system", "content": "Be brief."}, *MESSAGES], max_tokens=4
    )
    assert result["choices"][0]["message"]["role"] == "assistant"


def test_jinja(make):
    template = "{% for m in messages %}{{ bos_token }}{{ m.content }}!{% endfor %}"
    formatter = Jinja2ChatFormatter(template, eos_token="</s>", bos_token="<s>")
    assert formatter(messages=MESSAGES).prompt == "<s>the number!"
    config = {"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    assert hf_tokenizer_config_to_chat_formatter(config)(messages=MESSAGES).prompt == "<s>the number!"
    with pytest.raises(errors.InvalidArgumentError, match="eos_token"):
        hf_tokenizer_config_to_chat_formatter({"chat_template": "", "bos_token": ""})
    llm = make(chat_handler=formatter.to_chat_handler())
    assert llm.create_chat_completion(MESSAGES, max_tokens=4)["choices"][0]["message"]["role"] == "assistant"


def test_openai_types(llm):
    pytest.importorskip("openai")
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    result = llm.create_chat_completion_openai_v1(MESSAGES, max_tokens=4)
    assert isinstance(result, ChatCompletion)
    assert result.choices[0].message.role == "assistant"
    chunks = list(llm.create_chat_completion_openai_v1(MESSAGES, max_tokens=4, stream=True))
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)


def test_shapes_have_names():
    assert llama_types.ChatCompletion is llama_types.CreateChatCompletionResponse
    assert llama_chat_format.get_chat_completion_handler("chatml")


# ---- embeddings


def test_embeddings(make, tiny_models):
    llm = make(embedding=True)
    vector = llm.embed("the people")
    assert isinstance(vector, list)
    assert len(vector) == llm.n_embd()
    assert all(type(number) is float for number in vector)
    both, count = llm.embed(["the people", "the time"], return_count=True)
    assert np.allclose(both[0], vector, atol=1e-4)
    assert count == sum(len(llm.tokenize(text)) for text in (b"the people", b"the time"))
    assert np.isclose(np.linalg.norm(llm.embed("the people", normalize=True)), 1)
    result = llm.create_embedding(["the people", "the time"])
    json.dumps(result)
    assert [entry["index"] for entry in result["data"]] == [0, 1]
    assert text_of(llm(PROMPT, max_tokens=2)) is not None  # which it can do too
    long = "the people " * 400
    assert len(llm.embed(long)) == llm.n_embd()
    count = llm.embed(long, return_count=True)[1]
    assert count <= llm.llm.model.n_ctx_train < len(llm.tokenize(long.encode()))
    assert llm.create_embedding([long, "the"])["usage"]["total_tokens"] == count + len(llm.tokenize(b"the"))
    named = llm.tokenize(b"<|im_end|>")  # which is text, and no control token
    assert llm.embed("<|im_end|>", return_count=True)[1] == len(named)
    with pytest.raises(errors.InvalidArgumentError):
        llm.embed(long, truncate=False)
