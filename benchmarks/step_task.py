"""What both sides of the GRPO step and of the replay are given: prompts, the reward, and the sizes. Standard library.

Imported from every environment, so that no side can have another version of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

PROBLEMS = (
    "Maya sells lemonade at 3 dollars a cup. On Saturday she sells 14 cups and on Sunday 9 cups. "
    "How much does she take?",
    "A train of 6 wagons carries 48 people in each wagon. At the first stop 35 people leave and 17 get on. "
    "At the second stop nobody leaves and 22 get on. How many people are on the train after the second stop?",
    "Tom has 120 stamps. He gives a quarter of them to his sister and buys 15 new ones. How many has he got now?",
    "A baker needs 250 grams of flour for a loaf and 80 grams for a roll. Today she bakes 12 loaves and 45 rolls, "
    "and she spills 300 grams on the floor. A neighbour brings her 2 more bags of 500 grams each, which she does "
    "not open. How many grams of flour does she use up in all?",
    "Lena runs 4 kilometres on Monday, twice as far on Wednesday, and on Friday one kilometre less than on Wednesday. "
    "How far does she run in the three days together?",
    "A tank holds 900 litres. A pump fills it with 45 litres a minute, and a leak loses 5 litres a minute. The tank "
    "is empty at noon. At how many minutes past noon is it full for the first time, if nobody stops the pump?",
    "There are 28 pupils in a class. 3 out of every 7 of them play an instrument. How many pupils do not?",
    "A book has 312 pages. Omar reads 24 pages on each of the first 5 days. From then on he reads 32 pages a day "
    "until he is through. On how many days does he read, counting the first five and the last one, on which he may "
    "have fewer pages left than on the others?",
)
"""Eight word problems of different length; with the model's chat template about 60 to 120 tokens."""


@dataclass(frozen=True)
class Size:
    """How large a step is."""

    prompts: int = 8
    answers: int = 8
    tokens: int = 64

    @property
    def samples(self) -> int:
        return self.prompts * self.answers

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def conversation(problem: str) -> list[dict[str, str]]:
    """A problem as a chat, in the form that `apply_chat_template` takes."""
    return [{"role": "user", "content": problem}]


def reward(answer: Sequence[int]) -> float:
    """The mean of (token id mod 97) / 96 over the answer: cheap, and practically never the same for two answers.

    Answers that agree would have no gradient, and one side might skip what the other one computes.
    """
    return sum(token % 97 for token in answer) / (96 * len(answer))


def fingerprint(prompts: Sequence[Sequence[int]]) -> str:
    """A short name for tokenized prompts: two sides that tell the same one were given the same tokens."""
    return hashlib.sha256(json.dumps([[int(token) for token in prompt] for prompt in prompts]).encode()).hexdigest()[
        :16
    ]
