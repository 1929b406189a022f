"""``pyllm chat``, through pipes and at a terminal, in processes of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyllm.cli.chat_commands import execute
from pyllm.cli.chat_session import Session, SessionError
from pyllm.errors import PyllmError

FAST = ["-n", "8", "--temp", "0", "-t", "1", "-c", "512"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of conversations and history."""
    folder = tmp_path / "data"
    monkeypatch.setenv("PYLLM_DATA", str(folder))
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")  # nobody answers where the cursor is
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return folder


@pytest.fixture
def tiny(tiny_models) -> Path:
    return tiny_models["llama"]


# ---- pipes


def test_lines_in_and_answers_out(program, data, tiny):
    result = program("chat", tiny, *FAST, input="the first\n\nand the second\n")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) >= 2
    assert "\x1b" not in result.stdout
    assert not data.exists()


def test_a_message_of_several_lines(pyllm, data, tiny):
    one = pyllm("chat", tiny, *FAST, "--session", "a", input='"""\nfirst\nsecond\n"""\n')
    assert one.returncode == 0, one.stderr
    saved = json.loads((data / "sessions" / "a.json").read_text())
    assert saved["messages"][0] == {"role": "user", "content": "first\nsecond"}


def test_quotes_that_are_left_open(pyllm, data, tiny):
    result = pyllm("chat", tiny, *FAST, input='"""\nfirst\n')
    assert result.returncode == 1
    assert "closing" in result.stderr


def test_a_session_is_resumed(pyllm, data, tiny):
    first = pyllm("chat", tiny, *FAST, "--session", "anna", "-sys", "Be brief.", input="the number of people\n")
    assert first.returncode == 0, first.stderr
    again = pyllm("chat", tiny, *FAST, "--session", "anna", input="and the time\n")
    assert again.returncode == 0, again.stderr
    path = data / "sessions" / "anna.json"
    messages = json.loads(path.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[0]["content"] == "Be brief."
    assert messages[2]["content"].strip() == first.stdout.strip()
    if os.name == "posix":
        assert path.stat().st_mode & 0o077 == 0


def test_commands(pyllm, data, tiny):
    lines = [
        "/system Be kind.",
        "/system",
        "the number",
        "/tokens",
        "/tokens the number",
        "/set temperature 0.5",
        "/set temperature",
        "/set",
        "/stats",
        "/save mine",
        "/load mine",
        "/sessions",
        "/retry",
        "/undo",
        "/undo",
        "/retry",
        "/reset",
        "/help",
        "/exit",
        "never reached",
    ]
    result = pyllm("chat", tiny, *FAST, input="\n".join(lines) + "\n")
    assert result.returncode == 0, result.stderr
    for expected in (
        "Be kind.",
        "of 512 tokens",
        "temperature = 0.5",
        "answers ",
        "tokens per second",
        "saved as mine",
        "took back: the number",
        "there is nothing to take back",
        "there is no question to answer again",
        "loaded mine: 2 messages",
        "/retry",
    ):
        assert expected in result.stdout, expected
    assert "never reached" not in result.stdout
    saved = json.loads((data / "sessions" / "mine.json").read_text())
    assert saved["messages"] == [{"role": "system", "content": "Be kind."}]  # as /reset left it
    assert saved["settings"] == {"temperature": 0.5}


@pytest.fixture
def talk(data, tiny):
    """A conversation on plain streams."""
    from pyllm import Llama
    from pyllm.cli.chat_loop import Chat
    from pyllm.cli.chat_screen import Screen

    with Llama(tiny, n_ctx=256, n_threads=1) as llm:
        yield Chat(llm, Screen(), model="tiny", settings={"max_tokens": 4})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "did you mean /reset"),
        ("/set temprature 1", "did you mean 'temperature'"),
        ("/set temperature -1", "temperature must be"),
        ("/set temperature warm", "temperature must be"),
        ("/set max_tokens many", "max_tokens must be"),
        ("/set logit_bias [1]", "logit_bias must be a dict"),
        ("/set samplers true", "samplers must be a list"),
        ("/set dry_sequence_breakers 5", "dry_sequence_breakers must be a list"),
        pytest.param("/set top_k " + "[" * 200_000, "top_k must be", id="deep"),
        ("/set enable_thinking perhaps", "enable_thinking must be on or off"),
        ("/load nothing", "there is no nothing"),
        ("/save ../../evil", "a conversation's name"),
        ("/save", "give the conversation a name"),
    ],
)
def test_wrong_commands(talk, line, message):
    with pytest.raises(PyllmError, match=re.escape(message)):
        execute(talk, line)
    assert talk.session.messages == []
    assert talk.settings == {"max_tokens": 4}


