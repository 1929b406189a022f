"""Run a notebook in a kernel of its own, and print what it looks like afterwards.

python tests/examples/notebooks.py NOTEBOOK.ipynb
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    # What a kernel leaves where it runs is none of the repository's.
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(path.parent.parent, Path(folder) / "examples") / path.parent.name
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(copied)}}).execute()
    return notebook


if __name__ == "__main__":
    sys.stdout.write(nbformat.writes(run(Path(sys.argv[1]))))
