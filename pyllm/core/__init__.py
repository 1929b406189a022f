"""llama.cpp's objects, one class each: models, contexts, batches, samplers, with NumPy arrays and no policy."""

import sys
from importlib.util import find_spec

if find_spec("pyllm.core.error") is None:
    raise ImportError(
        f"pyllm is imported from {__file__.removesuffix('__init__.py')}, which holds its sources and nothing compiled. "
        "Start Python in another folder to use the installed pyllm, or build this one: make build"
    )

if sys.platform == "win32":
    import os
    from pathlib import Path

    # Windows knows no rpaths: the folder of the libraries is named before the first extension is loaded.
    os.add_dll_directory(str(Path(__file__).resolve().parent.parent / "lib"))