def test_settings_are_taken_back(talk, capsys):
    for name, value in (("enable_thinking", "off"), ("temperature", "0"), ("max_tokens", "-1"), ("stop", '["x"]')):
        before = talk.settings
        execute(talk, f"/set {name} {value}")
        assert talk.settings != before
        execute(talk, f"/set {name} default")
        assert name not in talk.settings
    execute(talk, "/set max_tokens 3")
    execute(talk, "/set enable_thinking off")
    assert talk.settings == {"max_tokens": 3, "enable_thinking": False}
    talk.ask("the number")
    assert talk.generated == 3


def test_a_wrong_command_ends_a_pipe(pyllm, data, tiny):
    result = pyllm("chat", tiny, *FAST, input="/rest\n")
    assert result.returncode == 1
    assert result.stderr == "pyllm: error: there is no command /rest; did you mean /reset?\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-sys", "a", "-sysf", "b"],
        ["--reasoning", "perhaps"],
        ["--chat-template-kwargs", "[1]"],
        ["--chat-template-kwargs", "{"],
        ["--chat-template-file", "not-there.jinja"],
        ["--grammar", "a", "-j", "{}"],
        ["-fa", "maybe"],
    ],
)
def test_wrong_flags(pyllm, data, tiny, arguments):
    result = pyllm("chat", tiny, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""


def test_wrong_session_name(pyllm, data, tiny):
    result = pyllm("chat", tiny, "--session", "../evil")
    assert result.returncode == 1
    assert "a conversation's name" in result.stderr


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        '{"format": "pyllm chat session", "version": 1, "messages": [], "settings": {"messages": 1}}',
        "[" * 200_000,
        "{}",
        '{"format": "pyllm chat session", "version": 7}',
        "[]",
    ],
)
def test_damaged_session(data, text):
    path = data / "sessions" / "bad.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(SessionError, match=re.escape("bad.json")):
        Session.load(path)
    assert path.read_text() == text


def test_a_damaged_session_is_left_alone(pyllm, data, tiny):
    path = data / "sessions" / "bad.json"
    path.parent.mkdir(parents=True)
    path.write_text("not json")
    result = pyllm("chat", tiny, "--session", "bad", input="hello\n")
    assert result.returncode == 1
    assert "bad.json" in result.stderr
    assert path.read_text() == "not json"


def test_first_message_and_single_turn(pyllm, data, tiny):
    result = pyllm("chat", tiny, *FAST, "-p", "the number", "-st", input="never read\n")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) >= 1
    two = pyllm("chat", tiny, *FAST, "-p", "the number", input="and the time\n")
    assert two.stdout.startswith(result.stdout)
    assert len(two.stdout) > len(result.stdout)


def test_template_from_a_file(pyllm, data, tiny, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    plain = pyllm("chat", tiny, *FAST, input="the number of\n")
    other = pyllm("chat", tiny, *FAST, "--chat-template-file", template, input="the number of\n")
    assert other.returncode == 0, other.stderr
    assert other.stdout != plain.stdout


def test_a_prompt_that_does_not_fit(pyllm, data, tiny):
    result = pyllm("chat", tiny, "-c", "256", "-n", "4", input="the people " * 400 + "\n")
    assert result.returncode == 1
    assert "256" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="uses POSIX signals")
def test_interrupt_ends_a_pipe(data, tiny):
    command = [sys.executable, "-m", "pyllm", "chat", str(tiny), "-t", "1", "-n", "4", "--temp", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"the number\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=550)
    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.model
def test_a_real_model_answers(pyllm, data, smollm2):
    result = pyllm("chat", "smollm2", "--temp", "0", "-n", "12", "-t", "1", input="What is the capital of France?\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "<|im_" not in result.stdout


# ---- a terminal

Terminal = Callable[..., Any]


@pytest.fixture
def terminal(data: Path) -> Iterator[Terminal]:
    """Starts the program at a terminal of its own; ended after the test."""
    pexpect = pytest.importorskip("pexpect", reason="needs a pseudo-terminal")
    if os.name == "nt":
        pytest.skip("needs a pseudo-terminal")
    started: list[Any] = []

    def start(*arguments: object, columns: int = 100) -> Any:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "pyllm", "chat", *map(str, arguments)],
            encoding="utf-8",
            codec_errors="replace",
            timeout=550,
            dimensions=(24, columns),
        )
        child.delaybeforesend = 0.1
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def ready(child: Any) -> None:
    """Wait until a line can be typed."""
    child.expect_exact("\x1b[?2004h")  # the editor asks for marks around what is pasted


def finish(child: Any) -> int:
    import pexpect

    child.expect(pexpect.EOF)
    child.close()
    assert child.signalstatus is None
    return int(child.exitstatus)


