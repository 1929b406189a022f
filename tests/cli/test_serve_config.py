"""The config file of `pyllm serve`: what it may say, what comes before it, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from support import programs

from pyllm.cli import serve as module
from pyllm.cli.config import config_keys, read_config
from pyllm.cli.main import app
from pyllm.cli.serve_models import parse_bytes

pytest.importorskip("starlette")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be served: the specs, and the settings of the server. Nothing is loaded, and nothing listens."""
    found: list[Any] = []

    class Runner:
        def __init__(self, app: Any, **config: Any) -> None:
            found.append(config)

        def run(self) -> None:
            pass

    def no_model(spec: Any) -> Any:
        found.append(spec)
        raise typer.Exit(0)

    def no_models(stack: Any, specs: Any, settings: Any, values: Any) -> Any:
        found.extend([*specs, settings, values])
        raise typer.Exit(0)

    monkeypatch.setattr("pyllm.server.loader.serve_model", no_model)
    monkeypatch.setattr(module, "_loaded", no_models)
    monkeypatch.setattr("pyllm.server.run.bind", lambda *arguments, **more: [])
    for name in ("PYLLM_CONFIG", "LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_MODEL", "LLAMA_ARG_PORT"):
        monkeypatch.delenv(name, raising=False)
    return found


def serve(*arguments: Any) -> programs.Done:
    done = programs.invoke("serve", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def refused(*arguments: Any) -> str:
    done = programs.invoke("serve", *arguments)
    assert done.returncode == 2, done.stderr
    # The frame that is drawn around it breaks lines anywhere.
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "pyllm.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# ---- what it says


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", 'model = "MODEL"\nctx-size = 512\nn_parallel = 3\nnp = 3\n'.replace("n_parallel = 3\n", "")),
        ("c.yaml", "model: MODEL\nctx_size: 512\nparallel: 3\n"),
        ("c.yml", "m: MODEL\nc: 512\nnp: 3\n"),
    ],
)
def test_keys_are_flags(served, write, tiny_models, name: str, text: str) -> None:
    serve("--config", write(text.replace("MODEL", str(tiny_models["llama"])), name))
    (spec,) = served
    assert spec.path == tiny_models["llama"]
    assert (spec.arguments["n_ctx"], spec.engine["n_parallel"]) == (512, 3)


def test_flag_before_environment_before_file(served, write, tiny_models, monkeypatch) -> None:
    path = write(f'model = "{tiny_models["llama"]}"\nctx-size = 512\ntemp = 0.5\nparallel = 3\n')
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "640")
    monkeypatch.setenv("LLAMA_ARG_N_PARALLEL", "4")
    serve("--config", path, "-np", 5)
    (spec,) = served
    assert spec.engine["n_parallel"] == 5
    assert spec.arguments["n_ctx"] == 640
    assert spec.settings.sampling["temperature"] == 0.5


def test_the_environment_names_the_file(served, write, tiny_models, monkeypatch) -> None:
    monkeypatch.setenv("PYLLM_CONFIG", str(write("ctx-size = 512")))
    serve(tiny_models["llama"])
    assert served[0].arguments["n_ctx"] == 512


def test_a_model_of_the_command_line_comes_before_those_of_the_file(served, write, tiny_models) -> None:
    path = write('model = "other"\n[models.a]\nmodel = "another"\n')
    serve(tiny_models["llama"], "--config", path)
    assert served[0].path == tiny_models["llama"]


def test_values_of_all_kinds(served, write, tiny_models, tmp_path) -> None:
    (tmp_path / "template").write_text("{{ messages }}")
    text = f"""
        model = "{tiny_models["llama"]}"
        api-key = ["one", "two"]
        metrics = true
        no-host = true
        timeout = 5
        chat-template-file = "{tmp_path / "template"}"
        logit-bias = "7+1.5"
        repack = false
    """
    serve("--config", write(text))
    (spec,) = served
    assert spec.settings.api_keys == ("one", "two")
    assert spec.settings.metrics is True
    assert spec.settings.timeout == 5
    assert spec.settings.chat_template == "{{ messages }}"
    assert spec.settings.sampling["logit_bias"] == {7: 1.5}
    assert spec.arguments["no_host"] is True
    assert spec.arguments["use_extra_bufts"] is False


