"""The token inspector of the page, in a real Chromium on real servers."""

from __future__ import annotations

import math

import pytest
from support.browsers import Tab
from support.engines import Prompted, wait_until_idle
from support.servers import Served
from support.waiting import wait_for

from pyllm.engine import Engine

pytestmark = pytest.mark.slow


def labels(web: Tab) -> list[str]:
    return web.tokens.evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")


def test_tokens_with_their_numbers(web: Tab, server: Served) -> None:
    web.open("tokens")
    with web.page.expect_request("**/v1/completions") as asked:
        web.generate("the cat", 8)
    body = asked.value.post_data_json
    prompt = server.state.model.vocab.tokenize("the cat")
    assert body["prompt"] == prompt
    assert web.page.locator(".token.prompt").count() == len(prompt)
    made = labels(web)[len(prompt) :]
    assert 1 <= len(made) <= 8
    assert all("entropy" in label and "bits" in label and "%" in label for label in made)
    assert all(
        level in "01234567"
        for level in web.page.locator(".token:not(.prompt)").evaluate_all("all => all.map(one => one.dataset.level)")
    )
    assert f"generated {len(made)}" in web.page.locator("#inspector-summary").inner_text()
    web.page.get_by_text("Surprisal", exact=True).first.click()
    assert all("surprisal" in label for label in labels(web)[len(prompt) :])
    web.page.get_by_text("None", exact=True).click()
    assert web.page.locator(".token[data-level]").count() == 0
    assert web.page.locator("#legend").is_hidden()


def test_a_token_and_its_alternatives(web: Tab, server: Served, engine: Prompted) -> None:
    web.open("tokens")
    web.generate("the cat", 6)
    prompt = server.state.model.vocab.tokenize("the cat")
    body = {"prompt": prompt, "max_tokens": 1, "logprobs": 10, "return_token_ids": True}
    (entry,) = server.post("/v1/completions", body).json()["choices"][0]["logprobs"]["content"]
    web.tokens.nth(len(prompt)).click()
    rows = web.page.locator(".alternatives tbody tr:not(.rest)")
    ids = [int(text) for text in rows.locator("td:nth-child(2)").all_inner_texts()]
    assert ids[:10] == [one["id"] for one in entry["top_logprobs"]]
    assert web.page.locator("tr.chosen").count() == 1
    assert web.page.locator("tr.rest").count() == 1
    shares = web.page.locator(".fill").evaluate_all("all => all.map(one => parseFloat(one.style.width))")
    assert sum(shares) == pytest.approx(100, abs=0.1)
    facts = web.page.locator(".details dd").all_inner_texts()
    token = int(facts[0])
    assert bytes.fromhex(facts[1]) == engine.vocab.token_to_piece(token)


def test_branching_and_walking_back(web: Tab, server: Served) -> None:
    web.open("tokens")
    web.generate("the cat", 6)
    n_prompt = len(server.state.model.vocab.tokenize("the cat"))
    first = labels(web)
    web.tokens.nth(n_prompt + 2).click()
    rows = web.page.locator(".alternatives tbody tr:not(.rest):not(.chosen)")
    other = int(rows.first.locator("td:nth-child(2)").inner_text())
    ids = [int(i) for i in web.page.evaluate("[...document.querySelectorAll('.token')].map(one => one.dataset.i)")]
    assert ids == list(range(len(first)))
    with web.page.expect_request("**/v1/completions") as asked:
        rows.first.get_by_role("button").click()
        web.generated()
    sent = asked.value.post_data_json["prompt"]
    assert len(sent) == n_prompt + 3 and sent[-1] == other
    second = labels(web)
    assert second[: n_prompt + 2] == first[: n_prompt + 2]
    assert second[n_prompt + 2] != first[n_prompt + 2]
    branches = web.page.locator(".branch")
    assert branches.count() == 2
    assert branches.nth(1).get_attribute("aria-current") == "true"
    branches.nth(0).click()
    assert labels(web) == first
    assert web.page.locator(".token.fork").count() == 1
    # The same alternative again is the branch that is there: nothing is computed.
    asked_before = len(web.asked)
    web.tokens.nth(n_prompt + 2).click()
    rows.first.get_by_role("button").click()
    assert labels(web) == second
    assert len(web.asked) == asked_before
    # The token of the first text, chosen in the branch, leads back as well.
    web.page.locator(".alternatives tbody tr:not(.rest):not(.chosen)").filter(
        has=web.page.locator("button")
    ).first.wait_for()
    web.page.get_by_role("button", name="Go on", exact=True).click()
    web.until("n => document.querySelectorAll('.token').length > n", len(second))
    web.generated()
    assert labels(web)[: len(second)] == second


