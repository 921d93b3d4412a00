"""Reinforcement learning from verifiable rewards in one file: plain torch and transformers, no anabranch.

    python examples/one_file.py MODEL_FOLDER_OR_ID [--steps 10] [--lr 1e-5] ...

What a step does, in five verbs: *sample* several answers to each of a few problems, *reward* each answer (1 if its last
number is the right one), *compare* answers to the same problem, *score* the sampled tokens again with gradients, and
*update* the weights so that tokens of better-than-usual answers become more likely.

The method is Lite PPO (arXiv:2508.08221): GRPO with the mean of the group as baseline, the standard deviation of the
whole batch as scale, and a loss that is a mean over all tokens. It is written for reading: no packing, no shared
prompts, float32 only. tests/examples/test_one_file.py holds it equal to the library, token for token.

Letters: B answers of a step, N answers to one problem, P tokens of a prompt, R tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

INSTRUCTION = "Think step by step, then finish with a line of the form 'Answer: N'."


class Problem(NamedTuple):
    """One question. The key names it: random numbers hang on it, not on its place in the batch."""

    key: str
    question: str
    answer: str


class Answer(NamedTuple):
    """One sampled answer."""

    prompt: list[int]
    tokens: list[int]
    """R sampled tokens, the end token included if the model wrote one."""
    text: str


class Settings(NamedTuple):
    """What a run can choose."""

    samples: int = 8
    """N answers a problem: with one there is nothing to compare."""
    max_new_tokens: int = 64
    lr: float = 1e-5
    grad_clip: float = 1.0
    seed: int = 0


class Report(NamedTuple):
    """What a step found and did."""

    answers: list[Answer]
    rewards: list[float]
    loss: float
    """Its size says nothing about progress, only its gradient matters; watch the rewards."""
    grad_norm: float


# ----------------------------------------------------------------------------------------------------------- problems


def sums(generator: random.Random, count: int) -> list[Problem]:
    """`count` one-digit sums, all different: the answers to one asked twice would be drawn with the same numbers."""
    terms = [(a, sign * b) for a in range(1, 10) for b in range(1, 10) for sign in (1, -1)]
    chosen = [(f"{a} {'+' if b > 0 else '-'} {abs(b)}", a + b) for a, b in generator.sample(terms, count)]
    return [Problem(key=text, question=f"What is {text}?", answer=str(total)) for text, total in chosen]


def reward(problem: Problem, text: str) -> float:
    """1 if the last number in the text is the right one. Lenient about form, so that an untrained model earns some."""
    numbers = re.findall(r"-?\d+", text)
    return float(bool(numbers) and float(numbers[-1]) == float(problem.answer))


# ----------------------------------------------------------------------------------------------------------- sampling


def uniforms(seed: int, step: int, key: str, sample: int, count: int) -> Tensor:
    """The random numbers of one answer, float64 [count], from a generator that counts instead of remembering.

    Keyed by what is drawn, so an answer does not depend on its neighbours, on batch size or on what was drawn before:
    a run can be repeated, resumed or split over machines and still draw the same tokens.
    """
    name = hashlib.blake2b(f"{seed}/{step}/{key}/{sample}".encode(), digest_size=16).digest()
    philox = np.random.Philox(key=int.from_bytes(name, "little"))
    return torch.from_numpy(np.random.Generator(philox).random(count))


def draw(logits_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Inverse CDF: lay the probabilities end to end and take the token under the random number. int64 [N].

    One uniform a row is enough; the usual exponential noise would need one for each of 49,000 words.
    """
    cumulative_NV = torch.softmax(logits_NV.float(), dim=-1).double().cumsum(dim=-1)
    goal_N1 = uniform_N[:, None] * cumulative_NV[:, -1:]
    return (cumulative_NV <= goal_N1).sum(dim=-1).clamp(max=logits_NV.shape[1] - 1)


