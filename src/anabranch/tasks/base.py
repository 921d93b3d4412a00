"""A task: problems, and the checker that judges answers to them. No torch; heavy libraries only where they are used."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, ClassVar

from anabranch.errors import DataError, explain
from anabranch.recipe.tree import Answer, Data, HubDataset, JsonLines, ReasoningGym, VerifiersTasks
from anabranch.records import Problem, Reason, Verdict
from anabranch.tasks import answers

if TYPE_CHECKING:
    from anabranch.tasks.judge import Judge

TRIES_PER_PROBLEM = 50
"""How many fresh problems are drawn for every held-out problem asked for before the space counts as too small."""
MIN_TRIES = 1000
NONSENSE = "zq none of these zq"
"""An answer that no scorer may accept in full (see `self_check`)."""
NAMED_PROBLEMS = 3
"""How many problems an error shows."""


def problem_key(*parts: str) -> str:
    """Stable identity of a problem: 16 hex digits of a BLAKE2b hash of its content.

    The same in every process, run and machine. Each part is hashed with its length, so that ("ab", "c") and
    ("a", "bc") differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()


def derived_seed(purpose: str, seed: int) -> int:
    """A seed in [2**20, 2**31) for one purpose.

    reasoning-gym makes problem i from the generator seeded with `seed + i`, so neighbouring seeds share nearly all of
    their problems. Hashing keeps the streams of training, held-out and worked problems far apart.
    """
    return 2**20 + int(problem_key(purpose, str(seed)), 16) % (2**31 - 2**20)


@dataclass(frozen=True)
class Checker(ABC):
    """Judges one answer. Frozen and picklable: it travels to a worker process and is called there.

    The text is the model's answer as it came: hostile input. A checker never evaluates it. It may hang, raise or
    die; `anabranch.tasks.judge.Judge` turns each of these into a verdict.
    """

    extract: tuple[answers.Extractor, ...] = ("boxed", "answer_line", "hashes")
    """How the final answer is found; tried in this order (see `anabranch.tasks.answers`)."""

    preload: ClassVar[tuple[str, ...]] = ()
    """Modules worth importing once for all workers."""
    provable: ClassVar[bool] = True
    """Whether a gold answer proves that it works (`self_check`). False: it judges nothing by itself."""

    @abstractmethod
    def __call__(self, problem: Problem, text: str) -> Verdict:
        """The verdict on `text`, the whole answer of the model to `problem`."""

    def prepare(self) -> None:  # noqa: B027 - a checker without slow imports has nothing to prepare
        """Done once in every new worker, before the clock of its first verdict starts: slow imports belong here."""

    def find(self, text: str) -> str | None:
        """The final answer in `text`; linear time, safe in any process."""
        return answers.find(text, self.extract)


def _no_problem(seed: int) -> Iterator[Problem]:
    """What files have to offer when fresh problems are asked for: none."""
    yield from ()


@dataclass(frozen=True)
class Task:
    """Training problems with the checker of their answers."""

    name: str
    problems: tuple[Problem, ...]
    """Distinct by key."""
    checker: Checker
    fresh: Callable[[int], Iterator[Problem]] = field(default=_no_problem, repr=False)
    """`fresh(seed)`: an endless stream of problems from a generator; repeats are possible. Empty for files."""

    def held_out(self, count: int, seed: int) -> tuple[Problem, ...]:
        """`count` distinct problems that are not in the training set, the same for the same seed.

        They come from the generator under a seed derived from `seed`; a problem whose key is among `problems` is
        dropped, and so is a repeat.

        Raises:
            DataError: the task is a file, or too few unseen problems turned up within max(1000, 50 * count) tries.
        """
        if self.fresh is _no_problem:
            raise DataError(
                explain(
                    "evaluation.data",
                    None,
                    f"'{self.name}' is a fixed list of problems: what is held out must be named",
                    "evaluation.data={kind: jsonl, path: TEST.jsonl}",
                )
            )
        tries = max(MIN_TRIES, TRIES_PER_PROBLEM * count)
        found = unseen(
            self.fresh(derived_seed("held out", seed)),
            frozenset(problem.key for problem in self.problems),
            count,
            tries,
        )
        if len(found) < count:
            raise DataError(
                explain(
                    f"data '{self.name}'",
                    f"{len(found)} distinct problems outside the {len(self.problems)} training problems "
                    f"in {tries} tries",
                    f"{count} held-out problems are needed: with these options there are too few different problems",
                    "lower data.size or evaluation.problems, or widen data.options",
                )
            )
        return found


