"""llama-server's own words: /completion, /infill, /props, /tokenize and counts of tokens."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import models

from pyllm import Llama
from pyllm.engine import Engine
from pyllm.server.admin import MANAGING
from pyllm.server.app import make_app
from pyllm.server.settings import Settings

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "llama_cpp_src" / "llama.cpp" / "tools" / "server" / "server.cpp"
PAGE = ROOT / "docs" / "server-endpoints.md"


@pytest.fixture(scope="module")
def llm(tiny_model) -> Any:
    with Llama(tiny_model, n_ctx=1024, n_threads=1) as llm:
        yield llm


def ask(server, body: dict[str, Any], path: str = "/completion", status: int = 200) -> Any:
    response = server.post(path, body)
    assert response.status_code == status, response.text
    return response.json()


def stream(server, body: dict[str, Any], path: str = "/completion") -> list[Any]:
    with httpx.stream("POST", server.url + path, json={**body, "stream": True}, timeout=60) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# ---- texts


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_all_fields(server, llm, path) -> None:
    body = {"prompt": "the cat sat", "n_predict": 6, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    answer = ask(server, body, path)
    expected = llm("the cat sat", max_tokens=6, temperature=0)
    n_prompt = expected.usage.prompt_tokens
    assert answer["content"] == expected.text
    assert answer["tokens"] == list(expected.tokens)
    assert answer["stop"] is True and answer["stop_type"] == "limit" and answer["stopping_word"] == ""
    assert answer["truncated"] is False and answer["has_new_line"] is ("\n" in expected.text)
    assert answer["tokens_predicted"] == 6 and answer["tokens_evaluated"] == n_prompt
    assert answer["tokens_cached"] == n_prompt + 5
    assert answer["model"] == "tiny" and answer["index"] == 0
    assert answer["prompt"] == llm.detokenize(llm.tokenize("the cat sat"))
    timings = answer["timings"]
    assert (timings["prompt_n"], timings["cache_n"], timings["predicted_n"]) == (n_prompt, 0, 6)
    assert timings["prompt_per_token_ms"] == pytest.approx(timings["prompt_ms"] / n_prompt)
    assert timings["predicted_per_second"] == pytest.approx(5000 / timings["predicted_ms"])


def test_tokens_only_where_they_are_wanted(server) -> None:
    assert ask(server, {"prompt": "the", "n_predict": 3})["tokens"] == []


def test_prompts_of_all_kinds(server, llm) -> None:
    ids = llm.tokenize("the cat")
    more = llm.vocab.tokenize("no way", add_special=False)
    settings = {"n_predict": 4, "temperature": 0}
    expected = llm("the cat", max_tokens=4, temperature=0).text
    for prompt in ("the cat", ids, {"prompt_string": "the cat"}):
        assert ask(server, {"prompt": prompt, **settings})["content"] == expected
    several = ask(server, {"prompt": ["the cat", ids, {"prompt_string": "the cat"}], **settings})
    assert [one["content"] for one in several] == [expected] * 3
    assert [one["index"] for one in several] == [0, 1, 2]
    mixed = ask(server, {"prompt": [*ids, "no way"], **settings})
    assert mixed["tokens_evaluated"] == len(ids) + len(more)
    assert mixed["content"] == llm([*ids, *more], max_tokens=4, temperature=0).text
    # A text at the beginning of such a list gets what begins a text; one behind does not.
    assert ask(server, {"prompt": ["the cat", *more], **settings})["content"] == mixed["content"]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ([], "prompt"),
        ([["the"], []], "prompt[1]"),
        ([1.5], "prompt"),
        ([3, None], "prompt"),
        ([True], "prompt[0]"),
        ([{"x": 1}], "prompt[0]"),
        ({"prompt_string": 3}, "prompt.prompt_string"),
        ([10**6], "prompt"),
    ],
)
def test_invalid_prompts(server, prompt, param) -> None:
    assert ask(server, {"prompt": prompt}, status=400)["error"]["param"] == param


def test_pictures_are_refused(server) -> None:
    body = {"prompt": {"prompt_string": "see <__media__>", "multimodal_data": "aGk="}}
    assert ask(server, body, status=501)["error"]["type"] == "not_supported_error"


def test_several_texts_of_a_prompt(server) -> None:
    body = {"prompt": ["the", "no"], "n_cmpl": 2, "n_predict": 8, "seed": 7, "temperature": 5, "deterministic": True}
    answers = ask(server, body)
    assert [one["index"] for one in answers] == [0, 1, 2, 3]
    assert [one["generation_settings"]["seed"] for one in answers] == [7, 8, 7, 8]
    assert answers[0]["content"] != answers[1]["content"]
    alone = ask(server, {**body, "prompt": "the", "n_cmpl": 1, "seed": 8})
    assert alone["content"] == answers[1]["content"]


def test_a_stream_is_the_whole_in_pieces(server) -> None:
    body = {"prompt": "the cat", "n_predict": 8, "seed": 3, "return_tokens": True, "deterministic": True}
    whole = ask(server, body)
    *pieces, last = stream(server, body)
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert [token for piece in pieces for token in piece["tokens"]] == whole["tokens"]
    assert all(piece["stop"] is False and "timings" not in piece for piece in pieces)
    assert [piece["tokens_predicted"] for piece in pieces][-1] == 8
    assert last["stop"] is True and last["content"] == "" and last["tokens"] == []
    assert {*last} == {*whole}
    assert last["generation_settings"] == {**whole["generation_settings"], "stream": True}


def test_several_texts_in_a_stream(server) -> None:
    body = {"prompt": ["the cat", "no way"], "n_predict": 5, "seed": 1, "deterministic": True}
    whole = ask(server, body)
    texts, ends = ["", ""], 0
    for one in stream(server, body):
        texts[one["index"]] += one["content"]
        ends += one["stop"]
    assert texts == [one["content"] for one in whole] and ends == 2


def test_timings_of_each_token(server) -> None:
    *pieces, last = stream(server, {"prompt": "the", "n_predict": 5, "timings_per_token": True})
    assert [piece["timings"]["predicted_n"] for piece in pieces] == [piece["tokens_predicted"] for piece in pieces]
    assert last["timings"]["predicted_n"] == 5


def test_an_error_is_no_stream(server) -> None:
    response = server.post("/completion", {"prompt": "the", "n_predict": -5, "stream": True})
    assert response.status_code == 400 and response.json()["error"]["param"] == "n_predict"


# ---- how a text ends


def test_stop_types(server, engine) -> None:
    engine.says("one two three")
    answer = ask(server, {"prompt": "the"})
    assert (answer["stop_type"], answer["content"]) == ("eos", "one two three")
    engine.says("one two three")
    answer = ask(server, {"prompt": "the", "stop": ["", " two"]})
    assert (answer["stop_type"], answer["stopping_word"], answer["content"]) == ("word", " two", "one")


def test_what_the_context_cuts_is_truncated(server, engine) -> None:
    engine.slowly(0)
    n_ctx = engine.context.n_ctx_seq
    answer = ask(server, {"prompt": [5] * (n_ctx - 3)})
    assert answer["truncated"] is True and answer["stop_type"] == "limit"


def test_a_prompt_that_does_not_fit(server, engine) -> None:
    n_ctx = engine.context.n_ctx_seq
    error = ask(server, {"prompt": [5] * (n_ctx + 1)}, status=400)["error"]
    assert error["type"] == "exceed_context_size_error" and error["code"] == "context_length_exceeded"
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (n_ctx + 1, n_ctx)
    assert f"exceeds the available context size of {n_ctx} tokens" in error["message"]


def test_only_the_prompt(server) -> None:
    ids = list(range(20, 90))
    answer = ask(server, {"prompt": ids, "n_predict": 0, "return_tokens": True})
    assert (answer["content"], answer["tokens"], answer["tokens_predicted"]) == ("", [], 0)
    assert answer["timings"]["prompt_n"] == 70
    # It is there for whoever comes next.
    assert ask(server, {"prompt": ids, "n_predict": 1})["timings"]["cache_n"] == 69
    (last,) = stream(server, {"prompt": ids, "n_predict": 0})
    assert last["stop"] is True and last["tokens_predicted"] == 0


def test_the_end_by_indentation(server, engine) -> None:
    script = "  if one\n    go\n  then\nout"
    engine.says(script)
    answer = ask(server, {"prompt": "the", "n_indent": 2})
    assert (answer["content"], answer["stop_type"]) == ("  if one\n    go\n  then\n", "limit")
    engine.says(script)
    assert ask(server, {"prompt": "the", "n_indent": 3})["content"] == "  if one\n    go\n  "
    engine.says(script)
    pieces = stream(server, {"prompt": "the", "n_indent": 3})
    assert "".join(piece["content"] for piece in pieces) == "  if one\n    go\n  "
    engine.says(script)
    assert ask(server, {"prompt": "the"})["content"] == script


def test_the_end_by_time(server, engine) -> None:
    engine.says("one two\nthree\nfour")
    write = engine.processor

    def wait(ids: Any, logits: Any) -> None:
        time.sleep(0.003)
        write(ids, logits)

    engine.processor = wait
    answer = ask(server, {"prompt": "the", "t_max_predict_ms": 1})
    assert (answer["content"], answer["stop_type"]) == ("one two\n", "limit")
    engine.says("one two\nthree")
    assert ask(server, {"prompt": "the", "t_max_predict_ms": 10**7})["stop_type"] == "eos"


# ---- probabilities


def test_probabilities(server, llm) -> None:
    body = {"prompt": "the cat", "n_predict": 4, "temperature": 0, "n_probs": 3, "return_tokens": True}
    answer = ask(server, body)
    found = answer["completion_probabilities"]
    assert [one["id"] for one in found] == answer["tokens"]
    expected = llm("the cat", max_tokens=4, temperature=0, logprobs=3).logprobs
    for one, logprob in zip(found, expected.token_logprobs, strict=True):
        assert one["logprob"] == pytest.approx(logprob, abs=1e-3)
        assert one["top_logprobs"][0] == {name: one[name] for name in ("id", "token", "bytes", "logprob")}
        assert len(one["top_logprobs"]) == 3
        assert bytes(one["bytes"]) == llm.vocab.token_to_piece(one["id"])
    *pieces, last = stream(server, body)
    assert [one["id"] for piece in pieces for one in piece["completion_probabilities"]] == answer["tokens"]
    assert "completion_probabilities" not in last


def test_probabilities_that_samplers_have_left(server) -> None:
    body = {"prompt": "the", "n_predict": 6, "seed": 5, "n_probs": 10, "post_sampling_probs": True, "top_k": 4}
    body |= {"temperature": 1.5, "repeat_penalty": 1.3, "return_tokens": True, "deterministic": True, "min_p": 0}
    answer = ask(server, body)
    found = answer["completion_probabilities"]
    assert [one["id"] for one in found] == answer["tokens"]
    for one in found:
        top = one["top_probs"]
        assert 1 <= len(top) <= 4 and sum(each["prob"] for each in top) <= 1.0001
        assert one["prob"] in [each["prob"] for each in top]
        assert top == sorted(top, key=lambda each: -each["prob"])
    wide = ask(server, {**body, "top_k": 0, "top_p": 1, "n_predict": 1})["completion_probabilities"][0]
    assert len(wide["top_probs"]) == 10
    pieces = stream(server, body)[:-1]
    assert [one for piece in pieces for one in piece["completion_probabilities"]] == found


def test_the_likeliest_is_certain_once_it_is_taken(server) -> None:
    body = {"prompt": "the", "n_predict": 3, "temperature": 0, "n_probs": 2, "post_sampling_probs": True}
    for one in ask(server, body)["completion_probabilities"]:
        assert one["prob"] == 1 and [each["id"] for each in one["top_probs"]] == [one["id"]]


@pytest.mark.parametrize("post_sampling", [False, True])
def test_no_probabilities_of_a_stop_string(server, engine, post_sampling) -> None:
    engine.says("one two three")
    body = {"prompt": "the", "stop": " two", "n_probs": 1, "post_sampling_probs": post_sampling}
    found = ask(server, body)["completion_probabilities"]
    assert b"".join(bytes(one["bytes"]) for one in found) == b"one"


# ---- sampling


def test_what_was_asked_for_is_shown(server) -> None:
    sampling = {
        "temperature": 0.5,
        "dynatemp_range": 0.1,
        "dynatemp_exponent": 1.5,
        "top_k": 9,
        "top_p": 0.8,
        "min_p": 0.01,
        "top_n_sigma": 3.0,
        "xtc_probability": 0.25,
        "xtc_threshold": 0.2,
        "typical_p": 0.9,
        "repeat_last_n": 32,
        "repeat_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "dry_multiplier": 0.5,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 16,
        "dry_sequence_breakers": ["!"],
        "mirostat": 0,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.25,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.5,
        "min_keep": 2,
        "seed": 11,
        "n_keep": 5,
        "n_discard": 7,
        "n_probs": 1,
        "stop": ["qqq"],
    }
    sent = {**sampling, "samplers": ["top_k", "penalties", "dry", "min_p", "temperature", "xtc", "typ_p", "top_p"]}
    sent["samplers"].append("top_n_sigma")
    shown = ask(server, {"prompt": "the", "n_predict": 2, **sent})["generation_settings"]
    assert {name: shown[name] for name in sent} == sent
    assert shown["n_predict"] == shown["max_tokens"] == 2
    assert shown["logit_bias"] == [] and shown["ignore_eos"] is False and shown["grammar"] == ""


def test_samplers_by_letters(server) -> None:
    shown = ask(server, {"prompt": "the", "n_predict": 1, "samplers": "kpt"})["generation_settings"]
    assert shown["samplers"] == ["top_k", "top_p", "temperature"]
    error = ask(server, {"prompt": "the", "samplers": "kz"}, status=400)["error"]
    assert error["param"] == "samplers" and "'z'" in error["message"]
    # What belongs to a sampler that is left out does not matter, as there.
    ask(server, {"prompt": "the", "n_predict": 1, "samplers": ["top_k"], "top_p": 0.5, "temperature": 0.3})


def test_logit_bias_in_all_forms(server, llm) -> None:
    settings = {"prompt": "the cat", "n_predict": 1, "temperature": 0, "return_tokens": True}
    (first,) = ask(server, settings)["tokens"]
    for bias in ([[first, False]], {str(first): False}, [[first, -1000]], {str(first): -1000.0}):
        assert ask(server, {**settings, "logit_bias": bias})["tokens"] != [first]
    wanted = llm.vocab.tokenize(" people", add_special=False)
    answer = ask(server, {**settings, "logit_bias": [[" people", 500]]})
    assert answer["tokens"][0] in wanted
    assert answer["generation_settings"]["logit_bias"] == [
        {"token": token, "bias": 500.0} for token in dict.fromkeys(wanted)
    ]
    shown = ask(server, {**settings, "logit_bias": {str(first): False}})["generation_settings"]["logit_bias"]
    assert shown == [{"token": first, "bias": None}]


@pytest.mark.parametrize("bias", [3, [[1]], [[1, True]], [[1, "x"]], [[None, 1]], [[10**6, 1]], {"-3": "x"}])
def test_logit_bias_that_is_none(server, bias) -> None:
    assert ask(server, {"prompt": "the", "logit_bias": bias}, status=400)["error"]["param"] == "logit_bias"


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_ignore_eos(server, engine, llm, path) -> None:
    body = {"prompt": "the", "n_predict": 12, "logit_bias": {str(llm.vocab.eos): 1000}}
    assert ask(server, body, path)["timings"]["predicted_n"] == 0
    answer = ask(server, {**body, "ignore_eos": True}, path)
    assert answer["timings"]["predicted_n"] == 12
    if path == "/completion":
        assert answer["generation_settings"]["ignore_eos"] is True
        shown = {one["token"]: one["bias"] for one in answer["generation_settings"]["logit_bias"]}
        assert all(shown[token] is None for token in llm.vocab.eog_tokens)


def test_forms(server) -> None:
    assert ask(server, {"prompt": "the", "grammar": 'root ::= "no" "way"'})["content"] == "noway"
    assert json.loads(ask(server, {"prompt": "the", "json_schema": {"const": 42}})["content"]) == 42
    answer = ask(server, {"prompt": "the", "json_schema": {}, "n_predict": 1})
    assert answer["content"].startswith("{") and answer["generation_settings"]["grammar"]
    assert ask(server, {"prompt": "the", "grammar": "root ::= ("}, status=400)["error"]["param"] == "grammar"
    assert ask(server, {"prompt": "the", "grammar": 'root ::= "a"', "grammar_lazy": True}, status=501)["error"]


def test_the_fields_that_are_wanted(server) -> None:
    fields = ["content", "generation_settings/n_predict", "timings/prompt_n", "nothing", "content/more"]
    answer = ask(server, {"prompt": "the", "n_predict": 2, "response_fields": fields})
    assert {*answer} == {"content", "generation_settings/n_predict", "timings/prompt_n"}
    assert answer["generation_settings/n_predict"] == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_probs", -1),
        ("n_probs", 10**6),
        ("t_max_predict_ms", "soon"),
        ("n_indent", -1),
        ("id_slot", -2),
        ("n_keep", 1.5),
        ("response_fields", [1]),
        ("return_tokens", 1),
        ("n_cmpl", 0),
        ("sse_ping_interval", "x"),
        ("top_k", "many"),
        ("adaptive_decay", 2),
    ],
)
def test_what_is_wrong_is_named(server, name, value) -> None:
    assert ask(server, {"prompt": "the", name: value}, status=400)["error"]["param"] == name


def test_defaults_of_the_server(start, engine) -> None:
    server = start(engine, sampling={"temperature": 0.0, "top_k": 7, "seed": 5, "logit_bias": {9: 1.0}}, max_tokens=4)
    shown = ask(server, {"prompt": "the"})["generation_settings"]
    assert (shown["temperature"], shown["top_k"], shown["seed"], shown["n_predict"]) == (0, 7, 5, 4)
    assert shown["logit_bias"] == [{"token": 9, "bias": 1.0}]
    props = server.get("/props").json()["default_generation_settings"]["params"]
    assert (props["temperature"], props["top_k"], props["seed"], props["n_predict"]) == (0, 7, 5, 4)
    shown = ask(server, {"prompt": "the", "temperature": 1.0, "seed": -1})["generation_settings"]
    assert shown["temperature"] == 1 and shown["seed"] != 5
    # Named samplers leave out those that only the server asks for.
    ask(server, {"prompt": "the", "samplers": ["top_p"]}, "/v1/completions")


# ---- infilling


def test_infill(server, engine) -> None:
    vocab = engine.vocab

    def plain(text: str) -> list[int]:
        return vocab.tokenize(text, add_special=False)

    body = {"input_prefix": "the <s>", "input_suffix": "at all", "prompt": "no", "n_predict": 2, "n_probs": 1}
    answer = ask(server, body, "/infill")
    ids = [vocab.bos, vocab.fim_pre, *plain("the <s>"), *plain("no"), vocab.fim_suf, *plain("at all"), vocab.fim_mid]
    assert answer["tokens_evaluated"] == len(ids)
    assert answer["prompt"] == vocab.detokenize(ids)
    assert (
        ask(server, {"prompt": ids, "n_predict": 2, "temperature": 0})["content"]
        == (ask(server, {**body, "temperature": 0}, "/infill")["content"])
    )
    extra = [{"filename": "a.py", "text": "word"}, {"text": "more"}]
    with_extra = ask(server, {**body, "input_extra": extra}, "/infill")
    between = plain("\n\n--- snippet ---\n\n")
    assert with_extra["tokens_evaluated"] == len(ids) + 2 * len(between) + len(plain("word") + plain("more"))


def test_an_infill_is_cut_around_the_gap(start, engine) -> None:
    server = start(engine, spm_infill=True)
    vocab, n_batch = engine.vocab, 3 * engine.context.n_ctx_seq // 4
    prefix, suffix = [20] * n_batch + [21] * 5, [22] * 5 + [23] * n_batch
    answer = ask(server, {"input_prefix": prefix, "input_suffix": suffix, "n_predict": 1}, "/infill")
    prefix, suffix = prefix[-3 * (n_batch // 4) :], suffix[: n_batch // 4 - 2]
    ids = [vocab.bos, vocab.fim_suf, *suffix, vocab.fim_pre, *prefix, vocab.fim_mid]
    assert answer["tokens_evaluated"] == len(ids)
    assert answer["prompt"] == vocab.detokenize(ids)


def test_a_model_that_cannot_fill_in(start, make_model, tmp_path) -> None:
    path = models.write(tmp_path / "none.gguf", "llama", vocab="ugm")
    with Engine(make_model(path), n_ctx=64, n_parallel=1, n_threads=1) as engine:
        server = start(engine)
        body = {"input_prefix": "a", "input_suffix": "b"}
        error = ask(server, body, "/infill", status=501)["error"]
        assert error["type"] == "not_supported_error" and "no tokens for prefix, suffix, middle" in error["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": 3}, "input_suffix"),
        ({"prompt": [1]}, "prompt"),
        ({"input_extra": {}}, "input_extra"),
        ({"input_extra": [{}]}, "input_extra[0].text"),
        ({"input_extra": ["x"]}, "input_extra[0]"),
        ({"input_extra": [{"text": "a", "filename": 3}]}, "input_extra[0].filename"),
    ],
)
def test_infills_that_are_none(server, change, param) -> None:
    body = {"input_prefix": "the", "input_suffix": "at", **change}
    assert ask(server, body, "/infill", status=400)["error"]["param"] == param


# ---- the rest


def test_props(start, server, engine) -> None:
    props = server.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == engine.context.n_ctx_seq
    assert props["default_generation_settings"]["params"]["temperature"] == 0.8
    assert props["default_generation_settings"]["params"]["seed"] == 2**32 - 1
    assert props["endpoint_props"] is False and props["total_slots"] == 4
    assert props["model_ftype"] and props["build_info"].startswith("b")
    assert ask(server, {}, "/props", status=501)["error"]["type"] == "not_supported_error"
    open_server = start(engine, props=True)
    assert open_server.get("/props").json()["endpoint_props"] is True
    assert ask(open_server, {}, "/props") == {"success": True}


def test_metrics_know_when_it_began(server) -> None:
    response = server.get("/metrics")
    assert int(response.headers["Process-Start-Time-Unix"]) == server.state.created
    assert "llamacpp:prompt_tokens_cached_total " in response.text


def test_tokenize_mixed(server, llm) -> None:
    ids = llm.vocab.tokenize("the cat", add_special=False)
    assert ask(server, {"content": ["the cat", 7, "the cat"]}, "/tokenize")["tokens"] == [*ids, 7, *ids]
    found = ask(server, {"content": ["the cat"], "add_special": True}, "/tokenize")["tokens"]
    assert found == [llm.vocab.bos, *ids]
    assert ask(server, {"content": [10**6]}, "/tokenize", status=400)["error"]["param"] == "content"
    assert ask(server, {"content": {}}, "/tokenize", status=400)["error"]["param"] == "content"


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_counts_of_tokens(server, prefix) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    chat = ask(server, {"messages": messages, "max_tokens": 1}, f"{prefix}/chat/completions")
    counted = ask(server, {"messages": messages}, f"{prefix}/chat/completions/input_tokens")
    assert counted == {"object": "response.input_tokens", "input_tokens": chat["usage"]["prompt_tokens"]}
    assert ask(server, {"input": "the cat"}, f"{prefix}/responses/input_tokens") == counted
    assert ask(server, {"input": "the cat", "max_output_tokens": 1}, f"{prefix}/responses")["object"] == "response"
    assert ask(server, {"messages": 3}, f"{prefix}/chat/completions/input_tokens", status=400)["error"]


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "the"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_timings_in_openais_answers(server, engine, path, body, include_usage) -> None:
    engine.says("one two three")
    answer = ask(server, body, path)
    assert answer["timings"]["predicted_n"] == answer["usage"]["completion_tokens"]
    assert answer["system_fingerprint"].startswith("b")
    engine.says("one two three")
    options = {"stream_options": {"include_usage": include_usage}}
    with httpx.stream("POST", server.url + path, json={**body, **options, "stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[-1]["timings"]["predicted_n"] == answer["usage"]["completion_tokens"]
    assert all("timings" not in chunk for chunk in chunks[:-1])
    assert {chunk["system_fingerprint"] for chunk in chunks} == {answer["system_fingerprint"]}


def test_all_that_is_known_of_an_answer(server, engine) -> None:
    engine.says("one two three")
    body = {"messages": [{"role": "user", "content": "the cat"}], "top_k": 7, "max_tokens": 40}
    answer = ask(server, {**body, "verbose": True}, "/v1/chat/completions")
    found = answer["__verbose"]
    assert "the cat" in found["prompt"] and found["content"] == "one two three"
    assert (found["stop_type"], found["generation_settings"]["top_k"]) == ("eos", 7)
    assert found["generation_settings"]["n_predict"] == 40
    assert "__verbose" not in ask(server, body, "/v1/chat/completions")
    engine.processor = None
    answer = ask(server, {"prompt": "the", "verbose": True, "n": 2, "max_tokens": 2}, "/v1/completions")
    assert answer["__verbose"]["content"] == answer["choices"][0]["text"]


def test_the_first_chunk_of_a_chat_has_the_role(server, engine) -> None:
    engine.says("one two three")
    body = {"messages": [{"role": "user", "content": "a"}], "stream": True, "timings_per_token": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    first, *rest = [json.loads(line) for line in lines[:-1]]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None} and "timings" not in first
    assert all("role" not in chunk["choices"][0]["delta"] and "timings" in chunk for chunk in rest)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in rest) == "one two three"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": "the " * 40}),
        ("/v1/completions", {"prompt": "the " * 40}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the " * 40}]}),
        ("/v1/responses", {"input": "the " * 40, "max_output_tokens": 3, "timings_per_token": True}),
    ],
)
def test_progress(server, path, body) -> None:
    for cached in (False, True):
        sent = {**body, "n_predict": 3, "return_progress": True, "stream": True}
        with httpx.stream("POST", server.url + path, json=sent) as response:
            assert response.status_code == 200
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
        chunks = [json.loads(line) for line in lines]
        marks = "".join("x" if "prompt_progress" in chunk else "." for chunk in chunks)
        assert re.fullmatch(r"\.{0,2}x+\.+", marks)
        reports = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
        total = reports[0]["total"]
        assert reports[0]["cache"] == reports[0]["processed"] < total and reports[-1]["processed"] == total
        assert [report["processed"] for report in reports] == sorted({report["processed"] for report in reports})
        assert reports[0]["cache"] == total - 1 or not cached
        if path == "/v1/responses":
            deltas = [chunk["timings"]["predicted_n"] for chunk in chunks if chunk["type"].endswith("text.delta")]
            assert deltas == sorted(deltas) and chunks[-1]["timings"]["predicted_n"] == 3


def test_pages_of_this_machine_may_ask(start, engine) -> None:
    server = start(engine, cors_origins=("localhost", "https://example.org"))

    def allowed(origin: str) -> str | None:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return server.http.options(f"{server.url}/completion", headers=asked).headers.get("access-control-allow-origin")

    for origin in ("http://localhost", "https://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:5000"):
        assert allowed(origin) == origin
    assert allowed("https://example.org") == "https://example.org"
    for origin in ("http://localhost.evil.com", "http://notlocalhost", "http://evil.com", "null"):
        assert allowed(origin) is None


# ---- the table of endpoints


def test_the_table_has_all_endpoints_of_llama_server(engine) -> None:
    if not SOURCE.is_file():
        pytest.skip("llama.cpp's sources are not here")
    found = re.findall(r'ctx_http\.(get|post|del)\s*\(\s*"([^"]+)"', SOURCE.read_text(encoding="utf-8"))
    names = {"get": "GET", "post": "POST", "del": "DELETE"}
    theirs = {(names[method], path) for method, path in found}
    assert len(theirs) > 40
    rows = re.findall(r"^\| (GET|POST|DELETE) \| `([^`]+)` \| (yes|no)\b", PAGE.read_text(encoding="utf-8"), re.M)
    table = {(method, path): here == "yes" for method, path, here in rows}
    assert len(table) == len(rows)
    assert set(table) == theirs
    app = make_app(engine, Settings(metrics=True))
    ours = {
        (method, re.sub(r"\{.*?\}", ":", route.path))
        for route in [*app.routes, *MANAGING]
        for method in getattr(route, "methods", None) or ()
    }
    plain = {(method, re.sub(r":\w+", ":", path)): here for (method, path), here in table.items()}
    assert {route for route, here in plain.items() if here} == plain.keys() & ours