def test_thousands_of_tokens(web: Tab) -> None:
    """Tokens that are shown stay as they are when others come: nothing is drawn anew."""
    web.open("tokens")
    shown = web.page.evaluate(
        """async () => {
            const { Strip } = await import("./ui/strip.js");
            const root = document.createElement("div");
            document.body.append(root);
            const strip = new Strip(root, { onSelect() {}, onOpen() {}, onLeave() {} });
            const one = i => ({ id: i, bytes: [32, 97 + i % 26], logprob: -1 });
            const token = i => ({ ...one(i), top: [one(i)], generated: true });
            const tokens = [];
            let changes = 0;
            const observer = new MutationObserver(seen => changes += seen.length);
            for (let i = 0; i < 5000; i++) {
                tokens.push(token(i));
                if (i % 10 === 9) strip.show(tokens, new Map());
                if (i === 999) for (const span of root.children) observer.observe(span, { attributes: true });
            }
            await new Promise(done => setTimeout(done));
            strip.select(4999, true);
            return [root.children.length, changes, document.activeElement === root.lastChild];
        }"""
    )
    assert shown == [5000, 0, True]


def test_a_real_model(start, other, smollm2_path) -> None:
    with Engine(str(smollm2_path), n_ctx=512, n_parallel=2, n_threads=1) as engine, other(start(engine)) as web:
        web.open("tokens")
        web.page.get_by_role("button", name="Parameters", exact=True).click()
        web.page.get_by_label("Temperature").fill("0")
        web.generate("The capital of France is", 5)
        made = web.page.locator(".token:not(.prompt)")
        assert made.first.inner_text() == " Paris"
        made.first.click()
        first = web.page.locator(".alternatives tbody tr").first
        assert first.get_by_role("button").get_attribute("aria-label").startswith("“ Paris”, ")
        other_city = web.page.locator("tr:not(.chosen) .alternative").first
        name = other_city.inner_text()
        other_city.click()
        web.generated()
        assert made.first.inner_text() == name
        assert web.page.locator(".branch").count() == 2


def test_measures(web: Tab) -> None:
    web.open("tokens")
    measured = web.page.evaluate(
        """async () => {
            const { entropy, surprisal, level, summary } = await import("./ui/measures.js");
            const token = (p, ...top) => ({ logprob: Math.log(p), top: top.map(one => ({ logprob: Math.log(one) })) });
            const all = [token(0.5, 0.5, 0.25, 0.125, 0.125), token(0.25, 0.5, 0.25), token(0.5, 0.5, 0.4)];
            all.push(token(1, 1));
            return [all.map(entropy), all.map(surprisal), all.map(one => level(one, "entropy")),
                level(all[1], "surprisal"), level(all[1], "none"), summary(all).perplexity,
                entropy({ logprob: null, top: [] }), surprisal({ logprob: null, top: [] })];
        }"""
    )
    # Of 0.5 and 0.25 is known: the other quarter is of tokens with 0.25 at most. Of 0.5 and 0.4: with 0.1 at most.
    third = 0.5 - 0.4 * math.log2(0.4) - 0.1 * math.log2(0.1)
    assert measured[0] == pytest.approx([1.75, 1.5, third, 0])
    assert measured[1] == pytest.approx([1, 2, 1, 0])
    assert measured[2:5] == [[3, 3, 3, 0], 3, None]
    assert measured[5:] == [2, None, None]


