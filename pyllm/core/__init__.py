"""llama.cpp's objects, one class each: models, contexts, batches, samplers, with NumPy arrays and no policy."""

import sys

if sys.platform == "win32":
    import os
    from pathlib import Path

    # Windows knows no rpaths: the folder of the libraries is named before the first extension is loaded.
    os.add_dll_directory(str(Path(__file__).resolve().parent.parent / "lib"))
