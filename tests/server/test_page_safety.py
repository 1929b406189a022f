"""What nobody can make the page do, keys, and servers that refuse or are gone; in a real Chromium."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from starlette.applications import Starlette
from support.browsers import Tab
from support.engines import Prompted, wait_until_idle
from support.servers import Served
from support.waiting import wait_for

from pyllm.server import Settings, make_app
from pyllm.server.loader import ModelSpec
from pyllm.server.pool import Models
from pyllm.server.run import Runner

pytestmark = pytest.mark.slow

ATTACK = '<img src=x onerror="hacked=1"> <script>hacked=1</script> [press](javascript:hacked=1) <b>not bold</b>'


@contextmanager
def served(app: Starlette) -> Iterator[Served]:
    """A server of an application."""
    runner = Runner(app, port=0)
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    wait_for(lambda: runner.started and runner.servers)
    server = Served(runner.address, runner, app.state.pyllm, thread, httpx.Client())
    yield server
    server.stop()


# ---- what nobody can do


def unhurt(web: Tab, where: str) -> None:
    web.page.wait_for_timeout(200)
    assert web.page.evaluate("typeof hacked") == "undefined"
    assert web.page.locator(f"{where} :is(img, script, iframe, b, [onerror])").count() == 0
    assert [url for url in web.page.locator(f"{where} a").evaluate_all("all => all.map(a => a.protocol)")] == []


def test_what_a_model_writes_cannot_become_a_script(web: Tab, engine: Prompted) -> None:
    web.open()
    engine.says(ATTACK)
    text = web.ask(ATTACK)
    assert text == ATTACK
    assert web.page.locator(".message.user .body").inner_text() == ATTACK
    unhurt(web, "body")
    assert web.page.evaluate("document.querySelector('.title').innerText").startswith("<img src=x")


def test_markup_of_answers_is_only_what_is_allowed(web: Tab) -> None:
    """What goes through the sanitizer cannot do anything, whoever has made it."""
    web.open()
    kept = web.page.evaluate(
        """async html => {
            const { nodesOf } = await import("./ui/sanitize.js");
            const root = document.createElement("div");
            root.append(nodesOf(html));
            return root.innerHTML;
        }""",
        '<p id="a" style="color:red" onclick="hacked=1" class="b">x<img src=x onerror="hacked=1">'
        '<script>hacked=1</script><a href="javascript:hacked=1">y</a><a href="//elsewhere">z</a>'
        '<iframe src="/"></iframe><form><input></form>'
        '<svg><a xlink:href="javascript:hacked=1"></a></svg><math><mtext></mtext></math></p>',
    )
    assert kept == '<p class="b">x<a>y</a><a>z</a></p><p></p>'
    unhurt_script = "try { document.body.innerHTML = '<b>x</b>'; 'made' } catch (error) { error.name }"
    # No other way from text to markup is there, for scripts of this page either.
    assert web.page.evaluate(unhurt_script) == "TypeError"
    assert web.page.evaluate("typeof hacked") == "undefined"
    # A browser says what it did not let happen.
    assert all("TrustedHTML" in text or "Content Security Policy" in text for text in web.complaints)
    web.complaints.clear()


@pytest.mark.parametrize(
    "formula",
    [r"\href{javascript:hacked=1}{x}", r"\includegraphics{http://127.0.0.1:9/x.png}", r"\htmlStyle{color:red}{x}"],
)
def test_formulas_cannot_become_a_script(web: Tab, engine: Prompted, formula: str) -> None:
    web.open()
    engine.says(f"$y$ ${formula}$")
    web.ask("Hello")
    web.page.locator(".katex").first.wait_for()
    unhurt(web, "#log")


def test_imported_conversations_cannot_become_a_script(web: Tab, tmp_path) -> None:
    web.open()
    messages = [
        {"role": "user", "content": ATTACK},
        {
            "role": "assistant",
            "content": f"# {ATTACK}\n\n- {ATTACK}\n\n```{ATTACK}\n{ATTACK}\n```\n\n|{ATTACK}|\n|-|\n|{ATTACK}|",
            "reasoning": ATTACK,
            "note": ATTACK,
            "tool_calls": [{"id": "1", "function": {"name": ATTACK, "arguments": ATTACK}}],
        },
    ]
    one = {"id": '"><img src=x onerror="hacked=1">', "title": ATTACK, "system": ATTACK, "messages": messages}
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"format": "pyllm-conversations", "version": 1, "conversations": [one]}))
    web.page.locator("#import-file").set_input_files(path)
    web.page.locator("#conversations .title").click()
    web.page.locator(".message.assistant").wait_for()
    unhurt(web, "body")


def test_tokens_cannot_become_a_script(web: Tab, engine: Prompted) -> None:
    web.open("tokens")
    engine.says(ATTACK)
    web.generate(ATTACK, 40)
    web.tokens.first.click()
    unhurt(web, "body")


def test_the_policy_holds(web: Tab, engine: Prompted) -> None:
    """Even a script in this page could not ask another host."""
    web.open()
    asked = web.page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', error => 'refused')")
    assert asked == "refused"
    assert any("Content Security Policy" in text for text in web.complaints)
    web.complaints.clear()


# ---- errors, keys


def test_a_full_server_says_when_to_come_again(start, other, tiny_model) -> None:
    with Prompted(tiny_model, n_ctx=512, n_parallel=1, n_threads=1, max_queued=1) as engine:
        server = start(engine, retry_after=7)
        with other(server) as web:
            web.open()
            engine.slowly()
            jobs = [engine.submit("the cat", max_tokens=400)]
            wait_for(lambda: engine.metrics().n_running == 1)
            jobs.append(engine.submit("the cat", max_tokens=400))
            web.say("Hello?")
            note = web.page.locator(".message.user .note.wrong")
            note.wait_for()
            assert "Try again in 7 seconds." in note.inner_text()
            assert web.page.locator(".message.assistant").count() == 0
            assert any("429" in text for text in web.complaints)
            web.complaints.clear()
            for job in jobs:
                job.cancel()
            wait_until_idle(engine)
            engine.says("yes")
            web.page.get_by_role("button", name="Answer again").click()
            web.page.get_by_text("yes", exact=True).wait_for()
            web.answered()
        server.stop()


def test_a_server_that_is_gone(start, other, tiny_model) -> None:
    with Prompted(tiny_model, n_ctx=512, n_parallel=1, n_threads=1) as engine:
        server = start(engine)
        with other(server) as web:
            web.open()
            server.stop()
            web.say("Hello?")
            note = web.page.locator(".message.user .note.wrong")
            note.wait_for()
            assert "cannot be reached" in note.inner_text()
            web.complaints.clear()


def test_keys(start, other, engine: Prompted) -> None:
    server = start(engine, api_keys=("secret",))
    with other(server) as web:
        web.page.goto(server.url)
        dialog = web.page.locator("dialog")
        dialog.get_by_label("API key").fill("wrong")
        web.page.keyboard.press("Enter")
        dialog.filter(has_text="does not know this key").wait_for()
        dialog.get_by_label("API key").fill("secret")
        web.page.keyboard.press("Enter")
        web.until("document.getElementById('about').textContent !== ''")
        engine.says("well")
        assert web.ask("Hello") == "well"
        assert web.page.evaluate("JSON.stringify(localStorage)").find("secret") < 0
        assert web.page.evaluate("Object.values(sessionStorage)") == ["secret"]
        assert not any("secret" in url for url in web.asked)
        web.page.get_by_role("button", name="Parameters", exact=True).click()
        web.page.get_by_role("button", name="Forget the API key").click()
        assert web.page.evaluate("sessionStorage.length") == 0
        assert web.complaints and all("401" in text for text in web.complaints)
        web.complaints.clear()


# ---- other servers


def test_several_models(other, tiny_models) -> None:
    specs = [
        ModelSpec(name=name, path=tiny_models[arch], arguments={"n_ctx": 512, "n_threads": 1}, load=load)
        for name, arch, load in (
            ("first", "llama", "start"),
            ("second", "qwen3moe", "demand"),
            ("vectors", "bert", "demand"),
        )
    ]
    with contextlib.closing(Models(specs, Settings())) as models:
        models.load_at_start()
        with served(make_app(models=models)) as server, other(server) as web:
            listed = {one["id"]: one["capabilities"] for one in server.get("/v1/models").json()["data"]}
            assert listed == {"first": ["completion"], "second": ["completion"], "vectors": ["embedding"]}
            web.open()
            select = web.page.get_by_role("combobox", name="Model")
            options = web.page.locator("#model option")
            # A model of vectors has nothing to say here.
            assert options.all_inner_texts() == ["first · loaded", "second · not loaded"]
            select.select_option("second")
            web.page.get_by_text("loaded when it is asked").wait_for(state="attached")
            # To look at the page loads nothing.
            assert [entry.status for entry in models.entries.values()] == ["loaded", "unloaded", "unloaded"]
            assert not any("props?model=second" in url for url in web.asked)
            web.page.get_by_role("button", name="Parameters", exact=True).click()
            web.page.get_by_label("Max tokens").fill("3")
            with web.page.expect_request("**/v1/chat/completions") as asked:
                web.ask("Who?")
            assert asked.value.post_data_json["model"] == "second"
            web.until("document.getElementById('about').textContent.includes('context ')")
            assert options.all_inner_texts() == ["first · loaded", "second · loaded"]
            # What changes elsewhere is seen when one looks.
            server.post("/models/unload", {"model": "first"})
            wait_for(lambda: models.entries["first"].status == "unloaded")
            web.page.locator("#input").focus()
            select.focus()
            options.filter(has_text="first · not loaded").wait_for(state="attached")
            web.open()
            assert select.input_value() == "second"


def test_a_server_of_vectors_only_says_so(other, tiny_models) -> None:
    specs = [ModelSpec(name="vectors", path=tiny_models["bert"], arguments={"n_threads": 1})]
    with (
        contextlib.closing(Models(specs, Settings())) as models,
        served(make_app(models=models)) as server,
        other(server) as web,
    ):
        web.page.goto(server.url)
        web.page.get_by_text("The models of this server make vectors").wait_for()
        assert web.page.locator("#model option").count() == 0


def test_behind_a_prefix(other, engine: Prompted) -> None:
    with served(make_app(engine, Settings(api_prefix="/llm", api_keys=("secret",)))) as server, other(server) as web:
        web.page.goto(f"{server.url}/llm")
        web.page.get_by_label("API key").fill("secret")
        web.page.keyboard.press("Enter")
        web.until("document.getElementById('about').textContent !== ''")
        engine.says("well")
        assert web.ask("Hello") == "well"
        assert all(url.startswith(f"{server.url}/llm") for url in web.asked)
        web.complaints.clear()
