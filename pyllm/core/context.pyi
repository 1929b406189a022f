from collections.abc import Callable, Iterable, Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from pyllm.core.adapter import LoraAdapter
from pyllm.core.batch import Batch
from pyllm.core.batch_ext import BatchExt
from pyllm.core.context_settings import ContextSettings
from pyllm.core.memory import Memory
from pyllm.core.model import Model
from pyllm.core.outputs import Outputs
from pyllm.core.sampled import Sampled
from pyllm.core.sampler import Chain
from pyllm.core.state import State
from pyllm.enums import AttentionType, ContextType, FlashAttnType, PoolingType, RopeScalingType

@disjoint_base
class Context(ContextSettings):
    def __new__(
        cls,
        model: Model,
        *,
        n_ctx: int | None = 0,
        n_batch: int | None = None,
        n_ubatch: int | None = None,
        n_seq_max: int | None = None,
        n_rs_seq: int | None = None,
        n_outputs_max: int | None = None,
        n_outputs_max_per_seq: int | None = None,
        reserve_outputs: int = 0,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        ctx_type: ContextType | int | str | None = None,
        rope_scaling_type: RopeScalingType | int | str | None = None,
        pooling_type: PoolingType | int | str | None = None,
        attention_type: AttentionType | int | str | None = None,
        flash_attn_type: FlashAttnType | int | str | None = None,
        rope_freq_base: float | None = None,
        rope_freq_scale: float | None = None,
        yarn_ext_factor: float | None = None,
        yarn_attn_factor: float | None = None,
        yarn_beta_fast: float | None = None,
        yarn_beta_slow: float | None = None,
        yarn_orig_ctx: int | None = None,
        type_k: str | int | None = None,
        type_v: str | int | None = None,
        embeddings: bool | None = None,
        offload_kqv: bool | None = None,
        no_perf: bool | None = None,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        kv_unified: bool | None = None,
        abort_callback: Callable[[], object] | None = None,
        samplers: Mapping[int, Chain] | None = None,
        capture: bool = False,
        poison_stale: bool = False,
    ) -> Self: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    def decode(self, batch: Batch) -> None: ...
    def process(self, batch: BatchExt, *, encode: bool = False) -> None: ...
    def set_sampler(self, seq_id: int, chain: Chain | None) -> None: ...
    @property
    def sampled(self) -> Sampled: ...
    def encode(self, batch: Batch) -> None: ...
    def abort(self) -> None: ...
    def clear_abort(self) -> None: ...
    def set_abort_callback(self, callback: Callable[[], object] | None) -> None: ...
    def synchronize(self) -> None: ...
    def logits_ith(self, i: int) -> NDArray[np.float32]: ...
    def embeddings_ith(self, i: int) -> NDArray[np.float32]: ...
    def embeddings_seq(self, seq_id: int = 0) -> NDArray[np.float32]: ...
    @property
    def logits(self) -> Outputs: ...
    @property
    def embeddings(self) -> Outputs: ...
    @property
    def n_outputs(self) -> int: ...
    @property
    def capture(self) -> bool: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def decode_id(self) -> int: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def state(self) -> State: ...
    @property
    def adapters(self) -> tuple[tuple[LoraAdapter, float], ...]: ...
    @property
    def control_vector(self) -> bool: ...
    def set_adapters(self, adapters: Mapping[LoraAdapter, float] | Iterable[tuple[LoraAdapter, float]]) -> None: ...
    def set_control_vector(
        self, data: NDArray[np.floating] | None, il_start: int | None = None, il_end: int | None = None
    ) -> None: ...
    def detach_threadpool(self) -> None: ...
