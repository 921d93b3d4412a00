"""What all stages of a run share: model, optimizer, engine, task, judge, and the folder that they write to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.engines.requests import Asker
from anabranch.engines.torch_engine import TorchEngine
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
    asker: Asker = field(init=False)
    """Makes prompts and requests."""

    def __post_init__(self) -> None:
        self.asker = Asker(self.recipe, self.tokenizer, self.model)


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
        found = sample_and_judge(self.engine, judge, problems, requests, self.display)
        self.display.phase("judging")
        with clock.phase("judge"):
            verdicts = [future.result() for _, future in found]
        return [rollout for rollout, _ in found], verdicts
