"""Small random models and a character tokenizer: real `transformers` objects for tests, docs and small experiments.

The seed alone decides the weights; the global random state is left as it was. Weights are drawn with standard deviation
1 / sqrt(hidden), ten times what is usual at this size: attention scores and logits are then of order one, and a wrong
mask or position shows.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
"""Ids 0, 1, 2 and 3 of every character tokenizer."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
)
"""Every message on a line of its own, an assistant's ended by <eos>. The answer follows without further ado."""


def tiny_llama(
    vocab_size: int = 64,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    tied: bool = False,
    positions: int = 512,
) -> LlamaForCausalLM:
    """A random Llama in eval mode. `positions` is its context length, `tied` shares the embedding with the head."""
    config = LlamaConfig(num_key_value_heads=kv_heads, **_sizes(vocab_size, hidden, layers, heads, tied, positions))
    return _seeded(LlamaForCausalLM, config, seed, dtype)


def tiny_qwen3(
    vocab_size: int = 64,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    tied: bool = False,
    positions: int = 512,
) -> Qwen3ForCausalLM:
    """A random Qwen3 (norms on queries and keys) in eval mode."""
    config = Qwen3Config(
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        **_sizes(vocab_size, hidden, layers, heads, tied, positions),
    )
    return _seeded(Qwen3ForCausalLM, config, seed, dtype)


def tiny_gpt_neox(
    vocab_size: int = 64,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    tied: bool = False,
    positions: int = 512,
) -> GPTNeoXForCausalLM:
    """A random GPT-NeoX in eval mode: biases, parallel residual, rotation of a quarter of each head."""
    config = GPTNeoXConfig(**_sizes(vocab_size, hidden, layers, heads, tied, positions))
    return _seeded(GPTNeoXForCausalLM, config, seed, dtype)


def _sizes(vocab_size: int, hidden: int, layers: int, heads: int, tied: bool, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        "initializer_range": hidden**-0.5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _seeded(kind: Any, config: Any, seed: int, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed accelerators
        model: PreTrainedModel = kind(config)
    return model.to(dtype).eval()


def character_tokenizer(chars: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a character: pad, bos, eos, unk are ids 0-3, newline is 4, then `chars` sorted.

    Characters that it does not know become `<unk>`. Text is encoded as it is; bos comes from the chat template, which
    writes each message on a line of its own.
    """
    alphabet = [PAD, BOS, EOS, UNKNOWN, "\n", *sorted(set(chars) - {"\n"})]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(alphabet)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
