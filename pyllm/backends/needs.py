"""What a backend module needs of the machine: libraries that other packages bring, and remedies for what is missing."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from pyllm.backends.discover import Module, build_info
from pyllm.extras import install_command

_NVIDIA = "install NVIDIA's driver (Debian: apt install nvidia-driver; in a container: docker run --gpus all)"
_ROCM = "install AMD's ROCm runtime, of the version that the module was built for"
_ONEAPI = "install Intel's oneAPI runtime and the driver of the GPU"
_VULKAN = "install the Vulkan driver of the GPU (Debian: apt install libvulkan1 mesa-vulkan-drivers)"

# A shared library that the linker did not find -> what to do.
_LIBRARIES = (
    (r"libcuda\.so|nvcuda\.dll", _NVIDIA),
    (r"libvulkan\.so|vulkan-1\.dll", _VULKAN),
    (r"lib(?:amdhip|rocblas|hipblas|hsa)", _ROCM),
    (r"lib(?:sycl|svml|mkl|dnnl|ze_loader|OpenCL|imf|intlc)", _ONEAPI),
)
# A backend that finds no device -> what to do.
_DEVICES = {
    "cuda": f"{_NVIDIA}; `nvidia-smi` lists the GPUs that there are, and CUDA_VISIBLE_DEVICES hides some",
    "hip": f"{_ROCM}; `rocminfo` lists the GPUs that there are, and HIP_VISIBLE_DEVICES hides some",
    "sycl": f"{_ONEAPI}; `sycl-ls` lists the devices that there are, and ONEAPI_DEVICE_SELECTOR hides some",
    "vulkan": f"{_VULKAN}; `vulkaninfo --summary` lists the devices that there are. One that computes on the CPU, such "
    "as lavapipe, is used only where GGML_VK_VISIBLE_DEVICES names it (GGML_VK_VISIBLE_DEVICES=0)",
}


def preload(path: str, folders: Iterable[str] | None = None) -> None:
    """Load the libraries that a module is linked to and that packages such as nvidia-cublas-cu12 have.

    The module names them without a folder; the linker takes those that the process has already. A library that PyTorch
    has loaded stays the only one of its name. What no package has is left to the linker, which may find it in the
    system.

    Args:
        path: The module; ``build.json`` beside it lists the libraries, as paths below a folder of ``sys.path``.
        folders: Where to look instead of ``sys.path``.
    """
    for library in build_info(path).get("preload", ()):
        name = library.rpartition("/")[2]
        if sys.platform != "win32":
            try:
                ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
                continue
            except OSError:
                pass  # not in the process yet
        places = (Path(folder, library) for folder in (sys.path if folders is None else folders))
        found = next((place for place in places if place.is_file()), None)
        if found is not None:
            try:
                ctypes.CDLL(str(found))
            except OSError:
                pass  # the module's own loading says what is missing


def remedy(module: Module, reason: str) -> str:
    """What to do about the reason for which a module could not be used; empty where there is no advice.

    Args:
        module: The module.
        reason: What the linker or the backend said.
    """
    for library in build_info(module.path).get("preload", ()):
        if library.rpartition("/")[2] in reason:
            return install_command(*build_info(module.path).get("requires", ()))
    if "No such file" in reason or "cannot open shared object" in reason or "could not be found" in reason:
        for pattern, advice in _LIBRARIES:
            if re.search(pattern, reason):
                return advice
    return _DEVICES.get(module.kind, "")


__all__ = ["preload", "remedy"]
