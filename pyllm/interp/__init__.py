"""Activations: what a model computes between its input and its output, read, changed and steered.

from pyllm.interp import Interp

with Interp("smollm2") as lab:
    logits, cache = lab.run_with_cache("The capital of France is")
    cache["blocks.5.hook_resid_post"].shape  # (pos, d_model)
"""

from __future__ import annotations

from pyllm.interp.cache import ActivationCache
from pyllm.interp.lens import LogitLens, logit_lens
from pyllm.interp.names import HookPoint, NoActivationError
from pyllm.interp.runner import Interp
from pyllm.interp.steering import SteeringVector
from pyllm.interp.stream import NpyWriter, capture_to_npy, capture_to_safetensors

__all__ = [
    "ActivationCache",
    "HookPoint",
    "Interp",
    "LogitLens",
    "NoActivationError",
    "NpyWriter",
    "SteeringVector",
    "capture_to_npy",
    "capture_to_safetensors",
    "logit_lens",
]