def test_tables_of_models(served, write, tiny_models) -> None:
    text = f"""
        ctx-size = 512
        predict = 100
        memory-budget = "1GiB"
        [models.small]
        model = "{tiny_models["llama"]}"
        [models."of vectors"]
        model = "{tiny_models["bert"]}"
        ctx-size = 128
        predict = 10
        tags = "small, words"
        temp = 0
        load = "start"
    """
    serve("--config", write(text), "--top-k", 5)
    small, vectors, settings, values = served
    assert (small.name, small.load, small.arguments["n_ctx"]) == ("small", "demand", 512)
    assert (vectors.name, vectors.load, vectors.arguments["n_ctx"]) == ("of vectors", "start", 128)
    assert (small.settings.max_tokens, vectors.settings.max_tokens, settings.max_tokens) == (100, 10, 100)
    assert vectors.settings.sampling == {"temperature": 0, "top_k": 5}
    assert small.settings.sampling == {"top_k": 5}
    assert (small.settings.tags, vectors.settings.tags) == ((), ("small", "words"))
    assert parse_bytes(values.memory_budget, "") == 2**30


def test_a_flag_comes_before_the_table_of_a_model(served, write, tiny_models) -> None:
    serve("--config", write(f'[models.a]\nmodel = "{tiny_models["llama"]}"\nctx-size = 128'), "-c", 256)
    assert served[0].arguments["n_ctx"] == 256


def test_models_of_the_command_line_have_names(served, tiny_models) -> None:
    serve("--model", f"a={tiny_models['llama']}", "-m", f"b={tiny_models['bert']}")
    assert [(spec.name, spec.path) for spec in served[:2]] == [("a", tiny_models["llama"]), ("b", tiny_models["bert"])]
    assert "needs a name" in refused("-m", f"a={tiny_models['llama']}", "-m", tiny_models["bert"])
    assert "--alias" in refused("-m", f"a={tiny_models['llama']}", "--alias", "x")
    assert "NAME=MODEL" in refused("-m", "=x")


def test_models_of_a_folder(served, write, tiny_models, tmp_path) -> None:
    folder = tmp_path / "models"
    (folder / "split").mkdir(parents=True)
    names = ("one.gguf", "mmproj-one.gguf", "notes.txt", "split/x-00001-of-00002.gguf", "split/x-00002-of-00002.gguf")
    for name in names:
        (folder / name).write_bytes(tiny_models["llama"].read_bytes())
    serve("--models-dir", folder)
    assert {spec.name: spec.path.name for spec in served[:2]} == {
        "one": "one.gguf", "split": "x-00001-of-00002.gguf"
    }  # fmt: skip
    served.clear()
    serve("--models-dir", folder, "--config", write("[models.one]\nctx-size = 64"), "--no-models-autoload")
    assert [(spec.name, spec.arguments.get("n_ctx")) for spec in served[:2]] == [("one", 64), ("split", None)]
    assert served[-1].models_autoload is False
    (tmp_path / "empty").mkdir()
    assert "no model in" in refused("--models-dir", tmp_path / "empty")
    assert "cannot read" in refused("--models-dir", tmp_path / "none")


# ---- mistakes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ctx-sise = 512", "pyllm.toml: there is no key 'ctx-sise'; the nearest is 'ctx-size'"),
        ("xyzzy = 512", "there is no key 'xyzzy'"),
        ("ctx-size = '512'", "ctx-size must be an integer, not '512'"),
        ("ctx-size = true", "ctx-size must be an integer, not True"),
        ("ctx-size = -5", "ctx-size must be at least 0, not -5"),
        ("port = 70000", "port must be at most 65535, not 70000"),
        ("metrics = 1", "metrics must be true or false, not 1"),
        ("temp = 'hot'", "temp must be a number, not 'hot'"),
        ("alias = 5", "alias must be a text, not 5"),
        ("api-key = [5]", "api-key must be a text, not 5"),
        ("api-key = []", "api-key is an empty list: leave it out, or name some"),
        ("c = 5\nctx_size = 6", "'c' and 'ctx_size' say the same"),
        ("models = 5", "models must hold a table for each model"),
        ("[models]\na = 5", "models must hold a table for each model"),
        ("[models.a]\nport = 5", "[models.a]: 'port' is about the server"),
        ("[models.a]\nload = 'never'", "[models.a]: load must be 'start' or 'demand', not 'never'"),
        ("[models.a]\nloud = 'start'", "[models.a]: there is no key 'loud'; the nearest is 'load'"),
        ("[models.a]\nmodel = ['x', 'y']", "[models.a] names 2 models"),
        ("config = 'x'", "there is no key 'config'"),
        ("a = ", "is not TOML"),
    ],
)
def test_mistakes_are_named(write, text: str, said: str) -> None:
    path = write(text)
    message = refused("--config", path)
    assert said.replace(" ", "") in message.replace(" ", "")
    assert path.name in message.replace(" ", "")


def test_files_that_cannot_be_read(write, tmp_path) -> None:
    assert "cannot read" in refused("--config", tmp_path / "none.toml")
    assert ".toml, .yaml or .yml" in refused("--config", write("", "c.ini"))
    assert "is not YAML" in refused("--config", write("a: [", "c.yaml"))
    assert "must hold keys" in refused("--config", write("- a", "c.yaml"))
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xff\xfe")
    assert "is not TOML" in refused("--config", path)


