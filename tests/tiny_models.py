"""Tiny random models of every kind that a run may train: plain ones, and those whose layers are fused."""

from __future__ import annotations

from typing import TypeVar

from transformers import PreTrainedModel

from anabranch.modeling.attention import NAME
from anabranch.modeling.fused import fuse
from anabranch.modeling.tiny import tiny_gpt_neox, tiny_llama, tiny_qwen3

Model = TypeVar("Model", bound=PreTrainedModel)


def fused_llama() -> PreTrainedModel:
    """`tiny_llama` with fused layers, as a run loads it."""
    model = tiny_llama()
    assert fuse(model)
    return model


def fused_qwen3() -> PreTrainedModel:
    """`tiny_qwen3` with fused layers, as a run loads it."""
    model = tiny_qwen3()
    assert fuse(model)
    return model


MODELS = [tiny_llama, tiny_qwen3, tiny_gpt_neox, fused_llama, fused_qwen3]


def streaming(model: Model) -> Model:
    """The same model, with stream attention and without dropout from now on."""
    model.set_attn_implementation(NAME)
    model.eval()
    return model
