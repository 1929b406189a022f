"""Tiny random models: GGUF files that llama.cpp loads in milliseconds and really computes with.

Each architecture stands for a kind of model that pyllm has to treat differently: dense, mixture of experts,
sliding window, recurrent, hybrid, encoder, encoder-decoder. The weights are random but seeded, so a file is the
same byte for byte every time; the text is nonsense but deterministic and not constant.

    path = models.write(tmp_path / "tiny.gguf", "gemma3", seed=1)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyllm.core.gguf import GGUFWriter
from support import vocabs

#: What `write` can make, by what llama.cpp calls it.
ARCHITECTURES: tuple[str, ...] = ("llama", "qwen3moe", "gemma3", "mamba", "jamba", "bert", "t5")

#: Those that generate text token by token from a prompt.
GENERATIVE: tuple[str, ...] = ("llama", "qwen3moe", "gemma3", "mamba", "jamba")

# llama_pooling_type
POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}

# llama_ftype, without which llama.cpp guesses
FILE_TYPES = {None: 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a model. Multiples of 32 can be quantized to Q8_0, of 256 to the K-quants."""

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 128
    n_ctx_train: int = 512
    n_expert: int = 4
    n_expert_used: int = 2
    sliding_window: int = 16
    ssm_conv: int = 4
    ssm_state: int = 16
    ssm_dt_rank: int = 32

    @property
    def n_embd_head(self) -> int:
        return self.n_embd // self.n_head

    @property
    def n_embd_kv(self) -> int:
        return self.n_embd_head * self.n_head_kv

    @property
    def ssm_inner(self) -> int:
        # llama.cpp supports no other expansion of mamba.
        return 2 * self.n_embd


