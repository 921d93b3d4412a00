"""What the number of draws does to the probability of being right: BroRL's simulation of one token, without a model.

A vocabulary of tokens, some of them correct (reward 1, the others -1). Each step draws N tokens from p = softmax(z),
takes the mean reward b of the draws off each of theirs, and makes an AdamW step on -(1/N) sum over draws of (R - b) p,
where p is the current probability of the token drawn (arXiv:2510.01180, section 4.1). Runs differ in N only. With

    w_k = (1/N) sum of R - b over the draws of token k            S = sum_k w_k p_k

the gradient is -p_k (w_k - S): no automatic differentiation. Correct tokens start at logit 3, the others at 0, and one
of the correct ones, the anchor, at 5. The paper leaves open where the anchor belongs and how AdamW is set: this, with
PyTorch's defaults, fits its figure best.

Everything is float32, as it was there, but for the cumulative sum that is drawn from. Letters: V vocabulary, C correct
tokens (the first ones), N draws of a step, T steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import RecipeError, explain

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

CORRECT_LOGIT = 3.0
ANCHOR_LOGIT = 5.0
"""Of token 0, which is correct."""
RIGHT, WRONG = 1.0, -1.0
"""Rewards."""
MOST_TOKENS = 1 << 24
"""Largest vocabulary: the state of the optimizer is held in memory, and much else."""
MOST_DRAWS = 1 << 24
"""Of a step."""
SMALLEST_EPS = 1e-30
"""Below it nothing would be left of it, and a logit without a gradient would have 0 / 0 as its step."""
MOST_POINTS = 200
"""Steps of a run that its curves keep, at most, besides the last."""


@dataclass(frozen=True)
class Adam:
    """AdamW as PyTorch has it, with its defaults."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    """Added to the root of the mean square. Not small here: gradients are 1e-9 to 1e-10 where N is large."""
    weight_decay: float = 0.01
    """Decoupled from the gradient, times the learning rate."""


@dataclass(frozen=True)
class Setting:
    """One simulation.

    Raises:
        RecipeError: a number outside its range.
    """

    vocabulary: int
    correct: int
    """How many tokens are."""
    draws: int
    """N, of each step."""
    steps: int
    seed: int = 0
    adam: Adam = field(default_factory=Adam)

    def __post_init__(self) -> None:
        _within("vocabulary", self.vocabulary, 2, MOST_TOKENS)
        _within("correct", self.correct, 1, self.vocabulary - 1)
        _within("--n", self.draws, 1, MOST_DRAWS)
        _within("--steps", self.steps, 1, 1 << 30)
        _within("--seed", self.seed, 0, 1 << 62)
        if not SMALLEST_EPS <= self.adam.eps <= 1:  # false for what is not a number, too
            need = f"it is a float32, {SMALLEST_EPS:g} to 1"
            raise RecipeError(explain("--eps", self.adam.eps, need, "--eps 1e-8"))
        if not 0 <= self.adam.weight_decay * self.adam.lr <= 1:
            need = f"a step takes off so much times {self.adam.lr:g}, at most everything"
            raise RecipeError(explain("--weight-decay", self.adam.weight_decay, need, "--weight-decay 0.01"))


def _within(option: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        fix = f"{option} {min(max(found, least), most)}"
        raise RecipeError(explain(option, f"{found:,}", f"it is {least:,} to {most:,}", fix))


# ------------------------------------------------------------------------------------------------- pure arithmetic


def start(vocabulary: int, correct: int) -> Float32:
    """Logits before the first step, float32 [V]."""
    logits_V = np.zeros(vocabulary, dtype=np.float32)
    logits_V[:correct] = CORRECT_LOGIT
    logits_V[0] = ANCHOR_LOGIT
    return logits_V


def softmax(logits_V: NDArray[np.floating]) -> NDArray[np.floating]:
    """Probabilities, of the dtype of the logits, [V]."""
    shifted_V = np.exp(logits_V - logits_V.max())
    found: NDArray[np.floating] = np.divide(shifted_V, shifted_V.sum(), out=shifted_V)
    return found


def draw(prob_V: NDArray[np.floating], uniform_N: Float64) -> Int64:
    """A token for each number in [0, 1): the first whose cumulative probability is above it, int64 [N].

    Sums are float64: in float32 the probability of a token is lost in the sum of those before it. Numbers that are
    sorted are found several times faster.
    """
    sum_V = np.cumsum(prob_V, dtype=np.float64)
    found: Int64 = np.minimum(np.searchsorted(sum_V, uniform_N * sum_V[-1], side="right"), len(sum_V) - 1)
    return found


def gradient(prob_V: NDArray[np.floating], drawn_N: Int64, reward_N: Float64) -> NDArray[np.floating]:
    """Of -(1/N) sum_j (R_j - b) p_(drawn j) to the logits, b the mean reward: -p_k (w_k - S), [V], dtype of the p.

    Args:
        prob_V: [V].
        drawn_N: int64 [N], token of each draw.
        reward_N: float64 [N], R of each draw. Where all are equal the gradient is 0.
    """
    token_K, place_N = np.unique(drawn_N, return_inverse=True)
    centred_N = reward_N - reward_N.mean()
    weight_K = np.bincount(place_N, weights=centred_N, minlength=len(token_K)) / len(drawn_N)
    pull_K = weight_K * prob_V[token_K]
    found_V = prob_V * prob_V.dtype.type(pull_K.sum())
    found_V[token_K] -= pull_K.astype(prob_V.dtype)
    return found_V


class AdamW:
    """The optimizer and its state, on logits that are changed in place, float32 [V] each.

    The formulas and their order of operations are PyTorch's (`torch.optim.AdamW`, one tensor at a time).
    """

    def __init__(self, logits_V: Float32, setting: Adam) -> None:
        self.logits_V = logits_V
        self._setting = setting
        self._mean_V, self._square_V, self._scratch_V = (np.zeros_like(logits_V) for _ in range(3))
        self._steps = 0

    def step(self, gradient_V: Float32) -> None:
        """One step. The gradient's memory is written over."""
        setting, scratch_V = self._setting, self._scratch_V
        self._steps += 1
        remember, remember_square = setting.betas
        of_mean, of_square = (1 - beta**self._steps for beta in setting.betas)  # what a start at 0 hides
        self.logits_V *= np.float32(1 - setting.lr * setting.weight_decay)
        np.subtract(gradient_V, self._mean_V, out=scratch_V)
        scratch_V *= np.float32(1 - remember)
        self._mean_V += scratch_V
        np.square(gradient_V, out=gradient_V)
        gradient_V *= np.float32(1 - remember_square)
        self._square_V *= np.float32(remember_square)
        self._square_V += gradient_V
        np.sqrt(self._square_V, out=scratch_V)
        scratch_V *= np.float32(1 / math.sqrt(of_square))
        scratch_V += np.float32(setting.eps)
        np.divide(self._mean_V, scratch_V, out=scratch_V)
        scratch_V *= np.float32(setting.lr / of_mean)
        self.logits_V -= scratch_V