def test_terminal_answers_and_ends_on_ctrl_d(terminal, tiny, data, monkeypatch):
    monkeypatch.delenv("PROMPT_TOOLKIT_NO_CPR")
    child = terminal(tiny, *FAST)
    child.expect("/help shows the commands")
    for status in ("0/512 tokens", r"[1-9]\d*/512 tokens"):
        child.expect_exact("\x1b[6n")  # where is the cursor?
        child.send("\x1b[3;1R")
        child.expect(status)
        if status[0] == "0":
            child.send("the number\r")
    child.send("\x04")
    assert finish(child) == 0
    assert "the number" in (data / "chat_history").read_text()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tiny_models, data):
    # Without a limit, and with nothing that could end it, the answer goes on until a large context is full.
    child = terminal(
        tiny_models["llama"], "-t", "1", "-c", "65536", "--temp", "0", "--session", "stopped", "-l", "2-inf"
    )
    ready(child)
    child.send("the number\r")
    child.expect_exact("\x1b[?2004l")  # the editor is done
    child.expect(r"\w")
    child.sendintr()
    child.expect("stopped")
    ready(child)
    child.send("/help\r")
    child.expect("/retry")
    ready(child)
    child.send("/exit\r")
    assert finish(child) == 0
    roles = [m["role"] for m in json.loads((data / "sessions" / "stopped.json").read_text())["messages"]]
    assert roles == ["user", "assistant"]


def test_keys_and_errors(terminal, tiny, data):
    child = terminal(tiny, "-c", "256", "-n", "4", "--temp", "0", "-t", "1", "--session", "keys")
    ready(child)
    child.send("half a line")
    child.sendintr()
    child.expect("Ctrl-D or /exit ends")
    ready(child)
    child.send("/rest\r")
    child.expect("did you mean /reset")  # and no end of the program
    ready(child)
    child.send("first\x1b\rsecond\r")  # Alt-Enter
    ready(child)
    child.send('"""third\rfourth"""\r')
    ready(child)
    child.send("the people " * 60 + "\r")
    child.expect("error: .*256")
    ready(child)
    child.send("/sess\t")
    child.expect("ions")
    child.send("\r")
    child.expect("keys")
    ready(child)
    child.send("/exit\r")
    assert finish(child) == 0
    said = [m["content"] for m in json.loads((data / "sessions" / "keys.json").read_text())["messages"]]
    assert said[0] == "first\nsecond"
    assert said[2] == "third\nfourth"
    assert len(said) == 4


def test_resumed_at_a_narrow_terminal(terminal, pyllm, tiny):
    assert pyllm("chat", tiny, *FAST, "--session", "later", input="the number\n").returncode == 0
    child = terminal(tiny, *FAST, "--session", "later", columns=20)
    child.expect("going on with later: 2 messages")
    ready(child)
    child.send("the number of the people\r")
    ready(child)
    child.send("/exit\r")
    assert finish(child) == 0


# ---- without a process


class TestPieces:
    def test_control_codes_of_a_model_are_left_out(self, capsys):
        from pyllm.cli.chat_screen import Terminal as Screen

        screen = Screen()
        screen.write("a\x1b]0;title\x07b\x9bc\td\n")
        assert capsys.readouterr().out == "a]0;titlebc\td\n"

    def test_thinking_is_dim(self, capsys, monkeypatch):
        from pyllm.cli.chat_screen import Terminal as Screen

        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        screen = Screen()
        screen.write("hm", dim=True)
        screen.write("yes")
        screen.end()
        assert capsys.readouterr().out == "\x1b[2mhm\x1b[0myes\n"
        monkeypatch.setenv("NO_COLOR", "1")
        screen = Screen()
        screen.write("hm", dim=True)
        assert capsys.readouterr().out == "hm"

    def test_blocks(self):
        from pyllm.cli.chat_screen import block

        assert block(['"""']) is None
        assert block(['"""a', "b"]) is None
        assert block(['"""a', 'b"""']) == "a\nb"
        assert block(['"""', "a", '"""']) == "a"
        assert block(["a"]) is None

    def test_names_are_completed(self, data, tmp_path):
        from pyllm.cli.chat_commands import candidates

        (data / "sessions").mkdir(parents=True)
        (data / "sessions" / "one.json").touch()
        assert set(candidates(None, "/se")) == {"/set", "/sessions"}
        assert "temperature" in candidates(None, "/set te")
        assert candidates(None, "/load o") == ["one"]
        assert candidates(None, "hello") == []
        assert candidates(None, "/set temperature 1") == []
        assert candidates(None, "/unset te") == []

    def test_status_fits(self, monkeypatch):
        from pyllm.cli.chat_screen import Terminal as Screen

        monkeypatch.setenv("COLUMNS", "10")
        screen = Screen()
        screen.status = lambda: "a status line that is longer"
        assert re.fullmatch(r"a status", screen.toolbar()[:8])
        assert len(screen.toolbar()) == 9
