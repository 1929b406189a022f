"""The model for lm-evaluation-harness, with the real harness and tasks made here."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from eval import corpus
from support.numerics import EXACT

from pyllm import Llama, Model
from pyllm.errors import InvalidArgumentError, UnknownArgumentError
from pyllm.eval import logprobs, score

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the harness's own imports warn of
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    from pyllm.eval.lm_eval import PyllmLM

pytestmark = pytest.mark.slow


def requests(kind, *arguments):
    return [Instance(kind, {}, values, i) for i, values in enumerate(arguments)]


@pytest.fixture
def lm(tiny_model):
    return PyllmLM(tiny_model, max_length=128, **EXACT)


def test_the_harness_finds_it_by_name():
    assert get_model("pyllm") is PyllmLM


def test_arguments_come_as_text(tiny_models):
    lm = PyllmLM.create_from_arg_string(f"model={tiny_models['llama']},n_threads=1,max_length=64", {"batch_size": 4})
    try:
        assert (lm.max_length, lm.batch_size, lm.context_arguments) == (64, 4, {"n_threads": 1})
        with pytest.raises(UnknownArgumentError, match="n_threads"):
            PyllmLM.create_from_arg_string(f"model={tiny_models['llama']},n_thread=1")
        with pytest.raises(InvalidArgumentError, match="n_gpu_layers"):
            PyllmLM(tiny_models["llama"], device="cuda:1")
    finally:
        lm.model.close()


def test_loglikelihood(lm, tiny_model):
    pairs = [("the people look at", " the time"), ("the people look at", " a word"), ("", "the time of day")]
    results = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    expected = score(tiny_model, [a for a, _ in pairs], [b for _, b in pairs], **EXACT)
    for (logprob, greedy), other in zip(results, expected, strict=True):
        assert logprob == pytest.approx(other.logprob, abs=1e-3)
        assert greedy == other.is_greedy


def test_a_long_context_loses_its_beginning(lm, tiny_model):
    context = corpus.text(20)
    (logprob, _), = lm.loglikelihood(requests("loglikelihood", (context, " the time")), disable_tqdm=True)  # fmt: skip
    whole, before = lm.tok_encode(context + " the time"), lm.tok_encode(context)
    kept = np.array(whole[-(lm.max_length + 1) :])
    n = len(whole) - len(before)
    expected = score(tiny_model, [kept[:-n]], [kept[-n:]], **EXACT)[0]
    assert logprob == pytest.approx(expected.logprob, abs=1e-3)


def test_rolling(lm, tiny_model):
    short, long = corpus.text(1), corpus.text(12)
    results = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (short,), (long,)), disable_tqdm=True)
    assert results[0] == pytest.approx(logprobs(tiny_model, short, **EXACT).total, abs=1e-2)
    # By hand: disjoint windows of 128 after BOS, or after the last token of the window before.
    tokens = lm.tok_encode(long, add_special_tokens=False)
    total, n = 0.0, lm.max_length
    first = score(tiny_model, [[tiny_model.vocab.bos]], [tokens[:n]], **EXACT)[0]
    total += first.logprob
    done = n
    while done < len(tokens):
        end = min(done + n, len(tokens))
        window = tokens[max(0, end - n - 1) : end] if end - done < n else tokens[done - 1 : end]
        context, part = window[: len(window) - (end - done)], window[len(window) - (end - done) :]
        total += score(tiny_model, [context[: n - (end - done) + 1]], [part], **EXACT)[0].logprob
        done = end
    assert results[1] == pytest.approx(total, abs=1e-2)


def test_generate_until(lm, tiny_model):
    with Llama(tiny_model, n_ctx=256, **EXACT) as llm:
        whole = llm("the people look at", max_tokens=24, temperature=0).text
    stop = whole[5:8]
    asked = [
        ("the people look at", {"until": [], "max_gen_toks": 24}),
        ("the people look at", {"until": [stop], "max_gen_toks": 24, "do_sample": False}),
        (corpus.text(20), {"until": ["\n\n"], "max_gen_toks": 4}),
    ]
    found = lm.generate_until(requests("generate_until", *asked), disable_tqdm=True)
    assert found[0] == whole
    assert found[1] == whole[: whole.index(stop)]
    assert isinstance(found[2], str)
    with pytest.raises(InvalidArgumentError, match="num_beams=4"):
        lm.generate_until(requests("generate_until", ("the", {"until": [], "max_gen_toks": 4, "num_beams": 4})))
    with pytest.raises(InvalidArgumentError, match=r"max_gen_toks=128 leaves no room.*max_length=128"):
        lm.generate_until(requests("generate_until", ("the", {"until": [], "max_gen_toks": 128})))


def test_chats(lm, load):
    chat = [{"role": "user", "content": "What time is it?"}]
    text = lm.apply_chat_template(chat)
    assert "<|im_start|>user\nWhat time is it?<|im_end|>" in text
    assert text.rstrip().endswith("<|im_start|>assistant")
    assert lm.chat_template(True) == lm.model.chat_template()
    bare = PyllmLM(load("llama", chat_template=None), n_threads=1)
    with pytest.raises(InvalidArgumentError, match="has no chat template"):
        bare.apply_chat_template(chat)
    refusing = PyllmLM(load("llama", chat_template="{{ raise_exception('no chats') }}"), n_threads=1)
    with pytest.raises(InvalidArgumentError, match="no chats"):
        refusing.apply_chat_template(chat)


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    """A task of multiple choice, in a folder without a way to the network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [
        {"question": sentence, "answers": [f"the {word}" for word in ("time", "people", "number")], "right": i % 3}
        for i, sentence in enumerate(corpus.SENTENCES[:9])
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(
        "task: own_choice\n"
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{answers}}"\ndoc_to_target: "{{right}}"\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n",
        encoding="utf-8",
    )
    return rows


@pytest.mark.filterwarnings("ignore")
def test_a_task_of_ones_own(tiny_model: Model, tmp_path, own_task):
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = own_task
    lm = PyllmLM(tiny_model, max_length=128, **EXACT)
    results = lm_eval.simple_evaluate(
        lm,
        tasks=["own_choice"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
    )
    right = 0
    for row in rows:
        scores = score(tiny_model, row["question"], [f" {answer}" for answer in row["answers"]], **EXACT)
        right += int(np.argmax([one.logprob for one in scores])) == row["right"]
    assert results["results"]["own_choice"]["acc,none"] == pytest.approx(right / len(rows))


def test_the_program_of_the_harness(tiny_models, tmp_path, own_task):
    # As a user would: it names a device of its own accord.
    command = [sys.executable, "-m", "pyllm.eval.lm_eval", "run", "--model", "pyllm", "--tasks", "own_choice"]
    command += ["--model_args", f"model={tiny_models['llama']},n_threads=1", "--include_path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "own_choice" in done.stdout
