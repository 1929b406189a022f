"""``pyllm embed``, ``pyllm rerank`` and ``pyllm tokenize``, with tiny random models."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pyllm import Llama

TEXTS = ["the cat sat on the mat", "no way", "more people look at the time"]
LINES = "\n".join(["the cat sat on the mat", "", "no way\r", "more people look at the time"]) + "\n"


@pytest.fixture(scope="module")
def bert(tiny_models):
    return tiny_models["bert"]


@pytest.fixture
def path(tiny_models):
    return tiny_models["llama"]


@pytest.fixture(scope="module")
def expected(bert):
    with Llama(bert, n_threads=1) as llm:
        return llm.embed(TEXTS)


def embed(pyllm, *arguments, **options):
    result = pyllm("embed", *arguments, "--threads", "1", **options)
    assert (result.stderr, result.returncode) == ("", 0)
    return result.stdout


class TestEmbed:
    def test_lines_of_json_from_arguments_and_from_standard_input(self, pyllm, bert, expected):
        for out in (embed(pyllm, bert, *TEXTS), embed(pyllm, bert, input=LINES)):
            found = [json.loads(line) for line in out.splitlines()]
            assert [item["index"] for item in found] == [0, 1, 2]
            assert np.allclose([item["embedding"] for item in found], expected, atol=1e-6)

    @pytest.mark.parametrize(("output", "separator"), [("csv", ","), ("raw", None)])
    def test_numbers_in_lines(self, pyllm, bert, expected, output, separator):
        out = embed(pyllm, bert, *TEXTS, "--output", output)
        found = [[float(number) for number in line.split(separator)] for line in out.splitlines()]
        assert np.array_equal(np.array(found, np.float32), expected)

    def test_in_the_shape_of_openai(self, pyllm, bert, expected):
        response = json.loads(embed(pyllm, bert, "--embd-output-format", "json", input=LINES))
        assert response["object"] == "list" and response["model"] == "bert.gguf"
        assert np.allclose([item["embedding"] for item in response["data"]], expected, atol=1e-6)

    def test_a_numpy_file(self, bert, expected):
        command = [sys.executable, "-m", "pyllm", "embed", str(bert), *TEXTS, "--output", "npy", "-t", "1"]
        done = subprocess.run(command, capture_output=True, check=True)
        assert np.array_equal(np.load(io.BytesIO(done.stdout)), expected)

    def test_options(self, pyllm, bert):
        out = embed(pyllm, bert, "no way", "--pooling", "cls", "--normalize", "-1", "--dimensions", "5", "-b", "32")
        with Llama(bert, n_threads=1) as llm:
            vector = llm.embed("no way", pooling="cls", normalize=False, dimensions=5)
        assert np.allclose(json.loads(out)["embedding"], vector, atol=1e-5)
        rows = embed(pyllm, bert, "no way", "--pooling", "none", "--output", "csv").splitlines()
        assert len(rows) == 4  # with the tokens around it
        long = "time " * 100
        assert "at most 50 can" in pyllm("embed", bert, long, "-c", "50").stderr
        assert embed(pyllm, bert, long, "-c", "50", "--overflow", "truncate")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--output", "xml"], "xml"),
            (["--pooling", "none", "--output", "npy"], "another --output"),
            (["--normalize", "-2"], "--normalize"),
        ],
    )
    def test_wrong_usage(self, pyllm, bert, arguments, message):
        result = pyllm("embed", bert, "no way", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr

    def test_errors_are_one_line(self, pyllm, bert, tiny_models):
        for arguments in (
            [bert, "--pooling", "rank", "x"],
            [tiny_models["t5"], "x"],
            [bert, "--dimensions", "99", "x"],
        ):
            result = pyllm("embed", *arguments)
            assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)

    def test_standard_input_that_is_not_utf8(self, pyllm, bert):
        result = pyllm("embed", bert, input=b"fine\n\xff\xfe\n")
        assert result.returncode == 2 and "line 2 of standard input is not UTF-8" in result.stderr


AT_A_TERMINAL = """
import sys
from pyllm.cli.main import app

