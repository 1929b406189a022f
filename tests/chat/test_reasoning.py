"""Reasoning: taken out of the content, limited, and not mistaken for the answer by a grammar."""

from __future__ import annotations

import numpy as np
import pytest
from chat.conftest import CLOCK, user
from chat.test_chat import joined

from pyllm import errors
from pyllm.core.reasoning import Reasoning
from pyllm.core.samplers import Grammar

THOUGHT = "<think>\nHm, a cat?\n</think>\n\nA cat."
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>'


@pytest.fixture
def qwen(template):
    return {"chat_template": template("Qwen-Qwen3-0.6B")}


class TestSplit:
    def test_reasoning_is_not_content(self, llm, says, qwen):
        completion = llm.create_chat_completion(user(), logits_processor=says(THOUGHT), **qwen)
        assert completion.reasoning.strip() == "Hm, a cat?" and completion.text == "A cat."
        assert completion["choices"][0]["message"]["reasoning_content"] == completion.reasoning
        assert completion.choices[0].raw == THOUGHT
        chunks = list(llm.stream_chat(user(), logits_processor=says(THOUGHT), **qwen))
        message = joined(chunks)
        assert message["content"] == "A cat." and message["reasoning_content"].strip() == "Hm, a cat?"
        first = next(chunk for chunk in chunks if chunk.text)
        assert not any(chunk.reasoning for chunk in chunks[chunks.index(first) + 1 :])

    def test_reasoning_stays_in_the_content_on_demand(self, llm, says, qwen):
        completion = llm.create_chat_completion(user(), reasoning_format="none", logits_processor=says(THOUGHT), **qwen)
        assert completion.reasoning == "" and completion.text == THOUGHT

    def test_before_a_call(self, llm, says, qwen):
        text = f"<think>\nThe time.\n</think>\n\n{CALL}"
        completion = llm.create_chat_completion(user(), tools=[CLOCK], logits_processor=says(text), **qwen)
        assert completion.reasoning.strip() == "The time." and completion.tool_calls[0].name == "get_time"

    def test_what_is_thought_about_calls_is_no_call(self, llm, says, qwen):
        text = "<think>\nMaybe <tool_call>\nor not\n</think>\n\nNo."
        completion = llm.create_chat_completion(user(), tools=[CLOCK], logits_processor=says(text), **qwen)
        assert completion.tool_calls == () and completion.text == "No."
        assert "<tool_call>\nor not" in completion.reasoning

    def test_the_switch_of_the_template(self, llm, qwen):
        on, off, variable = (
            llm.create_chat_completion(user(), max_tokens=1, **qwen, **arguments).usage.prompt_tokens
            for arguments in (
                {},
                {"enable_thinking": False},
                {"chat_template_kwargs": {"enable_thinking": False}},
            )
        )
        assert off > on and off == variable

    def test_with_tools_that_the_template_does_not_know(self, llm, says, template):
        call = '<tool_call>{"name": "get_time", "arguments": {"zone": "UTC"}}</tool_call>'
        text = f"Easy.\n</think>\n\nSo:\n{call}"
        arguments = {"chat_template": template("deepseek-ai-DeepSeek-R1-Distill-Qwen"), "tools": [CLOCK]}
        completion = llm.create_chat_completion(user(), logits_processor=says(text), **arguments)
        assert completion.reasoning.strip() == "Easy." and completion.text.strip() == "So:"
        assert [one.name for one in completion.tool_calls] == ["get_time"]

    def test_reasoning_goes_on(self, llm, says, qwen):
        messages = [*user(), {"role": "assistant", "content": "", "reasoning_content": "Hm"}]
        completion = llm.create_chat_completion(
            messages, continue_final_message="reasoning", logits_processor=says(", a cat?\n</think>\n\nA cat."), **qwen
        )
        assert completion.reasoning.strip() == ", a cat?" and completion.text == "A cat."


class TestBudget:
    @pytest.mark.parametrize("budget", [0, 5, 20])
    def test_the_end_of_reasoning_is_forced(self, llm, template, budget):
        # This template opens the block by itself; the model is random and would not close it.
        arguments = {"chat_template": template("deepseek-ai-DeepSeek-R1-Distill-Qwen"), "seed": 1}
        completion = llm.create_chat_completion(user(), reasoning_budget=budget, max_tokens=60, **arguments)
        before, end, _ = completion.choices[0].raw.partition("</think>")
        assert end and abs(len(llm.tokenize(before, add_special=False)) - budget) <= 2

    def test_what_the_model_opens(self, llm, says, qwen):
        # What the script wants after the third token of the block is not what is forced.
        with pytest.raises(errors.PyllmError):
            llm.create_chat_completion(user(), reasoning_budget=3, logits_processor=says(THOUGHT), **qwen)
        assert (
            llm.create_chat_completion(user(), reasoning_budget=50, logits_processor=says(THOUGHT), **qwen).text
            == "A cat."
        )


