"""The same numbers as llama.cpp's own llama-perplexity, built from the same tree (`make tools`)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from eval import corpus

from pyllm import Model, hub
from pyllm.eval import (
    LogitsFile,
    MultipleChoice,
    hellaswag,
    kl,
    multiple_choice,
    perplexity,
    save_logits,
    winogrande,
    write_multiple_choice,
)

PROGRAM = Path(__file__).resolve().parents[2] / "build/cmake-native/bin/llama-perplexity"
RESULT = r"PPL = [\d.]+ \+/- [\d.]+"

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="llama-perplexity is not built: make tools")


def run(model, *arguments, until, threads=1):
    """What llama-perplexity prints.

    It writes its log from another thread, and on a busy machine ends before the last lines are out: then it is asked
    again, until the pattern `until` is there.
    """
    command = [str(PROGRAM), "-m", model.path, "-t", str(threads), *map(str, arguments)]
    for _ in range(40):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=550, check=True)
        output = done.stdout + done.stderr
        if re.search(until, output, re.MULTILINE | re.DOTALL):
            break
    return output


def number(pattern, output):
    found = re.search(pattern + r"\s*(-?[\d.]+)", output)
    assert found, f"no {pattern} in\n{output[-3000:]}"
    return float(found[1])


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(corpus.text(40), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def other(load):
    return load("llama", type="Q4_0")


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba"])
@pytest.mark.parametrize(("n_ctx", "n_batch"), [(128, 512), (100, 250), (128, 48)])
def test_perplexity(load, text_file, arch, n_ctx, n_batch):
    model = load(arch)
    theirs = number("PPL =", run(model, "-f", text_file, "-c", n_ctx, "-b", n_batch, until=RESULT))
    ours = perplexity(model, text_file.read_text(), n_ctx=n_ctx, n_batch=n_batch, n_threads=1)
    assert ours.ppl == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(("n_ctx", "n_batch"), [(512, 2048), (256, 64)])
def test_perplexity_of_a_real_model(tmp_path, n_ctx, n_batch):
    path = tmp_path / "text.txt"
    path.write_text(corpus.text(150), encoding="utf-8")
    with Model(hub.pull("smollm2")) as model:
        output = run(model, "-f", path, "-c", n_ctx, "-b", n_batch, until=RESULT, threads=2)
        ours = perplexity(model, path.read_text(), n_ctx=n_ctx, n_batch=n_batch, n_threads=2)
    assert ours.ppl == pytest.approx(number("PPL =", output), rel=1e-4)
    assert ours.stderr == pytest.approx(number(r"PPL = [\d.]+ \+/-", output), rel=1e-3)


@pytest.mark.parametrize("n_batch", [512, 48])
def test_their_file_is_read(tiny_model, other, text_file, tmp_path, n_batch):
    path = tmp_path / "theirs.kld"
    run(tiny_model, "-f", text_file, "-c", 128, "-b", n_batch, "--kl-divergence-base", path, until="")
    ours = save_logits(
        tmp_path / "ours.kld", tiny_model, text_file.read_text(), n_ctx=128, n_batch=n_batch, n_threads=1
    )
    theirs = LogitsFile(path)
    assert np.array_equal(ours.windows.tokens, theirs.windows.tokens)
    assert len(ours) == len(theirs)
    # Beside the rounding to 16 bits (2.4e-4 at most), the logits differ by what the shape of a batch changes.
    assert np.abs(ours.log_probs(0, len(ours)) - theirs.log_probs(0, len(ours))).max() < 2e-3


def test_our_file_is_read_and_gives_the_same_statistics(tiny_model, other, text_file, tmp_path):
    file = save_logits(tmp_path / "ours.kld", tiny_model, text_file.read_text(), n_ctx=128, n_threads=1)
    output = run(
        other, "-c", 128, "--kl-divergence-base", file.path, "--kl-divergence", until="^Mean PPL.*Same top p:.*%"
    )
    ours = kl(file, other, n_threads=1)
    for pattern, value in (
        (r"Mean PPL\(Q\)\s*:", ours.ppl),
        (r"Mean PPL\(base\)\s*:", ours.ppl_base),
        (r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:", ours.log_ppl_ratio),
        (r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:\s*\S+ ±", ours.log_ppl_ratio_error),
        (r"Mean\s+KLD:", ours.mean),
        (r"Mean\s+KLD:\s*\S+ ±", ours.mean_error),
        (r"Maximum KLD:", ours.maximum),
        (r"99\.0%\s+KLD:", ours.percentiles[99.0]),
        (r"90\.0%\s+KLD:", ours.percentiles[90.0]),
        (r"Median\s+KLD:", ours.median),
        (r"(?<!\d)5\.0%\s+KLD:", ours.percentiles[5.0]),
        (r"Minimum KLD:", ours.minimum),
        (r"Mean\s+Δp:", 100 * ours.delta_p_mean),
        (r"95\.0%\s+Δp:", 100 * ours.delta_p_percentiles[95.0]),
        (r"RMS Δp\s*:", 100 * ours.delta_p_rms),
        (r"RMS Δp\s*:\s*\S+ ±", 100 * ours.delta_p_rms_error),
        (r"Same top p:", 100 * ours.same_top),
    ):
        # Percentages are printed with three digits after the point.
        tolerance = 1e-3 if "Δp" in pattern or "top" in pattern else 2e-5
        assert value == pytest.approx(number(pattern, output), rel=1e-3, abs=tolerance), pattern


ANSWERS = ["find the number", "look at the house", "go on to the next day", "write a word about it"]


def tasks(n):
    sentences = corpus.SENTENCES
    return [
        MultipleChoice.of(
            sentences[i % 24], [f"{answer} {sentences[(i + k) % 24]}" for k, answer in enumerate(ANSWERS)], i % 4
        )
        for i in range(n)
    ]


def test_hellaswag(tiny_model, tmp_path):
    path, n = tmp_path / "tasks.txt", 20
    lines = [line for task in tasks(n) for line in (task.question, str(min(task.correct)), *task.answers)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = run(
        tiny_model, "-f", path, "--hellaswag", "--hellaswag-tasks", n, "-c", 512, until=rf"^{n}\t[\d.]+%\t.*\]"
    )
    accuracy, low, high = re.findall(rf"^{n}\t([\d.]+)%\t\[([\d.]+)%, ([\d.]+)%\]", output, re.MULTILINE)[-1]
    ours = hellaswag(tiny_model, path, n_threads=1)
    assert 100 * ours.accuracy == pytest.approx(float(accuracy), abs=1e-4)
    assert [100 * end for end in ours.interval] == pytest.approx([float(low), float(high)], abs=1e-3)


def test_multiple_choice(tiny_model, tmp_path):
    path, n = tmp_path / "tasks.bin", 20
    write_multiple_choice(path, tasks(n))
    output = run(tiny_model, "-bf", path, "--multiple-choice", "-c", 512, until=rf"^{n}\t[\d.]+$")
    theirs = [float(value) for value in re.findall(r"^\d+\t([\d.]+)$", output, re.MULTILINE)]
    ours = multiple_choice(tiny_model, path, n_threads=1)
    running = 100 * np.cumsum(ours.correct) / np.arange(1, n + 1)
    assert running.tolist() == pytest.approx(theirs, abs=1e-4)


def test_winogrande(tiny_model, tmp_path):
    path = tmp_path / "tasks.csv"
    rows = []
    for i, sentence in enumerate(corpus.SENTENCES):
        first, *_, rest = sentence.split(" ", 3)
        rows.append(f'{i},"{first} _ {rest} And so it went on for a while.",time,people,{1 + i % 2}')
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    output = run(tiny_model, "-f", path, "--winogrande", "-c", 512, until=rf"^{len(rows) // 2}\t")
    found = re.findall(r"^\d+\t[\d.]+\t\s*(-?[\d.]+)\s+(-?[\d.]+)\s+(\d)\s+(\d)$", output, re.MULTILINE)
    ours = winogrande(tiny_model, path, n_threads=1)
    assert len(found) >= len(rows) // 2
    for (first, second, choice, _), scores, prediction in zip(found, ours.scores, ours.predictions, strict=False):
        assert scores == pytest.approx([float(first), float(second)], abs=2e-3)
        assert prediction == int(choice) - 1