for arguments in (["embed"], ["rerank", "q"], ["tokenize"], ["run"]):
    try:
        app([arguments[0], sys.argv[1], *arguments[1:]], prog_name="pyllm")
    except SystemExit as error:
        assert error.code == 2, (arguments, error.code)
    else:
        raise AssertionError(arguments)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_nothing_to_do_at_a_terminal(bert):
    import pty

    parent, child = pty.openpty()
    command = [sys.executable, "-c", AT_A_TERMINAL, str(bert)]
    result = subprocess.run(command, stdin=child, capture_output=True, text=True)
    os.close(child)
    os.close(parent)
    assert result.returncode == 0, result.stderr
    for message in ("give texts", "give documents", "give a text", "give a prompt"):
        assert message in result.stderr
    assert result.stdout == ""


class TestRerank:
    def test_best_first(self, pyllm, tiny_models):
        path = tiny_models.make("bert", pooling="rank")
        with Llama(path, n_threads=1) as llm:
            expected = llm.rerank("the time", TEXTS, return_documents=True)
        out = pyllm("rerank", path, "the time", *TEXTS, "-t", "1").stdout
        assert [line.split("\t")[1:] for line in out.splitlines()] == [
            [str(result.index), result.document] for result in expected
        ]
        assert float(out.split("\t")[0]) == pytest.approx(expected[0].relevance_score, abs=1e-4)
        found = json.loads(pyllm("rerank", path, "the time", "--top-n", "1", "--json", "-t", "1", input=LINES).stdout)
        assert [item["index"] for item in found] == [expected[0].index]
        assert found[0]["document"] == {"text": expected[0].document}

    def test_by_embedding(self, pyllm, bert):
        result = pyllm("rerank", bert, "no way", *TEXTS)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert "need a reranker" in result.stderr
        out = pyllm("rerank", bert, "no way", *TEXTS, "--by", "embedding", "-t", "1").stdout
        assert out.splitlines()[0].split("\t")[1:] == ["1", "no way"]


class TestTokenize:
    def ids(self, pyllm, path, *arguments, **options):
        result = pyllm("tokenize", path, *arguments, "--ids", **options)
        assert (result.stderr, result.returncode) == ("", 0)
        return json.loads(result.stdout)

    def test_ids(self, pyllm, path, tiny_model):
        text = "the cat <|im_end|>\n"
        for special in (True, False):
            flags = [] if special else ["--no-parse-special"]
            expected = tiny_model.vocab.tokenize(text, parse_special=special)
            assert self.ids(pyllm, path, text, *flags) == expected
            assert self.ids(pyllm, path, *flags, input=text) == expected
            assert self.ids(pyllm, path, "-", "--no-bos", *flags, input=text) == expected[1:]
        assert expected[0] == tiny_model.vocab.bos

    def test_no_special(self, pyllm, bert, load):
        vocab = load("bert").vocab
        expected = vocab.tokenize("no way")
        assert self.ids(pyllm, bert, "no way") == expected
        assert self.ids(pyllm, bert, "no way", "--no-bos") == expected[1:]
        assert self.ids(pyllm, bert, "no way", "--no-special") == expected[1:-1]

    def test_pieces(self, pyllm, path, tiny_model):
        text = "the 🙃"
        tokens = tiny_model.vocab.tokenize(text)
        lines = pyllm("tokenize", path, text, "--show-count").stdout.splitlines()
        assert lines[-1] == f"Total number of tokens: {len(tokens)}"
        assert [int(line.split(" -> ")[0]) for line in lines[:-1]] == tokens
        assert "'\\xf0'" in lines[-5]
        objects = json.loads(pyllm("tokenize", path, text, "--json").stdout)
        assert [item["id"] for item in objects] == tokens
        assert objects[-4:] == [{"id": tokens[i - 4], "piece": [byte]} for i, byte in enumerate("🙃".encode())]

    def test_wrong_usage(self, pyllm, path):
        for flags in (["--ids", "--json"], ["--json", "--show-count"]):
            assert pyllm("tokenize", path, "no", *flags).returncode == 2