@torch.no_grad()
def sample(model: Any, tokenizer: Any, problem: Problem, step: int, settings: Settings) -> list[Answer]:
    """N answers to one problem. All rows share one prompt, so no row needs padding; keys and values are cached."""
    chat = [{"role": "user", "content": f"{problem.question}\n{INSTRUCTION}"}]
    prompt = list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    uniform_NR = torch.stack(
        [uniforms(settings.seed, step, problem.key, n, settings.max_new_tokens) for n in range(settings.samples)]
    )
    end = stop_tokens(model, tokenizer)
    rows: list[list[int]] = [[] for _ in range(settings.samples)]
    feed, past = torch.tensor([prompt] * settings.samples), None
    for position in range(settings.max_new_tokens):
        output = model(input_ids=feed, past_key_values=past, use_cache=True, logits_to_keep=1)
        token_N = draw(output.logits[:, -1], uniform_NR[:, position])
        for row, token in zip(rows, token_N.tolist(), strict=True):
            if not row or row[-1] not in end:  # a finished row is fed on, but nothing more is kept of it
                row.append(token)
        if all(row[-1] in end for row in rows):
            break
        feed, past = token_N[:, None], output.past_key_values
    return [Answer(prompt, row, tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Whatever ends an answer: the tokenizer's and the generation config's end tokens."""
    listed = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}


# ----------------------------------------------------------------------------------------------------------- learning


def advantages(rewards: Sequence[float], group_size: int) -> Tensor:
    """How much better than usual each answer was, float64 [B].

    Minus the mean of its own group: a hard problem is no fault of the answer. Divided by the spread of the whole batch,
    not of the group: in a group where seven of eight agree, the group's own small spread would shout.
    """
    reward_B = torch.tensor(rewards, dtype=torch.float64)
    centred_B = reward_B - reward_B.view(-1, group_size).mean(dim=1).repeat_interleave(group_size)
    spread = reward_B.std()  # unbiased: divided by B - 1
    return centred_B / spread if spread > 1e-6 else torch.zeros_like(centred_B)


def logprobs(model: Any, answers: Sequence[Answer]) -> tuple[Tensor, Tensor]:
    """Log-probs of the sampled tokens of answers to one problem, with gradients: float32 [N, R], and bool [N, R].

    Rows are padded on the right. Attention looks only to the left, so no real token sees padding and no mask is needed;
    the second result says which entries are real.
    """
    P, R = len(answers[0].prompt), max(len(answer.tokens) for answer in answers)
    padded_NT = torch.tensor([[*a.prompt, *a.tokens, *[0] * (R - len(a.tokens))] for a in answers])
    real_NR = torch.tensor([[index < len(a.tokens) for index in range(R)] for a in answers])
    # A token is predicted by the one to its left: from the prompt's last token to the answer's last but one.
    logits_NRV = model(input_ids=padded_NT, use_cache=False, logits_to_keep=R + 1).logits[:, :-1]
    logprob_NRV = torch.log_softmax(logits_NRV.float(), dim=-1)
    return logprob_NRV.gather(2, padded_NT[:, P:, None])[:, :, 0], real_NR


def update(
    model: Any, optimizer: Any, answers: list[Answer], advantage_B: Tensor, settings: Settings
) -> tuple[float, float]:
    """One optimizer step; returns loss and gradient norm.

    Group by group, to save memory. Gradients add up, and so must the losses: every group's sum is divided by the number
    of tokens of the *whole* batch.
    """
    num_tokens, loss, N = sum(len(answer.tokens) for answer in answers), 0.0, settings.samples
    optimizer.zero_grad()
    for start in range(0, len(answers), N):
        advantage_N1 = advantage_B[start : start + N, None].float()
        if not advantage_N1.any():
            continue  # all answers were equally good: the gradient is exactly zero, so save the work
        logprob_NR, real_NR = logprobs(model, answers[start : start + N])
        # PPO's ratio of new to old probability. One update a batch: old is new, the ratio is 1 and clipping it would do
        # nothing. Its gradient is that of the log-prob, which makes this REINFORCE with a baseline.
        ratio_NR = torch.exp(logprob_NR - logprob_NR.detach())
        group_loss = -(ratio_NR * advantage_N1)[real_NR].sum() / num_tokens
        torch.autograd.backward(group_loss)
        loss += group_loss.item()
    grad_norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip))
    optimizer.step()  # leaves weights without a gradient alone: a step in which every group agrees changes nothing
    return loss, grad_norm


def train(
    model: Any,
    tokenizer: Any,
    steps: Sequence[Sequence[Problem]],
    settings: Settings,
    show: Callable[[int, Report], None] = lambda step, report: None,
) -> list[Report]:
    """The loop.

    `model` is a causal language model of transformers in float32 and in eval mode (dropout would train other log-probs
    than those that were sampled), `steps` the problems of each step; `show` is called after every step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    reports = []
    for step, problems in enumerate(steps):
        answers, rewards = [], []
        for problem in problems:
            group = sample(model, tokenizer, problem, step, settings)
            answers += group
            rewards += [reward(problem, answer.text) for answer in group]
        advantage_B = advantages(rewards, settings.samples)
        reports.append(Report(answers, rewards, *update(model, optimizer, answers, advantage_B, settings)))
        show(step, reports[-1])
    return reports


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a model on one-digit sums and print a line a step."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description="RL from verifiable rewards in one file.")
    parser.add_argument("model", help="model folder or Hugging Face id")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--problems", type=int, default=8, help="problems a step")
    for name, default in Settings()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    asked = vars(parser.parse_args(arguments))
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    settings = Settings(**{name: asked[name] for name in Settings._fields})
    generator = random.Random(settings.seed)
    steps = [sums(generator, asked["problems"]) for _ in range(asked["steps"])]
    started = time.perf_counter()

    def show(step: int, report: Report) -> None:
        mean, length = np.mean(report.rewards), np.mean([len(answer.tokens) for answer in report.answers])
        numbers = f"reward {mean:.3f}  length {length:.0f}  loss {report.loss:+.4f}  grad {report.grad_norm:.2f}"
        print(f"step {step + 1}/{len(steps)}  {numbers}  {time.perf_counter() - started:.0f} s", flush=True)

    train(model, tokenizer, steps, settings, show)


if __name__ == "__main__":
    main()
