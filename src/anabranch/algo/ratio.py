"""How much more likely the current policy makes what was sampled: the ratio that multiplies the advantage.

Letters: M trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from anabranch.algo.groups import sum_by
from anabranch.algo.shapes import check_flat, check_index

Ratio = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logprob_M, old_logprob_M, sequence_M) -> ratio_M."""

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within +- this before exp: e^20 is 5e8, far outside every clip, and finite in float32."""


def log_ratio(logprob_M: Tensor, old_logprob_M: Tensor) -> Tensor:
    """log(new probability / old probability), held within +-20, float [M]. Without gradient where it is held.

    Raises:
        ShapeError: lengths differ.
    """
    check_flat(logprob_M=logprob_M, old_logprob_M=old_logprob_M)
    return (logprob_M - old_logprob_M).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def token_ratio(logprob_M: Tensor, old_logprob_M: Tensor, sequence_M: Tensor) -> Tensor:
    """Each token's own probability ratio (PPO, arXiv:1707.06347), float [M].

    Raises:
        ShapeError: lengths differ.
    """
    check_flat(logprob_M=logprob_M, sequence_M=sequence_M)
    return log_ratio(logprob_M, old_logprob_M).exp()


def sequence_ratio(logprob_M: Tensor, old_logprob_M: Tensor, sequence_M: Tensor) -> Tensor:
    """Geometric mean of the answer's token ratios, given to each of its tokens (GSPO, arXiv:2507.18071), float [M].

        s = exp( mean_t (logprob_t - old_logprob_t) )

    The gradient of every copy flows to all tokens of the answer, so all of them must be present. The mean is held
    within +-20, not each term.

    Args:
        logprob_M: float [M].
        old_logprob_M: float [M].
        sequence_M: int64 [M], the answer of each token.

    Raises:
        ShapeError: lengths differ, or an index is not usable.
    """
    check_flat(logprob_M=logprob_M, old_logprob_M=old_logprob_M, sequence_M=sequence_M)
    size = check_index("sequence_M", sequence_M)
    length = sum_by(sequence_M, torch.ones_like(logprob_M), size)
    mean = sum_by(sequence_M, logprob_M - old_logprob_M, size) / length.clamp(min=1)
    return mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()[sequence_M]


RATIOS: Mapping[str, Ratio] = {"token": token_ratio, "sequence": sequence_ratio}