def unseen(stream: Iterator[Problem], seen: frozenset[str], count: int, tries: int) -> tuple[Problem, ...]:
    """The first `count` problems of `stream` whose keys differ from each other and from `seen`, or fewer.

    At most `tries` problems are drawn.
    """
    found: dict[str, Problem] = {}
    for _, problem in zip(range(tries), stream, strict=False):
        if problem.key not in seen:
            found.setdefault(problem.key, problem)
        if len(found) == count:
            break
    return tuple(found.values())


def open_task(data: Data, answer: Answer) -> Task:
    """The task that the data and answer parts of a recipe describe.

    Raises:
        DataError: the data cannot be read, is empty or malformed, or needs an extra that is not installed.
    """
    # Imported here: these modules import this one.
    from anabranch.tasks import files, hub, reasoning_gym, verifiers_env

    match data:
        case ReasoningGym():
            return reasoning_gym.open_reasoning_gym(data, answer)
        case JsonLines():
            return files.open_jsonl(data, answer)
        case HubDataset():
            return hub.open_hub(data, answer)
        case VerifiersTasks():
            return verifiers_env.open_verifiers(data, answer)


def spread(problems: tuple[Problem, ...], count: int) -> tuple[Problem, ...]:
    """`count` problems at even distances, all of them if there are fewer."""
    if count >= len(problems):
        return problems
    return tuple(problems[index * len(problems) // count] for index in range(count))


def self_check(task: Task, judge: Judge, count: int) -> None:
    """Prove on a sample that the task can be learned: gold scores 1, nothing scores 0, nonsense does not score 1.

    The gold answer is written the way the prompt asks for (`answers.written`). The third probe catches scorers that
    accept any text.

    Args:
        task: what to check.
        judge: an open judge of `task.checker`.
        count: how many problems, taken at even distances.

    Raises:
        DataError: one of the three fails; names the problems.
    """
    if not task.checker.provable:
        return
    sample = spread(task.problems, count)
    extract = task.checker.extract
    gold = judge.judge_all([(problem, answers.written(problem.answer, extract)) for problem in sample])
    empty = judge.judge_all([(problem, "") for problem in sample])
    nonsense = judge.judge_all([(problem, answers.written(NONSENSE, extract)) for problem in sample])
    probes = (
        ("the gold answer scores", gold, [verdict.reason is not Reason.CORRECT for verdict in gold]),
        ("the empty answer scores", empty, [verdict.value != 0 for verdict in empty]),
        ("a nonsense answer scores", nonsense, [verdict.value == 1 for verdict in nonsense]),
    )
    for what, verdicts, failed in probes:
        if any(failed):
            bad = list(compress(zip(sample, verdicts, strict=True), failed))
            raise DataError(_self_check_failure(task, what, bad, len(sample)))


def _self_check_failure(task: Task, what: str, bad: list[tuple[Problem, Verdict]], num_checked: int) -> str:
    """The text of a failed self-check."""
    shown = "; ".join(
        f"{problem.key} ({problem.question[:60]!r}, gold {problem.answer[:40]!r}): {what} {verdict.value:g}"
        f" ({verdict.reason}{', ' + verdict.detail if verdict.detail else ''})"
        for problem, verdict in bad[:NAMED_PROBLEMS]
    )
    more = f" and {len(bad) - NAMED_PROBLEMS} more" if len(bad) > NAMED_PROBLEMS else ""
    lines = any("\n" in problem.answer for problem, _ in bad)
    fix = (
        "the answers have several lines: answer.extract=[tag], and ask for <answer>...</answer> in prompt.instruction"
        if lines
        else "correct or remove these problems, or change answer.extract"
    )
    return explain(
        f"self-check of '{task.name}'",
        f"{len(bad)} of {num_checked} problems failing: {shown}{more}",
        "a gold answer must score 1, an empty one 0, nonsense less than 1",
        fix,
    )