class _Model:
    """One file in the making: metadata and tensors with seeded random weights."""

    def __init__(self, arch: str, sizes: Sizes, seed: int, type: str | None) -> None:
        self.arch = arch
        self.sizes = sizes
        self.type = type
        self.random = np.random.default_rng(seed)
        self.writer = GGUFWriter()
        self.writer.add("general.architecture", arch)
        self.writer.add("general.name", f"tiny random {arch}")
        if type in FILE_TYPES:
            self.writer.add("general.file_type", FILE_TYPES[type])

    def add(self, key: str, value: object, type: str | None = None) -> None:
        """Add a key below the architecture's own prefix."""
        self.writer.add(f"{self.arch}.{key}", value, type)

    def matrix(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Add a weight that maps `shape[-1]` inputs to `shape[-2]` outputs, keeping their variance."""
        values = self.random.normal(0.0, gain / np.sqrt(shape[-1]), shape).astype(np.float32)
        self.writer.add_tensor(f"{name}.weight", values, self.type)

    def table(self, name: str, *shape: int, scale: np.ndarray | float = 1.0, type: str | None = None) -> None:
        """Add rows of unit variance, times `scale` by row."""
        values = self.random.normal(0.0, 1.0, shape) * np.reshape(scale, (-1, 1))
        self.writer.add_tensor(f"{name}.weight", values.astype(np.float32), type)

    def vector(self, name: str, size: int, mean: float = 0.0) -> None:
        """Add a vector around `mean`; vectors stay float32 in quantized files."""
        values = self.random.normal(mean, 0.1, size).astype(np.float32)
        self.writer.add_tensor(name, values)

    def norm(self, name: str, size: int, bias: bool = False) -> None:
        self.vector(f"{name}.weight", size, mean=1.0)
        if bias:
            self.vector(f"{name}.bias", size)

    def attention(self, block: str, *, bias: bool = False, out: str = "attn_output", cross: str = "attn") -> None:
        s = self.sizes
        for letter, size in (("q", s.n_embd), ("k", s.n_embd_kv), ("v", s.n_embd_kv)):
            self.matrix(f"{block}.{cross}_{letter}", size, s.n_embd)
            if bias:
                self.vector(f"{block}.{cross}_{letter}.bias", size)
        self.matrix(f"{block}.{out}", s.n_embd, s.n_embd)
        if bias:
            self.vector(f"{block}.{out}.bias", s.n_embd)

    def feed_forward(self, block: str, *, gate: bool = True, bias: bool = False) -> None:
        s = self.sizes
        if gate:
            self.matrix(f"{block}.ffn_gate", s.n_ff, s.n_embd)
        self.matrix(f"{block}.ffn_up", s.n_ff, s.n_embd)
        self.matrix(f"{block}.ffn_down", s.n_embd, s.n_ff)
        if bias:
            self.vector(f"{block}.ffn_up.bias", s.n_ff)
            self.vector(f"{block}.ffn_down.bias", s.n_embd)

    def experts(self, block: str) -> None:
        s = self.sizes
        # The router stays float32, as converters leave it.
        self.table(f"{block}.ffn_gate_inp", s.n_expert, s.n_embd)
        self.matrix(f"{block}.ffn_gate_exps", s.n_expert, s.n_ff, s.n_embd)
        self.matrix(f"{block}.ffn_up_exps", s.n_expert, s.n_ff, s.n_embd)
        self.matrix(f"{block}.ffn_down_exps", s.n_expert, s.n_embd, s.n_ff)

    def mamba(self, block: str, *, norms: bool = False) -> None:
        s = self.sizes
        self.matrix(f"{block}.ssm_in", 2 * s.ssm_inner, s.n_embd)
        self.table(f"{block}.ssm_conv1d", s.ssm_inner, s.ssm_conv, scale=0.5)
        self.vector(f"{block}.ssm_conv1d.bias", s.ssm_inner)
        self.matrix(f"{block}.ssm_x", s.ssm_dt_rank + 2 * s.ssm_state, s.ssm_inner)
        self.matrix(f"{block}.ssm_dt", s.ssm_inner, s.ssm_dt_rank)
        self.vector(f"{block}.ssm_dt.bias", s.ssm_inner)
        if norms:
            for name, size in (("dt", s.ssm_dt_rank), ("b", s.ssm_state), ("c", s.ssm_state)):
                self.norm(f"{block}.ssm_{name}_norm", size)
        # Negative: the state decays. No ".weight" in these two names.
        decay = -np.exp(self.random.normal(0.0, 0.5, (s.ssm_inner, s.ssm_state)))
        self.writer.add_tensor(f"{block}.ssm_a", decay.astype(np.float32))
        self.vector(f"{block}.ssm_d", s.ssm_inner, mean=1.0)
        self.matrix(f"{block}.ssm_out", s.n_embd, s.ssm_inner)

    def transformer_keys(self, *, epsilon: str = "attention.layer_norm_rms_epsilon") -> None:
        s = self.sizes
        self.add("context_length", s.n_ctx_train)
        self.add("embedding_length", s.n_embd)
        self.add("block_count", s.n_layer)
        self.add("feed_forward_length", s.n_ff)
        self.add("attention.head_count", s.n_head)
        self.add("attention.head_count_kv", s.n_head_kv)
        self.add(epsilon, 1e-5)

    def embeddings(self, vocab: vocabs.Vocab) -> None:
        """Add the two matrices of the vocabulary, and the norm before the output."""
        s = self.sizes
        # Gemma multiplies its embeddings by sqrt(n_embd).
        scale = s.n_embd**-0.5 if self.arch == "gemma3" else 1.0
        self.table("token_embd", vocab.size, s.n_embd, scale=scale, type=self.type)
        # Logits of a spread of 3, so that the best token has a clear lead, except for what a text should not
        # be made of: bytes and control tokens lie near 0, where greedy sampling does not find them.
        scale = np.where(vocab.readable, 3.0, 0.3) / np.sqrt(s.n_embd)
        self.table("output", vocab.size, s.n_embd, scale=scale, type=self.type)


def _llama(m: _Model, vocab: vocabs.Vocab, **options: Any) -> None:
    m.transformer_keys()
    m.add("rope.dimension_count", m.sizes.n_embd_head)
    m.embeddings(vocab)
    m.norm("output_norm", m.sizes.n_embd)
    for i in range(m.sizes.n_layer):
        m.norm(f"blk.{i}.attn_norm", m.sizes.n_embd)
        m.attention(f"blk.{i}")
        m.norm(f"blk.{i}.ffn_norm", m.sizes.n_embd)
        m.feed_forward(f"blk.{i}")


def _qwen3moe(m: _Model, vocab: vocabs.Vocab, **options: Any) -> None:
    s = m.sizes
    m.transformer_keys()
    m.add("attention.key_length", s.n_embd_head)
    m.add("attention.value_length", s.n_embd_head)
    m.add("expert_count", s.n_expert)
    m.add("expert_used_count", s.n_expert_used)
    m.add("expert_feed_forward_length", s.n_ff)
    m.embeddings(vocab)
    m.norm("output_norm", s.n_embd)
    for i in range(s.n_layer):
        m.norm(f"blk.{i}.attn_norm", s.n_embd)
        m.attention(f"blk.{i}")
        m.norm(f"blk.{i}.attn_q_norm", s.n_embd_head)
        m.norm(f"blk.{i}.attn_k_norm", s.n_embd_head)
        m.norm(f"blk.{i}.ffn_norm", s.n_embd)
        m.experts(f"blk.{i}")


def _gemma3(m: _Model, vocab: vocabs.Vocab, **options: Any) -> None:
    s = m.sizes
    m.transformer_keys()
    m.add("attention.key_length", s.n_embd_head)
    m.add("attention.value_length", s.n_embd_head)
    m.add("attention.sliding_window", s.sliding_window)
    # Layers 0, 2, … see the window only, layers 1, 3, … everything.
    m.add("attention.sliding_window_pattern", 2)
    m.embeddings(vocab)
    m.norm("output_norm", s.n_embd)
    for i in range(s.n_layer):
        m.norm(f"blk.{i}.attn_norm", s.n_embd)
        m.attention(f"blk.{i}")
        m.norm(f"blk.{i}.attn_q_norm", s.n_embd_head)
        m.norm(f"blk.{i}.attn_k_norm", s.n_embd_head)
        m.norm(f"blk.{i}.post_attention_norm", s.n_embd)
        m.norm(f"blk.{i}.ffn_norm", s.n_embd)
        m.feed_forward(f"blk.{i}")
        m.norm(f"blk.{i}.post_ffw_norm", s.n_embd)


def _ssm_keys(m: _Model) -> None:
    s = m.sizes
    m.add("ssm.conv_kernel", s.ssm_conv)
    m.add("ssm.inner_size", s.ssm_inner)
    m.add("ssm.state_size", s.ssm_state)
    m.add("ssm.time_step_rank", s.ssm_dt_rank)


def _mamba(m: _Model, vocab: vocabs.Vocab, **options: Any) -> None:
    s = m.sizes
    m.add("context_length", s.n_ctx_train)
    m.add("embedding_length", s.n_embd)
    m.add("block_count", s.n_layer)
    m.add("feed_forward_length", 0)
    m.add("attention.head_count", 0)
    m.add("attention.layer_norm_rms_epsilon", 1e-5)
    _ssm_keys(m)
    m.embeddings(vocab)
    m.norm("output_norm", s.n_embd)
    for i in range(s.n_layer):
        m.norm(f"blk.{i}.attn_norm", s.n_embd)
        m.mamba(f"blk.{i}")


def _jamba(m: _Model, vocab: vocabs.Vocab, **options: Any) -> None:
    s = m.sizes
    m.transformer_keys()
    # Layers without heads are recurrent: 0, 2, …
    m.add("attention.head_count_kv", [s.n_head_kv if i % 2 else 0 for i in range(s.n_layer)])
    _ssm_keys(m)
    m.embeddings(vocab)
    m.norm("output_norm", s.n_embd)
    for i in range(s.n_layer):
        m.norm(f"blk.{i}.attn_norm", s.n_embd)
        if i % 2:
            m.attention(f"blk.{i}")
        else:
            m.mamba(f"blk.{i}", norms=True)
        m.norm(f"blk.{i}.ffn_norm", s.n_embd)
        m.feed_forward(f"blk.{i}")


def _bert(m: _Model, vocab: vocabs.Vocab, *, pooling: str = "mean", **options: Any) -> None:
    s = m.sizes
    m.transformer_keys(epsilon="attention.layer_norm_epsilon")
    m.add("attention.causal", False)
    m.add("pooling_type", POOLING[pooling])
    m.table("token_embd", vocab.size, s.n_embd, type=m.type)
    m.table("token_types", 2, s.n_embd, scale=0.1)
    m.table("position_embd", s.n_ctx_train, s.n_embd, scale=0.1)
    m.norm("token_embd_norm", s.n_embd, bias=True)
    if pooling == "rank":
        m.add("classifier.output_labels", ["relevance"])
        m.matrix("cls", s.n_embd, s.n_embd)
        m.vector("cls.bias", s.n_embd)
        m.matrix("cls.output", 1, s.n_embd)
        m.vector("cls.output.bias", 1)
    for i in range(s.n_layer):
        m.attention(f"blk.{i}", bias=True)
        m.norm(f"blk.{i}.attn_output_norm", s.n_embd, bias=True)
        m.feed_forward(f"blk.{i}", gate=False, bias=True)
        m.norm(f"blk.{i}.layer_output_norm", s.n_embd, bias=True)


def _t5(m: _Model, vocab: vocabs.Vocab, **options: Any) -> None:
    s = m.sizes
    n_buckets = 32
    m.transformer_keys()
    m.add("attention.key_length", s.n_embd_head)
    m.add("attention.value_length", s.n_embd_head)
    m.add("attention.relative_buckets_count", n_buckets)
    halves = ("enc", "dec") if m.arch == "t5" else ("enc",)
    if "dec" in halves:
        m.add("decoder_start_token_id", 0)
        m.add("decoder_block_count", s.n_layer)
    m.embeddings(vocab)
    for half in halves:
        m.norm(f"{half}.output_norm", s.n_embd)
        for i in range(s.n_layer):
            block = f"{half}.blk.{i}"
            m.norm(f"{block}.attn_norm", s.n_embd)
            m.attention(block, out="attn_o")
            if i == 0:
                # Shared by the layers after it.
                m.table(f"{block}.attn_rel_b", n_buckets, s.n_head)
            if half == "dec":
                m.norm(f"{block}.cross_attn_norm", s.n_embd)
                m.attention(block, out="cross_attn_o", cross="cross_attn")
            m.norm(f"{block}.ffn_norm", s.n_embd)
            m.feed_forward(block)


_BUILDERS = {
    "llama": _llama,
    "qwen3moe": _qwen3moe,
    "gemma3": _gemma3,
    "mamba": _mamba,
    "jamba": _jamba,
    "bert": _bert,
    "t5": _t5,
    "t5encoder": _t5,
}
_VOCABS = {"bert": "wpm", "t5": "ugm", "t5encoder": "ugm"}


def write(
    path: str | os.PathLike[str],
    arch: str = "llama",
    *,
    seed: int = 0,
    type: str | None = None,
    vocab: str | None = None,
    vocab_size: int | None = None,
    pooling: str = "mean",
    chat_template: str | None = CHATML,
    rerank_template: str | None = None,
    **sizes: int,
) -> Path:
    """Write a tiny random model.

    Args:
        path: Where to.
        arch: One of `ARCHITECTURES`, or "t5encoder".
        seed: Seed of the weights.
        type: Tensor type of the large matrices, for example "Q8_0"; None is float32.
        vocab: "spm", "bpe", "wpm" or "ugm"; None is what the architecture usually has.
        vocab_size: Pad the vocabulary to that many tokens.
        pooling: How bert makes one vector of many; "rank" adds a classifier head, for reranking.
        chat_template: Jinja source of the chat template, or None.
        rerank_template: How a reranker reads "{query}" and "{document}", or None.
        **sizes: Fields of `Sizes`.

    Returns:
        The path.
    """
    fields = dict(sizes)
    if arch in ("bert", "t5", "t5encoder"):
        # llama.cpp reads as many heads for keys as for queries there.
        fields.setdefault("n_head_kv", fields.get("n_head", Sizes.n_head))
    model = _Model(arch, Sizes(**fields), seed, type)
    words = vocabs.make(vocab or _VOCABS.get(arch, "spm"), vocab_size)
    words.add_to(model.writer)
    if chat_template is not None and arch in GENERATIVE:
        model.writer.add("tokenizer.chat_template", chat_template)
    if rerank_template is not None:
        model.writer.add("tokenizer.chat_template.rerank", rerank_template)
    _BUILDERS[arch](model, words, pooling=pooling)
    model.writer.write(path)
    return Path(path)
