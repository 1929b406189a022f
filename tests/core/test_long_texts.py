"""Grammars and texts that overflow a stack or the memory inside llama.cpp: refused, or worked through."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import isolation

VOCABULARIES = Path(__file__).parents[2] / "llama_cpp_src" / "llama.cpp" / "models"

# In a process that may not take the whole machine's memory.
PRELUDE = "limit_memory(); model = Model(PATH)\n"

GRAMMARS = {
    "repeated from five to two times": """'root ::= "a"{5,2}'""",
    "repeated from five to two times in a group": """'root ::= ("a" | [b-z]){ 5 , 2 } "b"'""",
    "parentheses without end": "'root ::= ' + '(' * 100_000",
    "nested parentheses": """'root ::= ' + '(' * 100_000 + '"a"' + ')' * 100_000""",
    "rules of rules": "chr(10).join(f'r{i} ::= r{i + 1}' for i in range(99999)) + '\\nr99999 ::= [a]\\nroot ::= r0'",
    "repeated very often": """'root ::= "a"{99999999}'""",
    "repeated beyond counting": """'root ::= "a"{99999999999999999999999}'""",
}


@pytest.mark.process
@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
def test_grammars_that_are_refused(grammar, tiny_models):
    script = f"""
grammar = {grammar}
error = raises(errors.GrammarError, "", Grammar, model.vocab, grammar)
print(str(error)[:200])
threading.stack_size(512 * 1024)
run_threads(lambda: raises(errors.GrammarError, "", Grammar, model.vocab, grammar))
"""
    isolated_quietly(script, tiny_models["llama"])


def isolated_quietly(script, path):
    # What llama.cpp's grammar parser prints has a test of its own.
    result = isolation.run(PRELUDE + script + "\nprint('reached the end')", path)
    assert result.returncode == 0, f"{result.returncode}\n{result.stdout}\n{result.stderr[-2000:]}"
    assert result.stdout.endswith("reached the end\n")


FINE = [
    'root ::= "a"{2,5} "{5,2}" [{5,2}] # {5,2}',
    'root ::= "a"{3} "b"{0,} "c"{2,2}',
    'root ::= "(((((" [(] ")"',
    "root ::= " + "(" * 50 + '"a"' + ")" * 50,
    "\n".join(["root ::= r0", *[f'r{i} ::= "x" r{i + 1}' for i in range(1000)], 'r1000 ::= "a"']),
]


@pytest.mark.process
@pytest.mark.parametrize("grammar", FINE, ids=range(len(FINE)))
def test_grammars_that_only_look_so(grammar, tiny_models):
    isolation.survive(
        PRELUDE + f"sampler = Grammar(model.vocab, {grammar!r})\nsampler.apply(np.zeros(model.n_vocab, 'f'))\n"
        "threading.stack_size(512 * 1024)\n"
        f"run_threads(lambda: Grammar(model.vocab, {grammar!r}).apply(np.zeros(model.n_vocab, 'f')))",
        tiny_models["llama"],
    )


@pytest.mark.process
@pytest.mark.parametrize(
    "pattern", ["'(' * 100_000", "'(' * 50_000 + ')' * 50_000", "'a|' * 500_000", "'['", "'a{9999999}'"]
)
def test_regular_expressions_that_are_refused(pattern, tiny_models):
    isolated_quietly(
        f"""
pattern = {pattern}
raises(errors.PyllmError, "", Grammar, model.vocab, 'root ::= "a"', trigger_patterns=[pattern])
raises(errors.PyllmError, "", Model, PATH, tensor_buft_overrides={{pattern: "CPU"}})
""",
        tiny_models["llama"],
    )


@pytest.mark.process
@pytest.mark.parametrize(
    "name",
    [
        "deepseek-llm",
        "deepseek-coder",
        "aquila",
        "falcon",
        "gpt-neox",
        "gpt-2",
        "llama-bpe",
        "qwen2",
        "llama-spm",
        "bert-bge",
    ],
)
def test_long_runs_of_one_character(name):
    """Some tokenizers split text with regular expressions that recurse once for each character."""
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip("there is no such vocabulary in the sources here")
    isolation.survive(
        """
vocab = Model(PATH, vocab_only=True).vocab
for character in ("a", "1", " ", ".", "\\n", "\\u00e9", "\\u4e2d"):
    text = character * 100_000
    tokens = []
    def tokenize():
        tokens.append(vocab.tokenize(text, add_special=False))
    try:
        tokenize()
        threading.stack_size(512 * 1024)
        run_threads(tokenize)
        assert tokens[0] == tokens[1]
    except errors.TokenizeError as exception:
        assert "run" in str(exception) or "long" in str(exception)
"""
        + "\n",
        path,
        timeout=550,
    )
