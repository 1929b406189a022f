from typing_extensions import disjoint_base

from pyllm.core.sampler import Chain, Sampler
from pyllm.core.vocab import Vocab

@disjoint_base
class TokenTable: ...

@disjoint_base
class Constrained(Sampler):
    def __init__(
        self, vocab: Vocab, grammar: Sampler, samplers: Chain, *, control_tokens: bool | None = None
    ) -> None: ...
    @property
    def grammar(self) -> Sampler: ...
    @property
    def samplers(self) -> Chain: ...
    @property
    def n_chosen(self) -> int: ...
    @property
    def n_rejected(self) -> int: ...
