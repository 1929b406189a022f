from collections.abc import Iterable, Mapping

from pyllm.core.sampler import Sampler
from pyllm.core.vocab import Vocab

class Greedy(Sampler):
    def __init__(self) -> None: ...

class Dist(Sampler):
    def __init__(self, seed: int | None = None) -> None: ...

class TopK(Sampler):
    def __init__(self, k: int) -> None: ...

class TopP(Sampler):
    def __init__(self, p: float, min_keep: int = 1) -> None: ...

class MinP(Sampler):
    def __init__(self, p: float, min_keep: int = 1) -> None: ...

class Typical(Sampler):
    def __init__(self, p: float, min_keep: int = 1) -> None: ...

class Temp(Sampler):
    def __init__(self, t: float) -> None: ...

class TempExt(Sampler):
    def __init__(self, t: float, delta: float = 0.0, exponent: float = 1.0) -> None: ...

class XTC(Sampler):
    def __init__(self, p: float, t: float, min_keep: int = 1, seed: int | None = None) -> None: ...

class TopNSigma(Sampler):
    def __init__(self, n: float) -> None: ...

class Mirostat(Sampler):
    def __init__(
        self, n_vocab: int, seed: int | None = None, tau: float = 5.0, eta: float = 0.1, m: int = 100
    ) -> None: ...

class MirostatV2(Sampler):
    def __init__(self, seed: int | None = None, tau: float = 5.0, eta: float = 0.1) -> None: ...

class AdaptiveP(Sampler):
    def __init__(self, target: float, decay: float = 0.9, seed: int | None = None) -> None: ...

class Grammar(Sampler):
    def __init__(
        self,
        vocab: Vocab,
        grammar: str,
        root: str = "root",
        *,
        trigger_patterns: Iterable[str] = (),
        trigger_tokens: Iterable[int] = (),
    ) -> None: ...

class Penalties(Sampler):
    def __init__(
        self, n_vocab: int, last_n: int = 64, repeat: float = 1.0, freq: float = 0.0, present: float = 0.0
    ) -> None: ...

class DRY(Sampler):
    def __init__(
        self,
        vocab: Vocab,
        multiplier: float = 0.8,
        base: float = 1.75,
        allowed_length: int = 2,
        last_n: int = 4096,
        seq_breakers: Iterable[str] = ("\n", ":", '"', "*"),
    ) -> None: ...

class LogitBias(Sampler):
    def __init__(self, n_vocab: int, bias: Mapping[int, float] | Iterable[tuple[int, float]]) -> None: ...

class Infill(Sampler):
    def __init__(self, vocab: Vocab) -> None: ...
