"""Thirty ordinary cells, and all of them again: rows at the ends of cells, ``with`` blocks, exceptions, re-runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("notebooks.py")

RAISES = "# raises\n"
DECODE = 'ctx.memory.clear()\nctx.decode(Batch.from_arrays(ids, outputs="all"))\nctx.logits[-1]'
CELLS = [
    "import os\nimport numpy as np\nimport pyllm\nfrom pyllm import Batch, Context, Llama, Model, eval as scoring",
    'path = os.environ["TINY_MODEL"]\nllm = Llama(path, n_ctx=512, n_threads=1)\nmodel, vocab = llm.model, llm.vocab',
    "ids = np.arange(3, 15, dtype=np.int32)\nctx = Context(model, n_ctx=256, n_threads=1)",
    "ctx.decode(Batch.from_arrays(ids[:4]))\nctx.logits[-1]",
    "ctx.decode(Batch.from_arrays(ids[4:], outputs='all'))\nctx.logits[-1]",
    DECODE,
    DECODE,  # run again
    "ctx.logits",
    "ctx.logits[-1].argsort()[::-1][:5]",
    "row = ctx.logits[-1]\nrow",
    "llm.context.memory.clear()\nllm.context.decode(Batch.from_arrays(ids[:2]))\nllm.context.logits[0]",
    "llm('the cat', max_tokens=4, echo=True, logprobs=1)",
    "llm.context.logits",
    "llm('the cat sat on the mat and the dog', max_tokens=4, echo=True, logprobs=1)",
    "scoring.logprobs(model, 'the cat sat')",
    "scoring.logprobs(ctx, 'the cat sat on the mat and the dog sat')",
    "ctx.logits[0]",
    "with Context(model, n_ctx=256, n_threads=1) as inner:\n"
    "    inner.decode(Batch.from_arrays(ids))\n    inside = inner.logits[-1]\n    best = int(inside.argmax())\nbest",
    "assert inner.closed and int(inside.argmax()) == best\ninside",
    RAISES + "with Context(model, n_ctx=256, n_threads=1) as failing:\n"
    "    failing.decode(Batch.from_arrays(ids))\n    seen = failing.logits\n    seen[-1][vocab.n_tokens]",
    "assert failing.closed",
    RAISES + "last = Context(model, n_ctx=256, n_threads=1)\ntry:\n    last.decode(Batch.from_arrays(ids))\n"
    "    view = last.logits[-1]\n    1 / 0\nfinally:\n    last.close()",
    "assert last.closed and np.isfinite(view).all()\nview",
    RAISES + "ctx.decode(Batch.from_arrays([10**6]))",
    "np.asarray(ctx.logits)",
    "ctx.memory.clear()\nctx.decode(Batch.from_arrays(np.tile(ids, 10), outputs='all'))\nctx.logits.max(axis=1)",
    "Out[4], _, __",
    "from pyllm.interp import Interp\nlab = Interp(model, n_ctx=64)\nlab.run('the cat')\nlab.context.logits",
    "ctx.close()\nllm.close()\nmodel.close()\nmodel.closed",
    "_ is True and np.isfinite(row).all() and np.isfinite(Out[17]).all()",
]


def test_ordinary_cells_run(tiny_models, tmp_path: Path) -> None:
    assert len(CELLS) == 30
    notebook = nbformat.v4.new_notebook()
    for source in [*CELLS, *CELLS]:  # as with "run all" in a kernel that has run: Out and _ hold the first rows
        cell = nbformat.v4.new_code_cell(source)
        if source.startswith(RAISES):
            cell.metadata["tags"] = ["raises-exception"]
        notebook.cells.append(cell)
    path = tmp_path / "notebooks" / "cells.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "TINY_MODEL": str(tiny_models["llama"]),
    }
    ran = subprocess.run(
        [sys.executable, RUNNER, path], env=environment, capture_output=True, text=True, encoding="utf-8", timeout=500
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    raised = {}
    for i, cell in enumerate(json.loads(ran.stdout)["cells"]):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                raised[i] = output["ename"]
    expected = [i for i, source in enumerate([*CELLS, *CELLS]) if source.startswith(RAISES)]
    assert raised == dict(zip(expected, 2 * ["IndexError", "ZeroDivisionError", "InvalidBatchError"], strict=True))
    last = json.loads(ran.stdout)["cells"][-1]["outputs"][-1]
    assert "".join(last["data"]["text/plain"]) in ("True", "np.True_")
