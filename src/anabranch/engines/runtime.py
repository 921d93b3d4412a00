"""The trainer's model as sampling uses it: weights laid out for decoding, their version, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.modeling.decoding import DecodeWeights
from anabranch.modeling.fused import is_fused


class Runtime:
    """Shared by an engine and its streams.

    Args:
        model: loaded with `attn_implementation=modeling.attention.NAME`; shared with the trainer.
        tokenizer: decodes answers.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.loads = 0
        """How often weights were loaded."""
        self._head = model.get_output_embeddings()
        self._decoder: DecodeWeights | None = None
        self._decoder_stamp = -1
        self.load_weights(0)

    def load_weights(self, version: int) -> None:
        """Note the version of the weights; restarts `times`."""
        self.version = version
        self.loads += 1
        self.times = {"prefill": 0.0, "decode": 0.0, "draw": 0.0}

    def rest(self) -> None:
        """Free the weights that are laid out for decoding."""
        self._decoder = None

    def decoder(self) -> DecodeWeights | None:
        """Weights laid out for decoding, made again if a parameter was written to; None if the model has none."""
        if not is_fused(self.model):
            return None
        stamp = sum(parameter._version for parameter in self.model.parameters())
        if self._decoder is None or stamp != self._decoder_stamp:
            self._decoder = None  # never two copies
            with self.timed("decode"):
                self._decoder, self._decoder_stamp = DecodeWeights(self.model), stamp
        return self._decoder

    def logits(self, hidden_RD: Tensor, decoder: DecodeWeights | None) -> Tensor:
        """[R, V]."""
        logits: Tensor = self._head(hidden_RD) if decoder is None else decoder.logits(hidden_RD)
        return logits

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        start = time.perf_counter()
        yield
        self.times[phase] += time.perf_counter() - start