# ------------------------------------------------------------------------------------------------------ simulation


@dataclass(frozen=True)
class Curve:
    """What a run looked like, one number a kept step; equally long."""

    step: tuple[int, ...]
    """0 is before the first."""
    correct_mass: tuple[float, ...]
    """Q_pos, the probability of being right."""
    improved: tuple[float, ...]
    """Share of correct tokens that are more probable than at the start."""
    worst: tuple[float, ...]
    """Change of the probability of the correct token that lost most, or gained least, since the start."""


@dataclass(frozen=True)
class Outcome:
    """One simulation."""

    setting: Setting
    curve: Curve
    worst_of_all: float
    """Smallest `worst` of all steps, kept or not."""

    @property
    def correct_mass(self) -> float:
        """Q_pos at the end."""
        return self.curve.correct_mass[-1]

    @property
    def improved(self) -> float:
        """Share of correct tokens above their start at the end."""
        return self.curve.improved[-1]

    @property
    def worst(self) -> float:
        """Change of the correct token that did worst, at the end."""
        return self.curve.worst[-1]


def simulate(setting: Setting, after_step: Callable[[int], None] | None = None) -> Outcome:
    """Run it.

    Its random numbers depend on the seed and N only: fewer steps are the beginning of more.

    Args:
        setting: of what.
        after_step: called with the number of steps that are done.
    """
    random = own_numbers(setting)
    logits_V = start(setting.vocabulary, setting.correct)
    optimizer, correct, keep = AdamW(logits_V, setting.adam), setting.correct, _kept_every(setting.steps)
    prob_V = softmax(logits_V)
    start_C = prob_V[:correct].copy()
    points = [(0, *_measures(prob_V[:correct], start_C))]
    worst_of_all = 0.0
    for number in range(1, setting.steps + 1):
        drawn_N = draw(prob_V, np.sort(random.random(setting.draws)))
        optimizer.step(gradient(prob_V, drawn_N, np.where(drawn_N < correct, RIGHT, WRONG)))
        prob_V = softmax(logits_V)
        mass, improved, worst = _measures(prob_V[:correct], start_C)
        worst_of_all = min(worst_of_all, worst) if number > 1 else worst
        if number % keep == 0 or number == setting.steps:
            points.append((number, mass, improved, worst))
        if after_step is not None:
            after_step(number)
    return Outcome(setting, Curve(*zip(*points, strict=True)), worst_of_all)


def _measures(prob_C: NDArray[np.floating], start_C: NDArray[np.floating]) -> tuple[float, float, float]:
    change_C = prob_C - start_C
    return float(prob_C.sum(dtype=np.float64)), float((change_C > 0).mean()), float(change_C.min())


def _kept_every(steps: int) -> int:
    return -(-steps // MOST_POINTS)


def own_numbers(setting: Setting) -> np.random.Generator:
    """The random numbers of a run: each step takes the next N."""
    name = f"mass-balance/{setting.seed}/{setting.draws}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