def test_an_empty_file_says_nothing(served, write, tiny_models) -> None:
    serve(tiny_models["llama"], "--config", write("", "c.yaml"))
    assert served[0].path == tiny_models["llama"]


def test_every_flag_can_be_a_key(served, write, tiny_models) -> None:
    """Those of each kind are asked for their kind only: a wrong one is an error that says which is right."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    names = {}
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name not in ("config", "help"):
            names[parameter.name] = parameter.opts[0].lstrip("-")
    assert len(names) > 80
    keys = config_keys(typer.Context(command), module.serve)
    for name, key in names.items():
        value = {bool: "true", int: "1", float: "1", str: '"1"', Path: '"1"', object: "1"}[keys[key].kind]
        low = keys[key].low
        if low is not None and low > 1:
            value = str(low)
        elif keys[key].high is not None and keys[key].high < 1:
            value = str(keys[key].high)
        config = read_config(write(f'"{key}" = {value}'), keys, extra={})
        assert list(config.values) == [name]
        with pytest.raises(typer.BadParameter, match=f"{key} must be"):
            read_config(write(f'"{key}" = 1979-05-27'), keys, extra={})


# ---- sizes


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GiB", 8 << 30), ("8G", 8 << 30), ("8g", 8 << 30), ("500MB", 500_000_000), ("1.5 kib", 1536), ("42", 42)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text, "--memory-budget") == count


@pytest.mark.parametrize("text", ["", "x", "8 gigabytes", "-1G", "GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="8GiB"):
        parse_bytes(text, "--memory-budget")


# ---- other flags of llama-server


def test_flags_of_loading(served, tiny_models) -> None:
    serve(
        tiny_models["llama"], "--load-mode", "mmap+mlock", "-ts", "3,1", "--device", "none", "-nkvo", "-nr",
        "--override-kv", "a.b=int:5,c=bool:true,d=str:x", "--rope-scale", 4, "-ot", "blk.*=CPU", "-ctk", "q8_0",
    )  # fmt: skip
    arguments = served[0].arguments
    assert arguments["load_mode"] == "mmap_mlock"
    assert arguments["tensor_split"] == [3, 1]
    assert arguments["devices"] == []
    assert arguments["offload_kqv"] is False
    assert arguments["use_extra_bufts"] is False
    assert arguments["kv_overrides"] == {"a.b": 5, "c": True, "d": "x"}
    assert arguments["rope_freq_scale"] == 0.25
    assert arguments["tensor_buft_overrides"] == {"blk.*": "CPU"}
    assert arguments["type_k"] == "q8_0"
    for wrong in (("-ts", "x"), ("--override-kv", "a=5"), ("--override-kv", "a=int:x"), ("-ot", "x")):
        refused(tiny_models["llama"], *wrong)


def test_flags_of_chats(served, tiny_models) -> None:
    serve(
        tiny_models["llama"], "--reasoning-format", "none", "--reasoning", "off", "--reasoning-budget", 5,
        "--reasoning-effort", "low", "--chat-template-kwargs", '{"a": 1}',
    )  # fmt: skip
    assert served[0].settings.chat == {
        "reasoning_format": "none",
        "enable_thinking": False,
        "reasoning_budget": 5,
        "chat_template_kwargs": {"reasoning_effort": "low", "a": 1},
    }
    for wrong in (("--reasoning", "x"), ("--chat-template-kwargs", "x"), ("--chat-template-kwargs", "5")):
        refused(tiny_models["llama"], *wrong)


def test_flags_that_change_nothing(served, tiny_models) -> None:
    serve(
        tiny_models["llama"], "--jinja", "-cb", "--no-warmup", "--swa-full", "--rerank", "--threads-http", 4,
        "--no-context-shift",
    )  # fmt: skip
    assert served


def test_https_needs_both_files(tiny_models, tmp_path) -> None:
    assert "both" in refused(tiny_models["llama"], "--ssl-key-file", tmp_path / "key")
    wrong = refused(tiny_models["llama"], "--ssl-key-file", tmp_path / "key", "--ssl-cert-file", tmp_path / "cert")
    assert "there is no file" in wrong
    assert "slash" in refused(tiny_models["llama"], "--api-prefix", "llm")


def test_flags_with_underscores(served, tiny_models) -> None:
    """As in llama.cpp's programs; values keep theirs."""
    serve(tiny_models["llama"], "--ctx_size", 512, "--n_gpu_layers=0", "--chat_template_kwargs", '{"a_b": 1}')
    (spec,) = served
    assert (spec.arguments["n_ctx"], spec.arguments["n_gpu_layers"]) == (512, 0)
    assert spec.settings.chat["chat_template_kwargs"] == {"a_b": 1}
    assert programs.invoke("serve", tiny_models["llama"], "-c_x", "512").returncode == 2