class TestForms:
    def test_grammars_wait_for_the_end_of_reasoning(self, llm, says, template):
        arguments = {"chat_template": template("deepseek-ai-DeepSeek-R1-Distill-Qwen"), "choices": ["yes", "no"]}
        completion = llm.create_chat_completion(user(), logits_processor=says("Hm.\n</think>yes"), **arguments)
        assert completion.reasoning.strip() == "Hm." and completion.text == "yes"
        completion = llm.create_chat_completion(user(), reasoning_budget=2, seed=1, max_tokens=40, **arguments)
        assert completion.text in ("yes", "no")

    def test_no_reasoning_opens_without_a_start_tag(self, llm, qwen):
        completion = llm.create_chat_completion(user(), choices=["yes", "no"], seed=1, **qwen)
        assert completion.text in ("yes", "no") and completion.reasoning == ""


class TestSampler:
    START, END = (5,), (6, 7)

    @pytest.fixture
    def vocab(self, tiny_model):
        return tiny_model.vocab

    def allowed(self, sampler, vocab):
        ids, logits, _, _ = sampler.apply(np.zeros(len(vocab), np.float32))
        return set(ids[logits > -1e30].tolist())

    def test_states(self, vocab):
        sampler = Reasoning(vocab, self.START, [self.END], budget=2)
        assert sampler.state == "idle" and len(self.allowed(sampler, vocab)) == len(vocab)
        sampler.accept(5)
        assert sampler.state == "counting"
        for token in (300, 301):
            sampler.accept(token)
        assert sampler.state in ("forcing", "waiting")
        sampler.reset()
        assert sampler.state == "idle" and sampler.name == "reasoning"

    def test_the_end_is_all_that_is_allowed(self, vocab):
        sampler = Reasoning(vocab, self.START, [self.END], budget=0, beginning=self.START)
        for token in self.END:
            assert self.allowed(sampler, vocab) == {token}
            sampler.accept(token)
        assert sampler.state == "done" and len(self.allowed(sampler, vocab)) == len(vocab)
        sampler.reset()
        assert sampler.state == "forcing"

    def test_force(self, vocab):
        sampler = Reasoning(vocab, self.START, [self.END])
        assert sampler.force() is False
        sampler.accept(5)
        assert sampler.force() is True and self.allowed(sampler, vocab) == {6}

    def test_clones_are_independent(self, vocab):
        sampler = Reasoning(vocab, self.START, [self.END], grammar=Grammar(vocab, 'root ::= "a"'), beginning=(5,))
        copy = sampler.clone()
        copy.accept(6)
        copy.accept(7)
        assert (sampler.state, copy.state) == ("counting", "done")
        assert len(self.allowed(sampler, vocab)) > len(self.allowed(copy, vocab))

    def test_a_grammar_waits(self, vocab):
        (a,) = vocab.tokenize("a", add_special=False)[-1:]
        grammar = Grammar(vocab, 'root ::= "a"')
        waiting = Reasoning(vocab, self.START, [self.END], grammar=grammar, beginning=self.START)
        assert len(self.allowed(waiting, vocab)) == len(vocab)
        for token in self.END:
            waiting.accept(token)
        assert int(a) in self.allowed(waiting, vocab) and len(self.allowed(waiting, vocab)) < 5
        held = Reasoning(vocab, self.START, [self.END], grammar=grammar, beginning=self.START, waits=False)
        assert self.allowed(held, vocab) == self.allowed(waiting, vocab)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (((), [(6,)]), "must be at least one token"),
            (((5,), []), "must be at least one token"),
            (((5,), [()]), "must be at least one token"),
            (((5,), [(10**6,)]), "1000000"),
        ],
    )
    def test_wrong_arguments(self, vocab, arguments, words):
        with pytest.raises(errors.PyllmError, match=words):
            Reasoning(vocab, *arguments)
        for more, said in (({"budget": -1}, "budget must be at least 0"), ({"grammar": 3}, "must be a Grammar")):
            with pytest.raises(errors.InvalidArgumentError, match=said):
                Reasoning(vocab, self.START, [self.END], **more)
