"""The flags of ``pyllm run`` that llama.cpp's programs have too."""

from __future__ import annotations

import json

import pytest
import typer

from pyllm.cli.options import ModelOptions, SamplingOptions, StructureOptions
from pyllm.cli.run import _split, unescape

PROMPT = "the number of the people"
FAST = ["--temp", "0", "-n", "12", "-t", "1", "-c", "512"]


@pytest.fixture
def tiny(tiny_models):
    return tiny_models["llama"]


def run_json(pyllm, *arguments, **options):
    result = pyllm("run", *arguments, "--json", **options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_prompt_from_a_file(pyllm, tiny, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT + "\n")
    plain = run_json(pyllm, tiny, PROMPT, *FAST)
    assert run_json(pyllm, tiny, "-f", path, *FAST)["text"] == plain["text"]
    both = pyllm("run", tiny, PROMPT, "-f", path)
    assert both.returncode == 2
    assert "not both" in both.stderr
    missing = pyllm("run", tiny, "-f", tmp_path / "none.txt")
    assert missing.returncode == 2
    assert "none.txt" in missing.stderr
    shown = pyllm("run", tiny, PROMPT, *FAST, "--display-prompt").stdout
    assert shown == PROMPT + plain["text"]


def test_reverse_prompt_is_shown(pyllm, tiny):
    plain = run_json(pyllm, tiny, PROMPT, *FAST)["text"]
    end = plain[len(plain) // 2 :][:3]
    shown = plain[: plain.index(end) + len(end)]
    assert pyllm("run", tiny, PROMPT, *FAST, "-r", end).stdout == shown
    assert run_json(pyllm, tiny, PROMPT, *FAST, "-r", end)["text"] == shown
    assert run_json(pyllm, tiny, PROMPT, *FAST, "--stop", end)["text"] == shown[: -len(end)]


def test_grammar_and_schema(pyllm, tiny, tmp_path):
    grammar = 'root ::= "ab" | "cd"'
    path = tmp_path / "g.gbnf"
    path.write_text(grammar)
    assert pyllm("run", tiny, PROMPT, *FAST, "--grammar", grammar).stdout in ("ab", "cd")
    assert pyllm("run", tiny, PROMPT, *FAST, "--grammar-file", path).stdout in ("ab", "cd")
    schema = tmp_path / "s.json"
    schema.write_text('{"enum": [1, 2]}')
    assert json.loads(pyllm("run", tiny, PROMPT, *FAST, "-jf", schema).stdout) in (1, 2)
    assert json.loads(pyllm("run", tiny, PROMPT, *FAST, "-j", '{"enum": [3]}').stdout) == 3
    two = pyllm("run", tiny, PROMPT, "--grammar", grammar, "-j", "{}")
    assert two.returncode == 2
    bad = pyllm("run", tiny, PROMPT, "--grammar", "root ::= (")
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr


def test_prompt_cache(pyllm, tiny, tmp_path):
    path = tmp_path / "cache.bin"
    first = run_json(pyllm, tiny, PROMPT, *FAST, "--prompt-cache", path)
    assert first["usage"]["cached_tokens"] == 0
    again = run_json(pyllm, tiny, PROMPT, *FAST, "--prompt-cache", path)
    assert again["text"] == first["text"]
    assert again["usage"]["cached_tokens"] == first["usage"]["prompt_tokens"] - 1
    before = path.read_bytes()
    run_json(pyllm, tiny, "something else", *FAST, "--prompt-cache", path, "--prompt-cache-ro")
    assert path.read_bytes() == before
    path.write_bytes(b"no state")
    damaged = pyllm("run", tiny, PROMPT, *FAST, "--prompt-cache", path)
    assert damaged.returncode == 1
    assert "cache.bin" in damaged.stderr
    assert "Traceback" not in damaged.stderr


def test_sampling_flags(pyllm, tiny):
    plain = run_json(pyllm, tiny, PROMPT, *FAST)
    first = plain["tokens"][0]
    assert first not in run_json(pyllm, tiny, PROMPT, *FAST, "-l", f"{first}-inf")["tokens"]
    hot = run_json(pyllm, tiny, PROMPT, "-n", "12", "-t", "1", "--temp", "3", "--top-k", "0", "--min-p", "0", "-s", "1")
    assert hot["text"] != plain["text"]
    one = run_json(
        pyllm, tiny, PROMPT, "-n", "12", "-t", "1", "--temp", "3", "--samplers", "top_k;temperature", "--top-k", "1"
    )
    assert one["text"] == plain["text"]
    penalised = run_json(pyllm, tiny, PROMPT, *FAST, "--repeat-penalty", "5", "--repeat-last-n", "64")
    assert len(set(penalised["tokens"])) == 12


def test_escapes(pyllm, tiny):
    assert (
        run_json(pyllm, tiny, r"the\npeople", "-e", *FAST)["text"]
        == run_json(pyllm, tiny, "the\npeople", *FAST)["text"]
    )
    assert unescape(r"a\n\t\"\\n\x41\q\x4\\") == 'a\n\t"\\nA\\q\\x4\\'
    assert unescape("\\") == "\\"
    assert unescape(r"\xe2\x82\xac \x00é") == "€ \0é"
    with pytest.raises(typer.BadParameter, match="not UTF-8"):
        unescape(r"\xe2")


def test_draft_model(pyllm, tiny):
    plain = run_json(pyllm, tiny, PROMPT, *FAST)
    assert run_json(pyllm, tiny, PROMPT, *FAST, "-md", tiny)["text"] == plain["text"]


def test_missing_files_are_one_line(pyllm, tiny, tmp_path):
    part = tmp_path / "x-00001-of-00002.gguf"
    part.write_bytes(tiny.read_bytes())
    for arguments, named in (
        ([tiny, PROMPT, "--lora", tmp_path / "none.gguf"], "none.gguf"),
        ([part, PROMPT], "a part of the model is missing: "),
    ):
        result = pyllm("run", *arguments)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("pyllm: error: ") and named in result.stderr
        assert result.stderr.count("\n") == 1


def test_an_adapter_that_is_not_here_is_not_downloaded_unasked(pyllm, tiny, empty_cache):
    for flags in (["--lora", "smollm2"], ["-md", "smollm2"]):
        result = pyllm("run", tiny, PROMPT, *flags)
        assert result.returncode == 1
        assert "run `pyllm pull smollm2` first, or add --yes" in result.stderr


def test_a_cache_that_cannot_be_kept_is_told_before_anything_is_computed(pyllm, tiny, tmp_path):
    result = pyllm("run", tiny, PROMPT, *FAST, "--prompt-cache", tmp_path / "nowhere" / "cache.bin")
    assert (result.returncode, result.stdout) == (2, "") and "there is no folder" in result.stderr
    result = pyllm("run", tiny, PROMPT, *FAST, "--prompt-cache-ro")
    assert (result.returncode, result.stdout) == (2, "") and "--prompt-cache names" in result.stderr


@pytest.mark.parametrize(
    ("argument", "is_model"),
    [
        ("smollm2", True),
        ("SmolLM2", True),
        ("x.gguf", True),
        ("owner/repo:Q4_K_M", True),
        ("owner/repo", True),
        ("hf:owner/repo", True),
        ("ollama:llama3.2:1b", True),
        ("https://example.com/x.gguf", True),
        ("pypi:package==1.0", True),
        ("Hello", False),
        ("Note: this", False),
        ("https://example.com is", False),
        ("one/two or three", False),
        ("", False),
        ("a\0b", False),
        ("word " * 5000, False),
    ],
)
def test_a_single_argument(argument, is_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = (argument, None) if is_model else ("smollm2", argument)
    assert _split(argument, None, prompt_is_elsewhere=False) == expected
    assert _split(argument, "p", prompt_is_elsewhere=False) == (argument, "p")


def test_arguments():
    options = ModelOptions(
        ctx_size=0, threads=2, gpu_layers=-1, flash_attn="on", lora=["a,b"], lora_scaled=["c:0.5,d:2"], model_draft="m"
    )
    assert options.arguments() == {
        "n_ctx": 0,
        "n_threads": 2,
        "n_gpu_layers": -1,
        "flash_attn_type": "enabled",
        "lora": [("a", 1.0), ("b", 1.0), ("c", 0.5), ("d", 2.0)],
        "draft": "m",
    }
    assert ModelOptions().arguments() == {}
    sampling = SamplingOptions(temp=0.5, logit_bias=["15+1.5", "16-inf"], seed=-1, samplers="top_k;min_p")
    assert sampling.arguments() == {
        "temperature": 0.5,
        "logit_bias": {15: 1.5, 16: float("-inf")},
        "samplers": ["top_k", "min_p"],
    }
    assert StructureOptions(json_schema="{}").arguments() == {"json_schema": "{}"}


@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(flash_attn="maybe"),
        ModelOptions(lora_scaled=["a"]),
        ModelOptions(lora_scaled=["a:b"]),
        SamplingOptions(logit_bias=["15"]),
        SamplingOptions(logit_bias=["a+1"]),
        StructureOptions(grammar="a", json_schema="b"),
    ],
)
def test_wrong_arguments(options):
    with pytest.raises(typer.BadParameter):
        options.arguments()
