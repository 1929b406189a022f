"""``pyllm inspect`` and ``pyllm doctor``."""

from __future__ import annotations

import json
import platform

import pytest

from pyllm.version import __version__


@pytest.mark.model
def test_inspect_json(pyllm, smollm2):
    result = pyllm("inspect", "smollm2", "--json", "-c", "2048")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert report["path"] == str(smollm2)
    assert report["metadata"]["general.architecture"] == "llama"
    assert report["metadata"]["tokenizer.ggml.tokens"]["length"] == 49152
    assert report["n_vocab"] == 49152
    assert sum(entry["count"] for entry in report["tensor_types"]) == len(report["tensors"]) == 272
    assert sum(tensor["nbytes"] for tensor in report["tensors"]) < smollm2.stat().st_size
    by_name = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert by_name["token_embd.weight"]["shape"] == [49152, 576]
    memory = report["memory"]
    assert memory["n_ctx"] == 2048
    assert memory["total"] == memory["model"] + memory["context"] + memory["compute"]
    # 30 layers, 3 heads of 64 for K and for V, two bytes each.
    assert memory["context"] == 2048 * 30 * 3 * 64 * 2 * 2


@pytest.mark.model
def test_inspect_text(pyllm, smollm2):
    text = pyllm("inspect", smollm2).stdout
    assert "general.architecture" in text
    assert "(49,152 items)" in text
    assert "KV cache" in text
    assert "blk.0.attn_q.weight" not in text
    assert "blk.0.attn_q.weight" in pyllm("inspect", smollm2, "--tensors").stdout


def test_inspect_of_something_else(pyllm, tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGUF")
    result = pyllm("inspect", path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "other.gguf" in result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_json(pyllm, monkeypatch, tmp_path):
    monkeypatch.setenv("PYLLM_CACHE", str(tmp_path))
    result = pyllm("doctor", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert report["pyllm"] == __version__
    assert report["llama_cpp"]["version"]
    assert platform.python_version() in report["python"]
    assert any(found["loaded"] and "CPU" in found["name"] for found in report["backends"])
    assert any(device["type"] == "cpu" and device["memory_total"] > 0 for device in report["devices"])
    assert report["cpu_features"]
    assert report["cache"] == str(tmp_path)
    assert report["models"] == []


def test_doctor_text(pyllm):
    result = pyllm("doctor")
    assert result.returncode == 0, result.stderr
    for heading in ("pyllm", "llama.cpp", "Python", "NumPy", "CPU in use", "backends", "devices", "models"):
        assert any(line.startswith(heading) for line in result.stdout.splitlines()), heading


def test_devices(pyllm):
    result = pyllm("devices", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert [device["name"] for device in report["devices"] if device["type"] == "cpu"] == ["CPU"]
    text = pyllm("devices").stdout
    (line,) = [line for line in text.splitlines() if line.startswith("CPU: ")]
    assert "[cpu], " in line and " free of " in line


def test_what_keeps_a_backend_from_use(program, monkeypatch, tmp_path):
    """The report says it instead of a warning, together with the remedy."""
    module = tmp_path / "libggml-other.so"
    module.write_bytes(b"")
    monkeypatch.setenv("PYLLM_BACKEND_PATH", str(module))
    for command in ("devices", "doctor"):
        result = program(command)
        assert result.returncode == 0 and result.stderr == ""
        lines = result.stdout.splitlines()
        (at,) = [i for i, line in enumerate(lines) if line.startswith("  other: rejected: no build.json")]
        assert str(module) in lines[at] and "PYLLM_BACKEND" in lines[at + 1]
