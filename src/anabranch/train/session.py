"""What all stages of a run share: model, optimizer, engine, task, judge, and the folder that they write to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.engines.base import InFlight
from anabranch.engines.episodes import Answerer
from anabranch.engines.requests import Asker
from anabranch.engines.torch_engine import TorchEngine
from anabranch.environments.runner import Runner
from anabranch.evaluation.held_out import sample_and_judge
from anabranch.evaluation.offline import OfflineValues
from anabranch.recipe.tree import Recipe
from anabranch.records import Problem, Request, Rollout, Verdict
from anabranch.tasks.base import Task
from anabranch.tasks.judge import Judge
from anabranch.tracking.display import Display
from anabranch.tracking.run_folder import RunFolder
from anabranch.train.clock import Clock
from anabranch.train.optimizer import MasterOptimizer

if TYPE_CHECKING:
    from anabranch.train.flight import Flight


@dataclass(kw_only=True)
class Learner:
    """A model that answers and learns: all that an RL step needs beside problems and rewards."""

    recipe: Recipe
    display: Display
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    optimizer: MasterOptimizer
    engine: TorchEngine
    reference: PreTrainedModel | None = None
    """Frozen weights of the start of RL; only where the algorithm has a KL term."""
    runner: Runner | None = None
    """Of the environments that answers are written in; None: there are none."""
    asker: Asker = field(init=False)
    """Makes prompts and requests."""
    answerer: Answerer = field(init=False)
    """The engine, with the environments."""

    def __post_init__(self) -> None:
        world = None if self.runner is None else self.runner.world
        self.asker = Asker(self.recipe, self.tokenizer, self.model, world)
        self.answerer = Answerer(self.engine, self.tokenizer, self.runner)


@dataclass(kw_only=True)
class Session(Learner):
    """One run in this process."""

    folder: RunFolder
    task: Task
    data_hash: str
    """Of all problems and worked examples, see `RunState.data`."""
    held_out: tuple[Problem, ...]
    judge: Judge
    held_judge: Judge
    """Of the held-out problems; the same unless they come from other data."""
    offline: OfflineValues | None = None
    """Where the values of all problems start; None: at the prior, or values are not tracked."""
    pending_times: dict[str, float] = field(default_factory=dict)
    """Seconds of saving and evaluating, for the next step's record."""
    flight: Flight | None = None
    """Rollouts in flight across steps; None: every step waits for all of its own."""
    in_flight: InFlight | None = None
    """What was in flight in the checkpoint that the run goes on from, until RL goes on."""
    probed: bool = False
    """Whether engine and trainer were compared in this process."""

    @property
    def end_of_answer(self) -> tuple[int, ...]:
        """What supervised answers end with: the tokenizer's eos."""
        return () if self.tokenizer.eos_token_id is None else (int(self.tokenizer.eos_token_id),)

    def answers(
        self, problems: Sequence[Problem], requests: Sequence[Request], judge: Judge, clock: Clock
    ) -> tuple[list[Rollout], list[Verdict]]:
        """Sample all requests and judge every answer as it finishes; sorted by request, then by sample.

        `problems[i]` belongs to `requests[i]`.
        """
        waited = self.answerer.waited
        found = sample_and_judge(self.answerer, judge, problems, requests, self.display)
        if self.runner is not None:
            clock.add("wait", self.answerer.waited - waited)
        self.display.phase("judging")
        with clock.phase("judge"):
            verdicts = [future.result() for _, future in found]
        return [rollout for rollout, _ in found], verdicts
