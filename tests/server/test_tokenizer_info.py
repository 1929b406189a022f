"""What clients tokenize by who ask the server to: vLLM's names beside those of llama-server."""

from __future__ import annotations


def test_special_tokens(server, engine) -> None:
    vocab = engine.vocab
    info = server.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == (vocab.text(vocab.bos), vocab.text(vocab.eos))
    # The names are read as these tokens.
    assert server.post("/tokenize", {"prompt": info["eos_token"]}).json()["tokens"] == [vocab.eos]


def test_both_ways(server, engine) -> None:
    for special in (True, False):
        body = {"prompt": "the cat", "add_special_tokens": special}
        tokens = server.post("/tokenize", body).json()["tokens"]
        assert tokens == server.post("/tokenize", {"content": "the cat", "add_special": special}).json()["tokens"]
        assert tokens == engine.vocab.tokenize("the cat", add_special=special)
    answer = server.post("/detokenize", {"tokens": tokens}).json()
    assert answer["prompt"] == answer["content"] == "the cat"
    response = server.post("/tokenize", {"prompt": 5})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