def test_the_tree(web: Tab) -> None:
    web.open("tokens")
    found = web.page.evaluate(
        """async () => {
            const { Tree } = await import("./ui/tree.js");
            const make = (...ids) => ids.map(id => ({ id }));
            const ids = tree => tree.path().map(token => token.id);
            const tree = new Tree(make(1, 2));
            tree.root.tokens.push(...make(3, 4, 5));
            const results = [ids(tree)];
            const a = tree.fork(3, { id: 40 }).branch;
            a.tokens.push(...make(50, 60));
            results.push(ids(tree));
            tree.fork(4, { id: 51 }).branch.tokens.push(...make(61));
            results.push(ids(tree));
            // At the place where the branch began: a sibling of it.
            const c = tree.fork(3, { id: 41 }).branch;
            results.push(ids(tree), c.parent === tree.root, [...tree.forks()]);
            // In the shared beginning, and back to what is there.
            tree.fork(1, { id: 20 });
            results.push(ids(tree));
            tree.current = a;
            results.push(tree.fork(3, { id: 4 }).made, ids(tree), tree.fork(3, { id: 40 }).made, ids(tree));
            return results;
        }"""
    )
    assert found == [
        [1, 2, 3, 4, 5],
        [1, 2, 3, 40, 50, 60],
        [1, 2, 3, 40, 51, 61],
        [1, 2, 3, 41],
        True,
        [[3, 2]],
        [1, 20],
        False,
        [1, 2, 3, 4, 5],
        False,
        [1, 2, 3, 40, 50, 60],
    ]


def test_stopping_the_inspector_frees_the_slot(web: Tab, engine: Prompted) -> None:
    web.open("tokens")
    engine.slowly()
    web.page.get_by_label("Tokens", exact=True).and_(web.page.locator("input")).fill("1000")
    web.page.get_by_label("Prompt", exact=True).fill("the cat")
    web.page.keyboard.press("Control+Enter")
    web.page.locator(".token:not(.prompt)").nth(3).wait_for()
    wait_for(lambda: engine.metrics().n_running == 1)
    web.page.get_by_role("button", name="Stop").click()
    wait_until_idle(engine)
    web.generated()
    assert "stopped by you" in web.page.locator("#inspector-summary").inner_text()


def test_the_prompt_can_be_scored(web: Tab, server: Served) -> None:
    web.open("tokens")
    web.generate("the cat sat", 2)
    n_prompt = len(server.state.model.vocab.tokenize("the cat sat"))
    assert not any("%" in label for label in labels(web)[:n_prompt])
    web.page.get_by_role("button", name="Score the prompt").click()
    web.generated()
    scored = labels(web)[:n_prompt]
    assert "%" not in scored[0]
    assert all("%" in label and "bits" in label for label in scored[1:])
    # A branch may begin in the prompt.
    web.tokens.nth(1).click()
    web.page.locator("tr:not(.chosen) .alternative").first.click()
    web.generated()
    assert web.page.locator(".token.prompt").count() == 1


def test_the_chat_as_a_prompt(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says("the cat")
    web.ask("Who is there?")
    engine.processor = None
    web.page.get_by_role("tab", name="Tokens").click()
    web.page.get_by_role("button", name="Take the chat").click()
    prompt = web.page.get_by_label("Prompt", exact=True)
    web.until("document.getElementById('prompt').value !== ''")
    assert "Who is there?" in prompt.input_value()
    assert "the cat" not in prompt.input_value()
    web.page.get_by_role("button", name="Generate").click()
    web.generated()
    assert web.page.locator(".token:not(.prompt)").count() > 0
