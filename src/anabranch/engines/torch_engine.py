"""The in-process engine: continuous batching over one model that the trainer shares.

    waiting samples --admit--> rows: prompts prefilled once, first tokens drawn
    rows --decode--> one token each --draw--> finished rows leave as rollouts, waiting samples take their place

The weights are the trainer's own tensors: nothing is copied or reloaded, `load_weights` only notes the version.
`anabranch.engines.torch_stream` has what is in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.engines.kv_cache import token_bytes
from anabranch.engines.runtime import Runtime
from anabranch.engines.torch_stream import TorchStream
from anabranch.records import Request, Rollout


class TorchEngine:
    """See `engines.base.Engine`.

    Args:
        model: loaded with `attn_implementation=modeling.attention.NAME`; shared with the trainer.
        tokenizer: decodes answers.
        max_rows: most answers of a stream in flight at the same time, held ones among them.
        kv_gb: GB for keys and values of what is in flight. An answer is admitted if it is sure to fit with all of its
            new tokens, or if nothing else is in flight.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_rows: int = 512, kv_gb: float = 2.0
    ) -> None:
        self._runtime = Runtime(model, tokenizer)
        self._max_rows = max_rows
        self._max_tokens = int(kv_gb * 2**30) // token_bytes(model)

    @property
    def times(self) -> dict[str, float]:
        """See `Engine.times`."""
        return dict(self._runtime.times)

    def load_weights(self, version: int) -> None:
        """Note the version of the weights, which are shared with the trainer; restarts `times`."""
        self._runtime.load_weights(version)

    def rest(self) -> None:
        """See `Engine.rest`: the weights that are laid out for decoding."""
        self._runtime.rest()

    def open(self, *, recompute: bool = False) -> TorchStream:
        """See `Engine.open`."""
        return TorchStream(self._runtime, max_rows=self._max_rows, max_tokens=self._max_tokens, recompute=recompute)

    def generate(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """See `Engine.generate`."""
        stream = self.open()
        for request in requests:
            stream.submit(request)
        return _drain(stream)


def _drain(stream: TorchStream) -> Iterator[Rollout]:
    while stream.ready:
        yield from stream.advance()
